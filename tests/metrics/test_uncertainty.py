"""Intervals cover as often as they promise; controls have no right pair."""

import numpy as np
import pytest

from ttd.metrics.uncertainty import bootstrap_interval, derangement, grand_mean, repaired, shuffled_control


def test_the_interval_of_a_bernoulli_covers_its_probability_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(250):
        low, high = bootstrap_interval(rng.random(200) < 0.3, seed=trial, n_resamples=500)
        covered += low <= 0.3 <= high
    assert covered / 250 == pytest.approx(0.95, abs=0.035)


def test_the_width_is_that_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, seed=0)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


def test_pictures_move_together_over_subjects():
    one = np.random.default_rng(0).normal(size=100)
    assert bootstrap_interval(np.stack([one] * 5), seed=0) == pytest.approx(bootstrap_interval(one, seed=0))


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_subjects_count_alike_however_many_pictures_they_saw():
    assert grand_mean(np.array([[1.0, 1.0, 1.0], [0.0, np.nan, np.nan]])) == 0.5
    low, high = bootstrap_interval(np.array([[1.0] * 9, [0.0] * 8 + [np.nan]]), seed=0)
    assert low == high == 0.5


def test_no_picture_keeps_its_place_in_a_derangement():
    for draw in range(20):
        wrong = derangement(7, seed=0, draw=draw)
        assert sorted(wrong) == list(range(7))
        assert (wrong != np.arange(7)).all()


def test_repeats_of_a_picture_are_never_paired_with_it():
    own = np.array([3, 3, 5, 8, 5])
    for draw in range(20):
        wrong = repaired(own, seed=0, draw=draw)
        assert (wrong != own).all()
        assert set(wrong) == {3, 5, 8}


def test_the_control_of_a_perfect_match_is_zero():
    own = np.arange(10)
    assert shuffled_control(lambda pairing: pairing == own, own, seed=0).tolist() == [0.0] * 10


def test_a_single_picture_is_refused():
    with pytest.raises(ValueError, match="need at least 2 pictures"):
        bootstrap_interval(np.ones(1), seed=0)
    with pytest.raises(ValueError, match="need at least 2 pictures"):
        derangement(1, seed=0)
