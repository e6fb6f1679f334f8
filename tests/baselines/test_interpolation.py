import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ttd.baselines.interpolation import autocovariance, predict_linear, predict_mean, predict_wiener, predict_zero
from ttd.encoders.masking import MaskingConfig, temporal_mask
from ttd.objectives.masked_reconstruction import masked_mse

REAL = Path(os.environ.get("TTD_REAL_DATA", "../shared/data")) / "eegmmidb" / "S001"


def hide(n_times: int, *spans: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(1, n_times, dtype=torch.bool)
    for start, stop in spans:
        mask[:, start:stop] = True
    return mask


def test_a_straight_line_is_interpolated_exactly():
    eeg = torch.stack([torch.arange(20.0), 5 - 2 * torch.arange(20.0)])[None]  # [1, 2, 20]
    mask = hide(20, (3, 7), (10, 15))
    assert torch.allclose(predict_linear(eeg, mask), eeg, atol=1e-5)


def test_beyond_the_visible_part_the_nearest_value_is_held():
    eeg = torch.arange(10.0)[None, None]
    predicted = predict_linear(eeg, hide(10, (0, 3), (8, 10)))
    assert predicted[0, 0].tolist() == [3, 3, 3, 3, 4, 5, 6, 7, 7, 7]


def test_the_mean_is_that_of_the_visible_part():
    eeg = torch.tensor([[[1.0, 3.0, 99.0]]])
    assert predict_mean(eeg, hide(3, (2, 3)))[0, 0, 2] == 2.0


def test_a_window_that_is_hidden_whole_is_refused():
    with pytest.raises(ValueError, match="no visible sample"):
        predict_linear(torch.zeros(1, 1, 4), hide(4, (0, 4)))


def ar1(n: int, a: float = 0.9) -> torch.Tensor:
    """Windows [n, 2, 128] of two independent first-order autoregressions of variance 1."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, 128, generator=g)
    for t in range(1, 128):
        x[..., t] = a * x[..., t - 1] + (1 - a**2) ** 0.5 * x[..., t]
    return x


def test_the_autocovariance_of_an_autoregression_decays_geometrically():
    lags = autocovariance(ar1(3000))[0]
    taper = 1 - torch.arange(4) / 128  # of the biased estimate
    assert torch.allclose(lags[:4], (0.9 ** torch.arange(4) * taper).double(), atol=0.02)


def test_wiener_reaches_the_error_known_for_an_autoregression():
    windows = ar1(400)
    mask = hide(128, (60, 64)).expand(len(windows), -1)
    wiener = masked_mse(predict_wiener(windows, mask, autocovariance(ar1(3000))), windows, mask)
    # of a Gaussian Markov chain, the variance inside a gap between known neighbours m samples apart:
    k, m = torch.arange(1, 5), 5
    known = ((1 - 0.81**k) * (1 - 0.81 ** (m - k)) / (1 - 0.81**m)).mean()
    assert wiener.item() == pytest.approx(known.item(), rel=0.08)
    assert wiener < masked_mse(predict_linear(windows, mask), windows, mask)


def windows_of(runs: list[int], step: int) -> list[np.ndarray]:
    """Windows [n, 64, 512] in µV of real recordings: 0.5-40 Hz, notch at 60 Hz, average reference, 128 Hz."""
    import mne

    out = []
    for run in runs:
        raw = mne.io.read_raw_edf(REAL / f"S001R{run:02d}.edf", preload=True, verbose="error").pick("eeg")
        raw.notch_filter(60, verbose="error").filter(0.5, 40, verbose="error")
        data = raw.set_eeg_reference("average", verbose="error").resample(128, verbose="error").get_data() * 1e6
        out.append(np.stack([data[:, i : i + 512] for i in range(0, data.shape[1] - 511, step)]))
    return out


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is absent; set TTD_REAL_DATA")
def test_the_figures_of_a_real_recording_are_reproduced():
    train = np.concatenate(windows_of([1, 2, 3, 7], 512))
    mean, std = train.mean((0, 2), keepdims=True), train.std((0, 2), keepdims=True)
    held_out = torch.from_numpy((windows_of([13], 256)[0] - mean) / std).float()
    assert len(held_out) == 61
    covariance = autocovariance(torch.from_numpy((train - mean) / std))
    expected = {
        4: (0.879, 0.882, 0.268),
        8: (0.891, 0.901, 0.416),
        16: (0.871, 0.891, 0.517),
        32: (0.896, 0.937, 0.716),
    }
    for span, figures in expected.items():
        errors = []
        for draw in range(4):  # one draw of the spans strays by 0.02
            mask = temporal_mask(MaskingConfig(span=span), 512, torch.arange(61) + 1000 * draw, seed=0)
            predictors = (predict_zero, predict_mean, predict_linear)
            errors.append([masked_mse(predict(held_out, mask), held_out, mask).item() for predict in predictors])
        assert np.mean(errors, axis=0) == pytest.approx(figures, abs=0.035), span  # theirs are of one draw
        assert np.mean(errors, axis=0)[2] == pytest.approx(figures[2], abs=0.02), span
    mask = temporal_mask(MaskingConfig(span=32), 512, torch.arange(61), seed=0)
    some = slice(0, 60, 3)
    wiener = masked_mse(predict_wiener(held_out[some], mask[some], covariance), held_out[some], mask[some])
    assert wiener.item() == pytest.approx(0.556, abs=0.03)
