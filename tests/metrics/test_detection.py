import numpy as np
import pytest

from ttd.metrics.detection import (
    accuracy_interval,
    auc,
    auc_draws,
    largest_share,
    permuted_accuracies,
    permuted_aucs,
)


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    labels, scores = np.repeat([0, 1], [30, 10]), rng.normal(size=40)
    pairs = [scores[i] > scores[j] for i in np.flatnonzero(labels == 1) for j in np.flatnonzero(labels == 0)]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_perfect_scores_read_one_and_their_permuted_control_a_half():
    labels = np.repeat([0, 1], [100, 20])
    scores = labels + 0.0
    assert auc(scores, labels) == 1
    assert auc_draws(scores, labels, seed=0, n_resamples=20).min() == 1
    assert permuted_aucs(scores, labels, seed=0).mean() == pytest.approx(0.5, abs=0.01)


def test_the_interval_covers_the_truth_of_two_shifted_normals():
    rng, inside = np.random.default_rng(1), 0
    for i in range(40):  # AUC of N(1, 1) against N(0, 1) is Φ(1/√2) = 0.760
        labels = np.repeat([0, 1], 60)
        draws = auc_draws(rng.normal(size=120) + labels, labels, seed=i, n_resamples=200)
        inside += np.quantile(draws, 0.025) <= 0.760 <= np.quantile(draws, 0.975)
    assert inside >= 33


def test_one_class_alone_is_refused():
    with pytest.raises(ValueError, match="both present"):
        auc(np.zeros(3), np.ones(3))


def test_an_accuracy_of_one_still_has_an_interval():
    low, high = accuracy_interval(np.ones(28, bool))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 28)), 1.0)  # Clopper & Pearson in closed form


def test_permuted_labels_name_five_equal_classes_at_a_fifth():
    labels = np.repeat(list("abcde"), 20)
    assert permuted_accuracies(labels, labels, seed=0).mean() == pytest.approx(0.2, abs=0.01)
    assert largest_share(labels) == 0.2
