import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from ttd.baselines.leave_out import permuted_within, score_left_out

FLAT = FunctionTransformer(lambda x: x.reshape(len(x), -1))


class Witness(ClassifierMixin, BaseEstimator):
    """Says for every epoch whether one of its group (its first value) was trained on."""

    def fit(self, epochs, labels):
        self.classes_, self.seen_ = np.unique(labels), set(epochs[:, 0, 0])
        return self

    def decision_function(self, epochs):
        return np.array([1.0 if e[0, 0] in self.seen_ else -1.0 for e in epochs])

    def predict(self, epochs):
        return self.classes_[(self.decision_function(epochs) > 0).astype(int)]


def study(n_groups=6, n=20, shift=2.0, seed=0):
    """Two classes apart by ``shift`` in every group; the first channel's first sample is the group's number."""
    rng = np.random.default_rng(seed)
    groups, labels = np.repeat(np.arange(n_groups), n), np.tile(["a", "b"], n_groups * n // 2)
    epochs = rng.normal(size=(n_groups * n, 2, 3)) + shift * (labels == "b")[:, None, None]
    epochs[:, 0, 0] = groups
    return epochs, labels, groups.astype(str), np.arange(len(labels)).astype(str)


def score(estimator, grid, data, folds=None, inner_folds=3):
    kinds = {"folds": folds, "inner_folds": inner_folds, "metric": "accuracy", "seed": 0}
    return score_left_out(estimator, grid, *data, **kinds)


@pytest.mark.parametrize(("folds", "n_fits"), [(None, 6), (3, 3), (99, 6)])
def test_no_epoch_is_scored_by_a_classifier_that_saw_its_group(folds, n_fits):
    scored = score(Witness(), {}, study(), folds=folds)
    assert (scored.scores == -1).all()
    assert len(scored.chosen) == n_fits


def test_classes_that_lie_apart_are_read_and_equal_ones_are_not():
    read, nothing = (score(make_pipeline(FLAT, LogisticRegression()), {}, study(shift=s)) for s in (2.0, 0.0))
    assert (read.predicted == read.labels).mean() > 0.9
    assert (nothing.predicted == nothing.labels).mean() == pytest.approx(0.5, abs=0.15)


def test_a_choice_is_made_inside_the_training_groups_and_takes_the_better_candidate():
    pipeline = make_pipeline(FLAT, LogisticRegression())
    scored = score(pipeline, {"logisticregression__C": [1e-9, 1.0]}, study(n=30))
    assert (scored.predicted == scored.labels).mean() > 0.9
    assert set(scored.chosen) <= {0, 1}


def test_a_choice_on_a_single_training_group_is_refused():
    with pytest.raises(ValueError, match="leaves nothing to choose on"):
        score(make_pipeline(FLAT, LogisticRegression()), {"logisticregression__C": [1, 2]}, study(n_groups=2))


def test_one_group_alone_is_refused():
    with pytest.raises(ValueError, match="needs at least two"):
        score(Witness(), {}, study(n_groups=1))


def test_permuted_labels_stay_within_their_group_and_change_with_the_draw():
    _, labels, groups, _ = study(n=10)
    labels = np.where(groups == "0", "c", labels)
    first, second = (permuted_within(labels, groups, seed=0, draw=d) for d in (0, 1))
    for group in np.unique(groups):
        assert sorted(first[groups == group]) == sorted(labels[groups == group])
    assert (first != labels).any()
    assert (first != second).any()
