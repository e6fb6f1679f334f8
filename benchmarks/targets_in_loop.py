"""What a fine-tuning step costs with targets made beforehand, and with the VAE and the CLIP in the loop.

    OMP_NUM_THREADS=1 python benchmarks/targets_in_loop.py [steps, 40]

The tiny SDXL base with LoRA and the conditioning bridge, batches of 16, pictures of 64 pixels as PNG. In the loop, each step
decodes the pictures, encodes them with the tiny VAE and embeds them with the tiny CLIP; otherwise both steps are the same.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from figures import compare
from PIL import Image
from step_loop import OPTIM, ROOT, B, N, objective, stream, write_shards

from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.data.writer import ShardWriter
from ttd.diffusion.targets import ClipTargets, VaeTargets
from ttd.engine.schedules import make_optimizer

SIZE = 64


def write_pictures(root: Path) -> None:
    """A picture for each of the samples that ``write_shards`` made."""
    rng = np.random.default_rng(0)
    with ShardWriter(root / "images", kind="image") as writer:
        for i in range(N):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(out, format="PNG")
            sha = hashlib.sha256(f"{i}".encode()).hexdigest()
            writer.write(sha, {"image.png": out.getvalue(), "meta.json": {"image_id": f"{i}", "sha256": sha}})
        writer.finish({"study": "Benchmark"})


def main(steps: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    tiny = ROOT / "weights" / "tiny"
    vae, clip = VaeTargets(str(tiny), image_size=SIZE), ClipTargets(str(tiny / "clip"))
    with tempfile.TemporaryDirectory(prefix="ttd-benchmark-") as folder:
        root = Path(folder)
        write_shards(root)
        write_pictures(root)
        made_beforehand = stream(root)
        config = DataConfig(shards=root, repetitions="random", picture_size=SIZE)
        with_pictures = Stream(open_reader(config), config, seed=0, global_batch_size=B)
        module = objective().train()
        optimizer = make_optimizer(OPTIM, module)

        def run(data: Stream, in_loop: bool) -> int:
            for batch in islice(data.batches(), steps):
                if in_loop:
                    pictures = batch.pop("picture")
                    with torch.no_grad():
                        batch["vae"] = vae.model.encode(pictures.float() / 127.5 - 1).latent_dist.parameters
                        batch["clip"] = clip.embed(list(pictures))
                    batch["vae.size-ids"] = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).repeat(B, 1)
                module(batch)["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
            return steps

        compare(
            f"(per step of {B} samples, not per sample) with targets made beforehand, against VAE and CLIP in the loop",
            lambda: run(made_beforehand, in_loop=False),
            lambda: run(with_pictures, in_loop=True),
            goal="printed",
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
