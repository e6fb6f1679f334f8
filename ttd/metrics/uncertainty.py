"""How sure a figure is: intervals by bootstrap over pictures, and controls in which every pair is wrong.

The picture is the unit that is drawn again (Efron & Tibshirani, 1993, chapter 13: percentile interval): several
subjects, repetitions or draws of the same picture are not independent and move together.

Shapes: S subjects, N pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ttd.seeding import numpy_rng


def bootstrap_interval(
    values: np.ndarray,
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` [N] or [S, N], pictures (last axis) drawn with replacement.

    Subjects are fixed: the mean over subjects of their means, so the interval speaks about other pictures, not other
    people. NaN marks a picture that a subject did not see. ``groups`` [N], the concept of each picture, draws whole concepts
    instead (the cluster bootstrap of Davison & Hinkley, 1997, section 3.8): the interval then speaks about other concepts.

    Raises:
        ValueError: fewer than 2 pictures or groups.
    """
    table = np.atleast_2d(np.asarray(values, np.float64))
    group = np.arange(table.shape[1]) if groups is None else np.unique(groups, return_inverse=True)[1]
    n = group.max(initial=-1) + 1
    if n < 2:
        raise ValueError(f"need at least 2 pictures for an interval, got {n}")
    rng = numpy_rng(seed, "bootstrap", n)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)  # how often each group
    counts = drawn[:, group]  # and so each picture
    seen = np.isfinite(table)
    totals = counts @ np.where(seen, table, 0.0).T  # [resamples, S]
    with np.errstate(invalid="ignore"):
        means = np.nanmean(totals / (counts @ seen.T), axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def grand_mean(values: np.ndarray) -> float:
    """Mean over subjects of each subject's mean over its pictures, from [N] or [S, N] with NaN for unseen pictures."""
    return float(np.nanmean(np.atleast_2d(values), axis=1).mean())


def derangement(n: int, *, seed: int, draw: int = 0) -> np.ndarray:
    """A permutation [n] without a fixed point: pictures are set in a random circle and each gets the next one.

    Raises:
        ValueError: n < 2 has none.
    """
    if n < 2:
        raise ValueError(f"need at least 2 pictures to pair wrongly, got {n}")
    order = numpy_rng(seed, "derangement", draw, n).permutation(n)
    wrong = np.empty(n, int)
    wrong[order] = np.roll(order, -1)
    return wrong


def repaired(own: np.ndarray, *, seed: int, draw: int = 0) -> np.ndarray:
    """``own`` [N] (a picture's number per row) with every picture exchanged for another one of the same set."""
    pictures, place = np.unique(own, return_inverse=True)
    return pictures[derangement(len(pictures), seed=seed, draw=draw)][place]


def shuffled_control(
    score: Callable[[np.ndarray], np.ndarray], own: np.ndarray, *, seed: int, n_draws: int = 5
) -> np.ndarray:
    """The score [N] of each row when paired with a wrong picture, mean over ``n_draws`` re-pairings.

    One shuffle is not enough: with 200 pictures a single one strays by half of a 2 % chance level (measured).
    """
    return np.mean([score(repaired(own, seed=seed, draw=d)) for d in range(n_draws)], axis=0)
