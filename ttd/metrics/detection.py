"""Telling two classes of epochs apart: the area under the ROC curve, its interval, and its permuted-label control.

The AUC is the probability that a random positive epoch scores above a random negative one (Hanley & McNeil, 1982, Radiology
143:29); chance is 0.5.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from ttd.seeding import numpy_rng

CHANCE = 0.5


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of scores [n] for labels [n] in {0, 1}; chance 0.5.

    Raises:
        ValueError: one class is absent.
    """
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise ValueError(f"labels must be 0 and 1, both present, got {sorted(set(np.asarray(labels).tolist()))}")
    return float(roc_auc_score(labels, scores))


def auc_draws(scores: np.ndarray, labels: np.ndarray, *, seed: int, n_resamples: int = 1000) -> np.ndarray:
    """AUCs [n_resamples] of epochs drawn again with replacement, each class by itself (so no draw lacks one)."""
    classes = [np.flatnonzero(labels == c) for c in (0, 1)]
    rng = numpy_rng(seed, "auc")
    out = np.empty(n_resamples)
    for i in range(n_resamples):
        rows = np.concatenate([rng.choice(c, len(c)) for c in classes])
        out[i] = roc_auc_score(labels[rows], scores[rows])
    return out


def permuted_aucs(scores: np.ndarray, labels: np.ndarray, *, seed: int, n_draws: int = 1000) -> np.ndarray:
    """AUCs [n_draws] of the same scores against permuted labels: the control, which must lie round 0.5."""
    rng = numpy_rng(seed, "permuted labels")
    return np.array([roc_auc_score(rng.permutation(labels), scores) for _ in range(n_draws)])
