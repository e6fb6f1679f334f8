import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline

from ttd.baselines.classifiers import BandPowerConfig, LDAConfig, RidgeConfig, build_baseline
from ttd.baselines.features import BandPower, TimeBins

SFREQ, TMIN = 128.0, -0.1


def epochs_with_p300(n: int, height: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = TMIN + np.arange(116) / SFREQ
    labels = (rng.uniform(size=n) < 0.2).astype(int)
    noise = np.cumsum(rng.standard_normal((n, 4, len(t))), axis=-1)
    return noise + height * labels[:, None, None] * np.exp(-0.5 * ((t - 0.35) / 0.08) ** 2), labels


def lda() -> Pipeline:
    return build_baseline(LDAConfig(), sfreq=SFREQ, tmin=TMIN)[0]


def test_a_p300_is_found_in_unseen_epochs_by_lda():
    unseen, truth = epochs_with_p300(600, 4.0, seed=1)
    assert roc_auc_score(truth, lda().fit(*epochs_with_p300(600, 4.0, seed=0)).decision_function(unseen)) > 0.8


def test_without_a_response_lda_is_at_chance():
    unseen, truth = epochs_with_p300(600, 0.0, seed=1)
    auc = roc_auc_score(truth, lda().fit(*epochs_with_p300(600, 0.0, seed=0)).decision_function(unseen))
    assert auc == pytest.approx(0.5, abs=0.08)


def test_lda_reads_the_same_whatever_the_unit_of_a_channel():
    epochs, labels = epochs_with_p300(200, 4.0, seed=0)
    unit = np.array([1.0, 1000.0, 0.01, 3.0])[:, None]
    scores = lda().fit(epochs, labels).decision_function(epochs)
    assert np.allclose(lda().fit(epochs * unit, labels).decision_function(epochs * unit), scores, atol=1e-6)


def test_bins_cover_the_span_and_no_more():
    ramp = np.arange(116.0)[None, None].repeat(2, axis=1)  # sample number as value
    bins = TimeBins(sfreq=100.0, tmin=-0.1, width_s=0.05, start=0.0, stop=0.2).transform(ramp)
    assert bins.tolist() == [[12.0, 17.0, 22.0, 27.0] * 2]


def test_a_sine_has_its_power_in_its_own_band():
    t = np.arange(256) / 128
    epochs = np.sin(2 * np.pi * 10 * t)[None, None]
    theta, alpha, beta = BandPower(sfreq=128.0, bands=((4, 8), (8, 13), (13, 30))).transform(epochs)[0]
    assert alpha > theta + 2
    assert alpha > beta + 2


def test_a_band_between_two_frequencies_is_refused():
    with pytest.raises(ValueError, match="holds no frequency"):
        BandPower(sfreq=128.0, bands=((8.2, 8.6),)).transform(np.zeros((1, 1, 256)))


def test_one_value_is_set_and_several_are_left_to_be_chosen():
    one, nothing = build_baseline(RidgeConfig(penalties=(7.0,)), sfreq=SFREQ, tmin=TMIN)
    assert (one["ridgeclassifier"].alpha, nothing) == (7.0, {})
    _, grid = build_baseline(BandPowerConfig(strengths=(0.1, 1.0)), sfreq=SFREQ, tmin=TMIN)
    assert grid == {"logisticregression__C": [0.1, 1.0]}
