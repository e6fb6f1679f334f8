"""TRELLIS.2-4B behind docs/external_lifters.md. NOT RUN by this project: written from the repository's README.

Code and weights MIT, but the image encoder is DINOv3 (gated, its own licence), and nvdiffrast and nvdiffrec have licences
of their own: accept all three by setting the name below. At least 24 GB of GPU memory; 3 s (512) to 17 s (1024) per object
on an H100. Source: microsoft/TRELLIS.2, its setup.sh makes the environment (Linux, CUDA toolkit 12.4).

    lifter.command: [env, -C, /src/TRELLIS.2, /envs/trellis2/bin/python, /src/ttd/launch/workers/trellis2.py]
    lifter.accept_license: MIT AND LicenseRef-DINOv3 AND LicenseRef-nvdiffrast
"""

import os
import sys

from ttd_worker import serve

os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
REVISION = "microsoft/TRELLIS.2-4B"  # add the commit that you downloaded


def load():
    sys.path.insert(0, ".")
    import o_voxel
    from PIL import Image
    from trellis2.pipelines import Trellis2ImageTo3DPipeline

    pipeline = Trellis2ImageTo3DPipeline.from_pretrained("microsoft/TRELLIS.2-4B")
    pipeline.cuda()

    def lift(image, output, seed, description):
        mesh = pipeline.run(Image.open(image), seed=seed)[0]  # RGBA: its alpha is used, no background model is loaded
        mesh.simplify(16777216)  # nvdiffrast takes no more faces
        glb = o_voxel.postprocess.to_glb(
            vertices=mesh.vertices, faces=mesh.faces, attr_volume=mesh.attrs, coords=mesh.coords,
            attr_layout=mesh.layout, voxel_size=mesh.voxel_size, aabb=[[-0.5] * 3, [0.5] * 3],
            decimation_target=100000, texture_size=1024, remesh=True,
        )  # fmt: skip
        glb.export(output, file_type="glb")

    return lift


serve(
    load,
    name="TRELLIS.2-4B",
    revision=REVISION,
    licence="MIT AND LicenseRef-DINOv3 AND LicenseRef-nvdiffrast",
)
