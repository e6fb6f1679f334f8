"""Two-way identification against a loop, at chance, and when perfect; naming against counting."""

import numpy as np
import pytest
from scipy.spatial.distance import correlation

from ttd.metrics.identification import (
    correlation_distance,
    correlation_matrix,
    named_right,
    two_way_identification,
)


def features(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 24))


def brute_force(reconstructed: np.ndarray, shown: np.ndarray) -> list[float]:
    out = []
    for j, feature in enumerate(reconstructed):
        r = [np.corrcoef(feature, other)[0, 1] for other in shown]
        out.append(sum(r[i] < r[j] for i in range(len(shown)) if i != j) / (len(shown) - 1))
    return out


def test_two_way_identification_equals_a_brute_force_loop():
    shown = features(30, 0)
    reconstructed = shown + 2 * features(30, 1)
    assert two_way_identification(correlation_matrix(reconstructed, shown)).tolist() == brute_force(
        reconstructed, shown
    )


def test_a_perfect_reconstruction_is_always_identified():
    x = features(20, 0)
    assert two_way_identification(correlation_matrix(3 * x + 1, x)).tolist() == [1.0] * 20


def test_unrelated_reconstructions_sit_at_chance():
    scores = two_way_identification(correlation_matrix(features(300, 0), features(300, 1)))
    assert scores.mean() == pytest.approx(0.5, abs=0.05)


def test_own_says_which_candidate_belongs_to_a_row():
    x = features(5, 0)
    similarity = correlation_matrix(x[[4, 4, 0]], x)
    assert two_way_identification(similarity, np.array([4, 4, 0])).tolist() == [1.0, 1.0, 1.0]
    assert two_way_identification(similarity, np.array([0, 1, 4])).max() < 1


def test_a_single_picture_is_refused():
    with pytest.raises(ValueError, match="need at least 2 candidates, got 1"):
        two_way_identification(np.ones((1, 1)))
    with pytest.raises(ValueError, match="own must name one of 5"):
        two_way_identification(np.ones((2, 5)), np.array([0, 5]))
    with pytest.raises(ValueError, match="features must be"):
        correlation_matrix(np.ones((2, 3)), np.ones((2, 4)))


def test_naming_counts_equal_words():
    assert named_right(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])).tolist() == [1, 1, 0, 1]


def test_the_correlation_distance_is_that_of_scipy():
    x, y = features(12, 0), features(12, 1) + 0.5 * features(12, 0)
    expected = [correlation(a, b) for a, b in zip(x, y, strict=True)]
    assert correlation_distance(x, y) == pytest.approx(expected)


def test_the_correlation_distance_is_zero_when_perfect_and_one_between_unrelated_features():
    x = features(200, 0)
    assert correlation_distance(2 * x + 1, x) == pytest.approx(0, abs=1e-12)
    assert correlation_distance(-x, x) == pytest.approx(2)
    assert correlation_distance(features(200, 1), x).mean() == pytest.approx(1, abs=0.05)
    assert correlation_distance(np.ones((1, 24)), x[:1]).tolist() == [1.0]
    with pytest.raises(ValueError, match=r"features must both be \[N, F\]"):
        correlation_distance(x, x[:5])
