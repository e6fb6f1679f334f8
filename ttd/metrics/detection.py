"""Telling classes of epochs apart: the AUC of two, the accuracy of several, their intervals and permuted-label controls.

The AUC is the probability that a random positive epoch scores above a random negative one (Hanley & McNeil, 1982, Radiology
143:29); chance is 0.5. The accuracy is the share of epochs named rightly; chance is the share of the largest class.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest, rankdata
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
    negative, positive = (scores[labels == c] for c in (0, 1))
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)  # [P, N]
    rng = numpy_rng(seed, "auc")
    counts = [rng.multinomial(len(c), np.full(len(c), 1 / len(c)), size=n_resamples) for c in (positive, negative)]
    return np.einsum("rp,rp->r", counts[0], counts[1] @ wins.T) / wins.size


def permuted_aucs(scores: np.ndarray, labels: np.ndarray, *, seed: int, n_draws: int = 1000) -> np.ndarray:
    """AUCs [n_draws] of the same scores against permuted labels: the control, which must lie round 0.5."""
    rng, n_positive = numpy_rng(seed, "permuted labels"), int(labels.sum())
    ranks = rankdata(scores)  # the sum of the positives' ranks gives the AUC (Mann & Whitney, 1947)
    sums = np.array([ranks[rng.permutation(len(ranks))[:n_positive]].sum() for _ in range(n_draws)])
    return (sums - n_positive * (n_positive + 1) / 2) / (n_positive * (len(ranks) - n_positive))


def accuracy_interval(correct: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of the share of right epochs [n], also where all are (Clopper & Pearson, 1934)."""
    found = binomtest(int(correct.sum()), len(correct)).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def permuted_accuracies(predicted: np.ndarray, labels: np.ndarray, *, seed: int, n_draws: int = 1000) -> np.ndarray:
    """Accuracies [n_draws] of the same predictions [n] against permuted labels [n]."""
    rng = numpy_rng(seed, "permuted labels")
    return np.array([(predicted == rng.permutation(labels)).mean() for _ in range(n_draws)])


def largest_share(labels: np.ndarray) -> float:
    """The accuracy of always naming the most frequent class."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))
