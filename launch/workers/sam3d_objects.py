"""SAM 3D Objects behind docs/external_lifters.md. NOT RUN by this project: written from the repository's demo.

SAM licence, gated: ask for the checkpoints at facebook/sam-3d-objects, read the licence, accept it by name. At least 32 GB
of GPU memory. Source: facebookresearch/sam-3d-objects (arXiv:2511.16624), doc/setup.md makes the environment.

    lifter.command: [env, -C, /src/sam-3d-objects, /envs/sam3d/bin/python, /src/ttd/launch/workers/sam3d_objects.py]
    lifter.accept_license: LicenseRef-SAM
"""

import sys

import numpy as np
from ttd_worker import serve

REVISION = "facebook/sam-3d-objects"  # add the commit that you downloaded


def load():
    sys.path.insert(0, "notebook")
    from inference import Inference
    from PIL import Image

    model = Inference("checkpoints/hf/pipeline.yaml", compile=False)

    def lift(image, output, seed, description):
        rgba = np.asarray(Image.open(image).convert("RGBA"))
        found = model(rgba[..., :3], rgba[..., 3] > 127, seed=seed)
        mesh = found.get("glb")  # a trimesh object; the demo itself writes found["gs"], a splat
        if mesh is None or len(mesh.faces) == 0:
            return "the model gives no mesh"
        mesh.export(output, file_type="glb")

    return lift


serve(load, name="SAM 3D Objects", revision=REVISION, licence="LicenseRef-SAM")
