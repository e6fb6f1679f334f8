"""Whole groups left out: every epoch is scored by a classifier that saw neither its group nor its label.

Settings are chosen inside the training groups, by leaving groups out once more (nested cross-validation: Varma & Simon,
2006, BMC Bioinformatics 7:91). Permutation control: labels shuffled within each group, then everything fitted again
(Ojala & Garriga, 2010, JMLR 11:1833).

Shapes: n epochs, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut

from ttd.baselines.classifiers import Grid
from ttd.seeding import key, numpy_rng


@dataclass(frozen=True)
class Scored:
    """Epochs as a classifier scored them.

    Attributes:
        scores: of the second class of two [n], or of each class [n, K].
        predicted, labels, groups, keys: [n].
        chosen: per fold, the place of the candidate that was chosen inside its training groups; 0 where there was one.
    """

    scores: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    keys: np.ndarray
    chosen: list[int]


def score_left_out(
    estimator: BaseEstimator,
    grid: Grid,
    epochs: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    keys: np.ndarray,
    *,
    folds: int | None,
    inner_folds: int,
    metric: str,
    seed: int,
) -> Scored:
    """Fit without each group, or each of ``folds`` sets of groups, and score what was left out.

    Args:
        grid: candidates; chosen by ``metric`` (a scorer of scikit-learn) over at most ``inner_folds`` sets of training
            groups. The fit is then repeated on all of them.

    Raises:
        ValueError: one group alone, or a choice with fewer than two training groups.
    """
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise ValueError(f"leaving groups out needs at least two, got {n_groups}")
    shuffled: dict[str, Any] = {"shuffle": True, "random_state": key(seed, "folds") % 2**32}
    outer = GroupKFold(folds, **shuffled) if folds is not None and folds < n_groups else LeaveOneGroupOut()
    scores: np.ndarray | None = None
    predicted = np.empty_like(labels)
    chosen: list[int] = []
    for train, test in outer.split(epochs, labels, groups):
        fitted, place = clone(estimator), 0
        if grid:
            n_inner = min(inner_folds, len(np.unique(groups[train])))
            if n_inner < 2:
                raise ValueError("one training group alone leaves nothing to choose on; give one value of each setting")
            inner = GroupKFold(n_inner, **shuffled)
            fitted = GridSearchCV(fitted, grid, scoring=metric, cv=inner, error_score="raise").fit(
                epochs[train], labels[train], groups=groups[train]
            )
            place = fitted.best_index_
        else:
            fitted.fit(epochs[train], labels[train])
        found = fitted.decision_function(epochs[test])
        scores = np.zeros((len(labels), *found.shape[1:])) if scores is None else scores
        scores[test], predicted[test] = found, fitted.predict(epochs[test])
        chosen.append(place)
    assert scores is not None
    return Scored(scores, predicted, labels, groups, keys, chosen)


def permuted_within(labels: np.ndarray, groups: np.ndarray, *, seed: int, draw: int) -> np.ndarray:
    """Labels [n] shuffled among the epochs of each group."""
    out, rng = labels.copy(), numpy_rng(seed, "permuted fit", draw)
    for group in np.unique(groups):
        mine = np.flatnonzero(groups == group)
        out[mine] = labels[rng.permutation(mine)]
    return out
