"""How well a describer does on scenes that it was not trained on, beside the control in which every pair is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ttd.geometry.describer import Described, Describer
from ttd.geometry.sdf_training import spoil
from ttd.metrics.description import mean_scores
from ttd.metrics.uncertainty import derangement
from ttd.seeding import key, torch_rng
from ttd.simulation.describer_training import DescriberPool

BATCH = 50  # pictures written about at once


def held_out_figures(
    constrained: Describer,
    free: Describer,
    pool: DescriberPool,
    *,
    seed: int,
    round_trip: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Mean figures of ``ttd.metrics.description.score_description`` by row.

    Rows: every look as it is; ``round_trip`` is the look ``study`` through an autoencoder and back, where one is given;
    ``spoilt`` is ``study`` spoilt as in training, the autoencoder included; ``free`` writes about ``study``
    without the grammar, and its ``agreement`` is the share of texts that are the same as with it; ``shuffled`` scores the
    descriptions of ``study`` against those of other scenes. ``problems`` is the share of descriptions that contradict
    themselves.
    """
    images = {name: some.float() / 255 for name, some in pool.images.items()}
    if round_trip is not None:
        images["round_trip"] = round_trip(images["study"])
    images["spoilt"] = spoil(images["study"], 1.0, torch_rng(seed, "spoilt"), round_trip)
    pictures = {n: (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for n, x in images.items()}
    answers = {name: _describe(constrained, images, seed) for name, images in pictures.items()}
    answers["free"] = _describe(free, pictures["study"], seed)
    figures = {}
    for name, described in answers.items():
        figures[name] = mean_scores([d.description for d in described], pool.descriptions)
        figures[name]["problems"] = float(np.mean([bool(d.problems) for d in described]))
    same = [a.raw == b.raw for a, b in zip(answers["study"], answers["free"], strict=True)]
    figures["free"]["agreement"] = float(np.mean(same))
    wrong = [pool.descriptions[j] for j in derangement(len(pool.descriptions), seed=seed)]
    figures["shuffled"] = mean_scores([d.description for d in answers["study"]], wrong)
    return {row: {name: round(value, 4) for name, value in named.items()} for row, named in figures.items()}


def _describe(describer: Describer, images: np.ndarray, seed: int) -> list[Described]:
    """All pictures uint8 [N, S, S, 3], in batches."""
    answers: list[Described] = []
    for start in range(0, len(images), BATCH):
        batch = list(images[start : start + BATCH])
        answers += describer.describe(batch, seeds=[key(seed, "describe", start + i) for i in range(len(batch))])
    return answers
