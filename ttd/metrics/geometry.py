"""How near two surfaces are, from points sampled on each: Chamfer distances and the F-score.

Libraries disagree on what "Chamfer" is (squared or not, summed or averaged), so the convention stands in the name:
``cd_l1_mean`` and ``cd_l2sq_sum`` (Fan et al., 2017, arXiv:1612.00603). F-score: Tatarchenko et al., 2019,
arXiv:1905.03678. None of these has a closed chance level: it depends on how alike the shapes of a study are, so a score
stands beside the same score against the surface of *another* item.

Shapes: N points of the predicted surface, M points of the true one; coordinates in the frame of the scene, [-1, 1]^3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

THRESHOLDS = (0.02, 0.05, 0.1)
"""Distances at which the F-score is read, in scene units (the scene is 2 wide): 1 %, 2.5 % and 5 % of its width."""


def _nearest(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every predicted point to the nearest true one [N], and the reverse [M].

    Raises:
        ValueError: a cloud is empty, not [*, 3], or not finite.
    """
    for name, cloud in (("predicted", predicted), ("true", true)):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or len(cloud) == 0:
            raise ValueError(f"{name} must be points [N, 3] with N >= 1, got {cloud.shape}")
        if not np.isfinite(cloud).all():
            raise ValueError(f"{name} holds points that are not finite")
    to_true, _ = cKDTree(true).query(predicted)
    to_predicted, _ = cKDTree(predicted).query(true)
    return to_true, to_predicted


def cd_l1_mean(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean distance to the nearest point of the other cloud, averaged over both directions (scene units, 0 is best)."""
    to_true, to_predicted = _nearest(predicted, true)
    return float((to_true.mean() + to_predicted.mean()) / 2)


def cd_l2sq_sum(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean *squared* distance to the nearest point, *summed* over both directions (squared scene units, 0 is best)."""
    to_true, to_predicted = _nearest(predicted, true)
    return float((to_true**2).mean() + (to_predicted**2).mean())


def fscore(predicted: np.ndarray, true: np.ndarray, threshold: float) -> float:
    """Harmonic mean of precision (predicted points near the truth) and recall (true points found), in 0..1.

    Near means closer than ``threshold``, in scene units.

    Raises:
        ValueError: ``threshold`` is not positive.
    """
    if threshold <= 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    to_true, to_predicted = _nearest(predicted, true)
    return _harmonic((to_true < threshold).mean(), (to_predicted < threshold).mean())


def score_surfaces(predicted: np.ndarray | None, true: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> dict:
    """All figures of one pair by name, from one nearest-neighbour search.

    ``predicted=None`` is an empty surface: it finds nothing, so its F-scores are 0; a distance to nothing is not a
    number and is given as ``None`` (whoever averages says how many were left out).
    """
    if predicted is None:
        return {"cd_l1_mean": None, "cd_l2sq_sum": None} | {f"fscore@{t:g}": 0.0 for t in thresholds}
    to_true, to_predicted = _nearest(predicted, true)
    scores = {
        "cd_l1_mean": float((to_true.mean() + to_predicted.mean()) / 2),
        "cd_l2sq_sum": float((to_true**2).mean() + (to_predicted**2).mean()),
    }
    for threshold in thresholds:
        scores[f"fscore@{threshold:g}"] = _harmonic((to_true < threshold).mean(), (to_predicted < threshold).mean())
    return scores


def _harmonic(precision: float, recall: float) -> float:
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0
