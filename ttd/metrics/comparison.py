"""Comparing models that were fitted several times: means over seeds, and differences picture by picture.

Scores of one model are tables [S, M], one per seed, NaN where a subject did not see a picture. The interval of a figure is
a bootstrap over pictures of the scores averaged over seeds (``uncertainty.bootstrap_interval``); seeds show beside it as
the standard deviation of their means. A difference is taken subject by subject and picture by picture first: two models
find the same pictures hard, so that its interval is far narrower than those of the two figures.

Shapes: S subjects, M pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttd.metrics.uncertainty import bootstrap_interval, grand_mean


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, subjects and pictures with its 95 % interval; ``sd`` over the means of the seeds, None of one."""

    value: float
    low: float
    high: float
    sd: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One table [S, M] of tables whose filled places are different ones (each subject scored by its own model)."""
    out = np.full(parts[0].shape, np.nan)
    for part in parts:
        filled = np.isfinite(part)
        assert not (filled & np.isfinite(out)).any(), "two parts score the same subject and picture"
        out[filled] = part[filled]
    return out


def figure(tables: Sequence[np.ndarray], *, seed: int, n_resamples: int) -> Figure:
    """The figure of a model from one table [S, M] per seed."""
    means = [grand_mean(_seen(table)) for table in tables]
    average = _seen(np.mean(tables, axis=0))
    low, high = bootstrap_interval(average, seed=seed, n_resamples=n_resamples)
    return Figure(grand_mean(average), low, high, float(np.std(means, ddof=1)) if len(means) > 1 else None)


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, seed: int, n_resamples: int) -> Figure:
    """First model minus second, each averaged over its own seeds first, on the pictures that both scored."""
    return figure([np.mean(first, axis=0) - np.mean(second, axis=0)], seed=seed, n_resamples=n_resamples)


def _seen(table: np.ndarray) -> np.ndarray:
    """Without subjects who have no score at all."""
    return table[np.isfinite(table).any(axis=1)]
