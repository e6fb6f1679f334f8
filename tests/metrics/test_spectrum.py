import pytest
import torch

from ttd.encoders.masking import MaskingConfig, temporal_mask
from ttd.metrics.spectrum import BANDS, band_scores, hidden_spans


@pytest.fixture
def noise():
    """White noise [40, 2, 512], and half of its time hidden in spans of 32 samples."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(40, 2, 512, generator=g), temporal_mask(MaskingConfig(), 512, torch.arange(40), seed=0)


def waves(frequency: float) -> torch.Tensor:
    phase = 6.28 * torch.rand(40, 2, 1, generator=torch.Generator().manual_seed(1))
    return torch.sin(2 * torch.pi * frequency * torch.arange(512) / 128 + phase)


def test_spans_lie_in_hidden_time_and_none_is_missed():
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, 3:8] = mask[1, :4] = mask[1, 11:20] = True
    window, samples = hidden_spans(mask, 4)
    assert window.tolist() == [0, 1, 1, 1]
    assert samples[:, 0].tolist() == [3, 0, 11, 15]
    assert bool(mask[window[:, None], samples].all())


def test_the_truth_itself_is_coherent_in_every_band(noise):
    eeg, mask = noise
    scores = band_scores(eeg, eeg, mask, sfreq=128, length=32)
    assert [(s.low, s.high) for s in scores] == list(BANDS)
    for score in scores:
        assert (score.coherence, score.power_ratio, score.explained) == pytest.approx((1, 1, 1))


def test_unrelated_noise_is_at_chance(noise):
    eeg, mask = noise
    other = torch.randn(eeg.shape, generator=torch.Generator().manual_seed(2))
    for score in band_scores(other, eeg, mask, sfreq=128, length=32):
        assert score.coherence < 0.02  # 640 spans
        assert score.power_ratio == pytest.approx(1, abs=0.15)
        assert score.explained == pytest.approx(-1, abs=0.2)


def test_half_the_amplitude_is_coherent_and_explains_three_quarters(noise):
    eeg, mask = noise
    for score in band_scores(0.5 * eeg, eeg, mask, sfreq=128, length=32):
        assert (score.coherence, score.power_ratio, score.explained) == pytest.approx((1, 0.25, 0.75))


def test_a_prediction_that_knows_the_alpha_wave_alone_is_coherent_there_alone(noise):
    _, mask = noise
    alpha, beta = waves(12), waves(24)
    by_band = {s.low: s for s in band_scores(alpha, alpha + beta, mask, sfreq=128, length=32)}
    assert by_band[8].explained > 0.99
    assert by_band[13].explained < 0.2  # the taper smears 12 Hz into the bin of 16


def test_electrodes_that_are_absent_do_not_count(noise):
    eeg, mask = noise
    spoilt = eeg.clone()
    spoilt[:, 1] = 100.0
    present = torch.tensor([True, False]).expand(40, 2)
    for score in band_scores(spoilt, eeg, mask, sfreq=128, length=32, present=present):
        assert score.explained == pytest.approx(1)


def test_only_hidden_time_counts(noise):
    eeg, mask = noise
    spoilt = torch.where(mask[:, None], eeg, 100.0)
    assert band_scores(spoilt, eeg, mask, sfreq=128, length=32)[2].explained == pytest.approx(1)


def test_spans_longer_than_any_hidden_stretch_are_refused(noise):
    eeg, mask = noise
    with pytest.raises(ValueError, match="no hidden stretch of 500 samples"):
        band_scores(eeg, eeg, mask, sfreq=128, length=500)
