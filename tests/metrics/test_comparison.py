import numpy as np
import pytest

from ttd.metrics.comparison import difference, figure, joined
from ttd.metrics.uncertainty import bootstrap_interval

DRAWN = {"seed": 0, "n_resamples": 500}


def test_a_figure_is_the_mean_over_seeds_with_their_standard_deviation_and_the_interval_of_their_average():
    tables = [np.random.default_rng(seed).random((3, 40)) for seed in range(3)]
    found = figure(tables, **DRAWN)
    assert found.value == pytest.approx(np.mean(tables))
    assert found.sd == pytest.approx(np.std([t.mean() for t in tables], ddof=1))
    assert (found.low, found.high) == bootstrap_interval(np.mean(tables, axis=0), seed=0, n_resamples=500)
    assert figure(tables[:1], **DRAWN).sd is None


def test_a_small_difference_on_pictures_of_very_different_difficulty_is_seen():
    rng = np.random.default_rng(0)
    hard = rng.random((2, 200))
    first, second = [hard + 0.02 + 0.01 * rng.standard_normal((2, 200)) for _ in range(3)], [hard]
    found = difference(first, second, **DRAWN)
    assert found.value == pytest.approx(0.02, abs=0.003)
    assert found.excludes_zero
    a, b = figure(first, **DRAWN), figure(second, **DRAWN)
    assert a.low < b.high  # though the two intervals overlap by far


def test_no_difference_has_an_interval_around_zero_in_95_of_100_studies():
    wrong = 0
    for study in range(60):
        rng = np.random.default_rng(study)
        a, b = ([rng.random((2, 80)) for _ in range(2)] for _ in range(2))
        wrong += difference(a, b, seed=study, n_resamples=200).excludes_zero
    assert wrong / 60 <= 0.15


def test_subjects_scored_by_their_own_models_make_one_table_and_none_counts_twice():
    a, b = np.full((2, 3), np.nan), np.full((2, 3), np.nan)
    a[0], b[1] = 1, [2, 3, 4]
    assert joined([a, b]).tolist() == [[1, 1, 1], [2, 3, 4]]
    assert figure([joined([a])], **DRAWN).value == 1  # a subject without any score is no subject
    with pytest.raises(AssertionError, match="same subject"):
        joined([a, a])
