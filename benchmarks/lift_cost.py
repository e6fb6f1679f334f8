"""What lifting costs: questions and agreement of the refined grid against the dense one, CPU time per item, and who is refused.

    OMP_NUM_THREADS=1 python benchmarks/lift_cost.py [scenes, 20] [decoded pictures: a run folder of ttd/generate.py]

Scenes are of a seed that no training saw, in the look of the study. The dense grid asks the network at every point of
the same 65^3 lattice. F-score at 0.05 against the true solids, 4,096 points each. Refusals are counted on the same
scenes in both looks, as they are and spoilt; on decoded pictures, where a run is given; and on photographs, those that
scikit-image brings and, where it is there, the folder ``thingsplus-cc0-images`` of ``TTD_REAL_DATA``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage
import torch
import trimesh
from PIL import Image

from ttd.geometry.lifter import LiftRequest
from ttd.geometry.meshes import sample_points
from ttd.geometry.sdf_lifter import SDFLifter, SDFLifterConfig
from ttd.geometry.sdf_training import spoil
from ttd.geometry.surfaces import lattice, zero_level
from ttd.metrics.geometry import fscore
from ttd.seeding import torch_rng
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.scenes import mesh

ROOT = Path(__file__).resolve().parent.parent
N_POINTS = 4096
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)


def f_of(level: tuple[np.ndarray, np.ndarray] | None, true: np.ndarray) -> float:
    """F-score at 0.05 of a surface; 0 where there is none."""
    if level is None:
        return 0.0
    return fscore(sample_points(trimesh.Trimesh(*level, process=False), N_POINTS, seed=0), true, 0.05)


@torch.no_grad()
def grids(lifter: SDFLifter, pool: ScenePool) -> None:
    """Refined against dense, scene by scene."""
    k, rows = lifter.cells + 1, []
    for image, scene in zip(pool.images["study"], pool.scenes, strict=True):
        encoded = lifter.network.encode(image[None].float() / 255)
        true = sample_points(mesh(scene), N_POINTS, seed=1)
        start = time.process_time()
        field, n_asked = lifter.field(encoded)
        refined_s = time.process_time() - start
        start = time.process_time()
        dense = lifter.ask(encoded, lattice(k))[0].view(k, k, k).numpy()
        dense_s = time.process_time() - start
        f = [f_of(zero_level(values), true) for values in (field, dense)]
        rows.append((n_asked, refined_s, dense_s, *f, (field < 0).sum() - (dense < 0).sum()))
    n, refined_s, dense_s, f_refined, f_dense, _ = np.mean(rows, axis=0)
    differ = sum(bool(row[-1]) for row in rows)
    fewest = k**3 / max(row[0] for row in rows)
    print(f"grid scenes {len(rows)} points {k**3} asked_mean {n:.0f} fewer {k**3 / n:.2f}x at_least {fewest:.2f}x")
    print(f"grid fscore@0.05 refined {f_refined:.4f} dense {f_dense:.4f} scenes_with_other_insides {differ}")
    print(f"grid cpu_s refined {refined_s:.3f} dense {dense_s:.3f}")


def refusals(lifter: SDFLifter, name: str, images: Sequence[np.ndarray]) -> None:
    """How many pictures uint8 [S, S, 3] are refused, and how far they are."""
    results = lifter.lift([LiftRequest(str(i), image) for i, image in enumerate(images)])
    far = [r.facts["domain_distance"] for r in results]
    refused = sum(r.status == "refused" for r in results)
    print(f"domain {name} refused {refused}/{len(results)} distance {min(far):.2f} to {max(far):.2f} (limit 1)")


def square(path: Path) -> np.ndarray:
    """The middle of a picture file, uint8 [S, S, 3]."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((256, 256)))


def main(n_scenes: int = 20, run: Path | None = None) -> None:
    """Print one line per figure."""
    logging.disable(logging.WARNING)
    lifter = SDFLifter.prepare(SDFLifterConfig(weights=ROOT / "weights" / "tiny" / "lifter"))
    pool = ScenePool(20, "lift-cost", n_scenes, lifter.network.config.image_size)
    grids(lifter, pool)
    seconds = []
    for image in pool.images["study"].permute(0, 2, 3, 1).numpy():
        start = time.process_time()
        (item,) = lifter.lift([LiftRequest("item", image)])
        seconds.append(time.process_time() - start)
    print(f"item cpu_s median {np.median(seconds):.3f} highest {max(seconds):.3f} memory_mb {item.peak_memory_mb}")
    lifter = SDFLifter(lifter.network, cells=16, domain=lifter.domain)  # who is refused does not depend on the grid
    for look, images in pool.images.items():
        refusals(lifter, look, list(images.permute(0, 2, 3, 1).numpy()))
        spoilt = (spoil(images.float() / 255, 1.0, torch_rng(20, look)) * 255).round().to(torch.uint8)
        refusals(lifter, f"{look}-spoilt", list(spoilt.permute(0, 2, 3, 1).numpy()))
    if run is not None:
        files = sorted(run.glob("items/*/picture.png"))
        refusals(lifter, "decoded", [square(p) for p in files if p.parent.name.count("_") == 1])
    folder = Path(skimage.__file__).parent / "data"
    refusals(lifter, "photographs-skimage", [square(folder / name) for name in PHOTOGRAPHS])
    things = Path(os.environ.get("TTD_REAL_DATA", "../shared/data")) / "thingsplus-cc0-images"
    if things.is_dir():
        refusals(lifter, "photographs-thingsplus", [square(path) for path in sorted(things.glob("*.jpg"))])


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, Path), sys.argv[1:], strict=False)))
