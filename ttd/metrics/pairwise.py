"""The scores of DreamDiffusion: pair-wise success of a picture metric, and n-way top-k by a classifier.

Bai et al., 2024, arXiv:2306.16934, code/eval_metrics.py (from MinD-Vis: Chen et al., 2023, arXiv:2211.06956). There mse, pcc,
ssim and psm (LPIPS) are never printed raw: what is printed is how often the metric prefers a reconstruction's own picture.

Shapes: N reconstructions, M shown pictures, K outputs of a classifier, S samples made for each picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from ttd.metrics.identification import two_way_identification
from ttd.seeding import numpy_rng

PAIRWISE_CHANCE = 0.5
N_WAY, N_DRAWS = 50, 50
"""Of DreamDiffusion's ``get_eval_metric``: n_way=50, num_trials=50, top_k=1."""


def every_pair(
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray], reconstructed: np.ndarray, shown: np.ndarray
) -> np.ndarray:
    """A per-picture metric of every reconstruction [N, ...] with every shown picture [M, ...]: [N, M]."""
    return np.stack([metric(reconstructed, np.broadcast_to(x, reconstructed.shape)) for x in shown], axis=1)


def pairwise_score(
    values: np.ndarray, own: np.ndarray | None = None, *, direction: Literal["higher", "lower"]
) -> np.ndarray:
    """Fraction of the *other* shown pictures for which a metric is worse than for the own one, [N] in [0, 1].

    Higher is better whatever the metric's direction; chance is 0.5; ties count against.

    Args:
        values: the metric of each reconstruction with each shown picture [N, M] (``every_pair``).
        own: column [N] of the own picture; the diagonal when not given.
        direction: of the metric: "higher" for pcc and ssim, "lower" for mse and LPIPS.

    Raises:
        ValueError: fewer than 2 pictures, ``own`` points outside, or the direction is neither.
    """
    if direction not in ("higher", "lower"):
        raise ValueError(f"direction must be 'higher' or 'lower', got {direction!r}")
    return two_way_identification(values if direction == "higher" else -values, own)


def n_way_top_k(
    logits: np.ndarray, true_class: np.ndarray, *, seed: int, ways: int = N_WAY, k: int = 1, n_draws: int = N_DRAWS
) -> np.ndarray:
    """Share of draws in which the true class is among the k largest of itself and ways - 1 random other outputs, [N].

    Higher is better; chance is ``k / ways``, 1/50 as published. The classifier is ViT-H/14 there, and the class is what
    it sees in the shown picture, right or wrong: its argmax. Of each draw only the number of distractors above the true
    class counts. That number is hypergeometric, so it is drawn instead of the set: the figure has the same distribution.
    An output as large as that of the true class counts as above it.

    Args:
        logits: the classifier's outputs for the reconstructions [N, K].
        true_class: argmax of its outputs for the picture each belongs to [N].
        seed: of the draws, together with the row.

    Raises:
        ValueError: shapes that do not fit, a class or a number of ways outside, outputs that are not finite.
    """
    logits, true_class = np.asarray(logits), np.asarray(true_class)
    if logits.ndim != 2 or true_class.shape != logits.shape[:1]:
        raise ValueError(f"need logits [N, K] and classes [N], got {logits.shape} and {true_class.shape}")
    n, outputs = logits.shape
    if not 1 <= k < ways <= outputs:
        raise ValueError(f"need 1 <= k < ways <= {outputs} outputs, got k={k}, ways={ways}")
    if not np.isfinite(logits).all():
        raise ValueError("logits are not all finite")
    if true_class.min(initial=0) < 0 or true_class.max(initial=0) >= outputs:
        raise ValueError(f"true_class must lie in 0..{outputs - 1}")
    above = (logits >= logits[np.arange(n), true_class][:, None]).sum(1) - 1  # [N]
    drawn = (
        numpy_rng(seed, "n-way", i).hypergeometric(a, outputs - 1 - a, ways - 1, size=n_draws)
        for i, a in enumerate(above)
    )
    return np.array([(d < k).mean() for d in drawn])


def over_samples(scores: np.ndarray) -> tuple[float, float]:
    """Mean over everything, and DreamDiffusion's "top-1-class (max)", of scores [M, S] of S samples per picture.

    The maximum is that of the S means over pictures, one for each sample number, as published: not the best sample of each
    picture, which would be larger. It lies above chance by selection alone, so it is printed only beside the mean and the
    maximum of its control.
    """
    return float(scores.mean()), float(scores.mean(axis=0).max())
