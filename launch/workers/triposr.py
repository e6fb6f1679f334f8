"""TripoSR behind docs/external_lifters.md. NOT RUN by this project: written from the repository's own run.py.

Licence MIT, ungated. About 6 GB of GPU memory, under a second per object on a large card. Source: VAST-AI-Research/TripoSR
(no package; the PyPI name ``tsr`` is something else), which needs torchmcubes built.

    lifter.command: [env, -C, /src/TripoSR, /envs/triposr/bin/python, /src/ttd/launch/workers/triposr.py]
"""

import sys

import numpy as np
from ttd_worker import serve

REVISION = "stabilityai/TripoSR"  # add the commit that you downloaded
TO_FRAME = [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]  # its camera stands on +X, +Z is up, +Y is right


def load():
    sys.path.insert(0, ".")
    import torch
    from PIL import Image
    from tsr.system import TSR

    model = TSR.from_pretrained("stabilityai/TripoSR", config_name="config.yaml", weight_name="model.ckpt")
    model.renderer.set_chunk_size(8192)
    model.to("cuda")

    def lift(image, output, seed, description):
        rgba = np.asarray(Image.open(image).convert("RGBA"), np.float32) / 255
        grey = rgba[..., :3] * rgba[..., 3:] + 0.5 * (1 - rgba[..., 3:])  # the ground that it was trained on
        with torch.no_grad():
            codes = model([Image.fromarray((grey * 255).astype(np.uint8))], device="cuda")
        mesh = model.extract_mesh(codes, True, resolution=256)[0]  # True: colours at the vertices
        if len(mesh.faces) == 0:
            return "the field has no surface"
        mesh.export(output, file_type="glb")

    return lift


serve(load, name="TripoSR", revision=REVISION, licence="MIT", to_frame=TO_FRAME)
