"""How well a lifter does on scenes that it was not trained on, beside the control in which every pair is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import trimesh
from torch import Tensor

from ttd.geometry.lifter import Lifter, LiftRequest
from ttd.geometry.meshes import sample_points, to_trimesh
from ttd.geometry.sdf_training import spoil
from ttd.metrics.geometry import score_surfaces
from ttd.metrics.uncertainty import derangement
from ttd.metrics.volume import mesh_iou
from ttd.seeding import key, torch_rng
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.scenes import mesh


def held_out_figures(
    lifter: Lifter,
    pool: ScenePool,
    *,
    seed: int,
    n_points: int = 4096,
    round_trip: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Mean figures of ``ttd.metrics.geometry.score_surfaces``, and the IoU of volumes, by row.

    Rows: every look as it is; ``round_trip`` is the look ``study`` through an autoencoder and back, where one is given;
    ``spoilt`` is ``study`` spoilt as in training, the autoencoder included; ``shuffled`` scores the same surfaces as
    ``study`` against the true surface of another scene.
    """
    solids = [mesh(scene) for scene in pool.scenes]
    pictures = {name: images.float() / 255 for name, images in pool.images.items()}
    if round_trip is not None:
        pictures["round_trip"] = round_trip(pictures["study"])
    pictures["spoilt"] = spoil(pictures["study"], 1.0, torch_rng(seed, "spoilt"), round_trip)
    figures: dict[str, dict[str, float]] = {}
    for name, images in pictures.items():
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        results = lifter.lift([LiftRequest(str(i), image) for i, image in enumerate(pixels)])
        lifted = [to_trimesh(result) if result.surface else None for result in results]
        figures[name] = _means(lifted, solids, n_points, seed)
        figures[name]["empty"] = float(np.mean([body is None for body in lifted]))
        if name == "study":
            wrong = [solids[j] for j in derangement(len(solids), seed=seed)]
            shuffled = _means(lifted, wrong, n_points, seed)
    figures["shuffled"] = shuffled
    return {row: {name: round(value, 4) for name, value in named.items()} for row, named in figures.items()}


def _means(
    lifted: list[trimesh.Trimesh | None], true: list[trimesh.Trimesh], n_points: int, seed: int
) -> dict[str, float]:
    """Mean of each figure; distances over the surfaces that exist."""
    scores = []
    for i, (body, solid) in enumerate(zip(lifted, true, strict=True)):
        cloud = sample_points(body, n_points, seed=key(seed, "lifted", i)) if body is not None else None
        score = score_surfaces(cloud, sample_points(solid, n_points, seed=key(seed, "true", i)))
        scores.append(score | {"iou": mesh_iou(body, solid)})
    named = {name: [s[name] for s in scores if s[name] is not None] for name in scores[0]}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in named.items()}
