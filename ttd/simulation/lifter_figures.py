"""How well a lifter does on scenes that it was not trained on, beside the control in which every pair is wrong."""

from __future__ import annotations

import numpy as np
import torch

from ttd.geometry.lifter import Lifter, LiftRequest
from ttd.geometry.meshes import sample_points, to_trimesh
from ttd.geometry.sdf_training import spoil
from ttd.metrics.geometry import score_surfaces
from ttd.metrics.uncertainty import derangement
from ttd.seeding import key, torch_rng
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.scenes import mesh


def held_out_figures(
    lifter: Lifter, pool: ScenePool, *, seed: int, n_points: int = 4096
) -> dict[str, dict[str, float]]:
    """Mean figures of ``ttd.metrics.geometry.score_surfaces`` by row.

    Rows: every look as it is; ``spoilt`` is the look ``study`` spoilt as in training; ``shuffled`` scores the same
    surfaces as ``study`` against the true surface of another scene.
    """
    true = [sample_points(mesh(s), n_points, seed=key(seed, "true", i)) for i, s in enumerate(pool.scenes)]
    pictures = {name: images.permute(0, 2, 3, 1).numpy() for name, images in pool.images.items()}
    spoilt = spoil(pool.images["study"].float() / 255, 1.0, torch_rng(seed, "spoilt"))
    pictures["spoilt"] = (spoilt * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    figures, lifted = {}, {}
    for name, images in pictures.items():
        results = lifter.lift([LiftRequest(str(i), image) for i, image in enumerate(images)])
        lifted[name] = [
            sample_points(to_trimesh(r), n_points, seed=key(seed, "lifted", i)) if r.surface else None
            for i, r in enumerate(results)
        ]
        figures[name] = _means(lifted[name], true)
        figures[name]["empty"] = float(np.mean([r.surface is None for r in results]))
    figures["shuffled"] = _means(lifted["study"], [true[j] for j in derangement(len(true), seed=seed)])
    return {row: {name: round(value, 4) for name, value in named.items()} for row, named in figures.items()}


def _means(lifted: list[np.ndarray | None], true: list[np.ndarray]) -> dict[str, float]:
    """Mean of each figure; distances over the surfaces that exist."""
    scores = [score_surfaces(a, b) for a, b in zip(lifted, true, strict=True)]
    named = {name: [s[name] for s in scores if s[name] is not None] for name in scores[0]}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in named.items()}
