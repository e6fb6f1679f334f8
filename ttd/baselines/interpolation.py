"""Trivial predictors of hidden EEG: what masked pretraining must beat before it has learnt anything.

Zero (the mean of scaled data), the mean of the visible part, linear interpolation between the neighbouring visible
samples, and the best linear predictor of each channel from its own autocovariance (Wiener; Kolmogorov). The last is the
one to beat: it needs the training data's autocovariance and no network. Short spans are interpolation for everyone; at
long ones the straight line is worse than zero.

Shapes: B windows, C channels, T samples, V visible and H hidden samples; masks are True where hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


def predict_zero(eeg: Tensor, mask: Tensor) -> Tensor:
    """Zeros [B, C, T]; on scaled data the error is the hidden variance."""
    return torch.zeros_like(eeg)


def predict_mean(eeg: Tensor, mask: Tensor) -> Tensor:
    """The mean of each channel's visible samples, everywhere [B, C, T]."""
    visible = (~mask)[:, None].to(eeg)  # [B, 1, T]
    mean = (eeg * visible).sum(2, keepdim=True) / visible.sum(2, keepdim=True)
    return mean.expand_as(eeg)


def predict_linear(eeg: Tensor, mask: Tensor) -> Tensor:
    """Straight lines between the visible neighbours [B, C, T]; the nearest visible value beyond the first and last.

    Raises:
        ValueError: a window has no visible sample.
    """
    if bool(mask.all(1).any()):
        raise ValueError("a window has no visible sample to interpolate from")
    n_times = eeg.shape[2]
    time = torch.arange(n_times, device=mask.device).expand_as(mask)
    before = time.masked_fill(mask, -1).cummax(1).values  # [B, T] last visible sample up to t; -1 before the first
    after = time.masked_fill(mask, n_times).flip(1).cummin(1).values.flip(1)  # first visible one from t on
    left = torch.where(before < 0, after, before)
    right = torch.where(after >= n_times, before, after)
    weight = ((time - left) / (right - left).clamp(min=1)).to(eeg)[:, None]  # [B, 1, T]
    channels = eeg.shape[1]
    first = eeg.gather(2, left[:, None].expand(-1, channels, -1))
    last = eeg.gather(2, right[:, None].expand(-1, channels, -1))
    return first + weight * (last - first)


def autocovariance(windows: Tensor) -> Tensor:
    """Autocovariance [C, T] of each channel at lags 0 to T-1, over training windows [B, C, T] of mean 0.

    The biased estimate (divided by T at every lag), which keeps every covariance matrix made of it positive.
    """
    n_times = windows.shape[2]
    spectrum = torch.fft.rfft(windows.double(), n=2 * n_times).abs().square().mean(0)  # [C, F]
    return torch.fft.irfft(spectrum, n=2 * n_times)[:, :n_times] / n_times


def predict_wiener(eeg: Tensor, mask: Tensor, covariance: Tensor) -> Tensor:
    """Best linear prediction of the hidden samples of each channel from its own visible ones [B, C, T].

    ``covariance`` [C, T] is what ``autocovariance`` gives for training windows. One window costs C solutions of V × V
    equations: about 0.1 s for 64 × 256.
    """
    lag = (torch.arange(eeg.shape[2])[:, None] - torch.arange(eeg.shape[2])).abs()
    matrix = covariance.float()[:, lag]  # [C, T, T]
    predicted = eeg.clone()
    for window, hidden, out in zip(eeg, mask, predicted, strict=True):
        visible = ~hidden
        among = matrix[:, visible][:, :, visible]  # [C, V, V]
        among = among + 1e-4 * covariance[:, :1, None].float() * torch.eye(int(visible.sum()))  # invertible in float32
        across = matrix[:, hidden][:, :, visible]  # [C, H, V]
        factor = torch.linalg.cholesky(among)
        solved = torch.cholesky_solve(window[:, visible, None].float(), factor)  # [C, V, 1]
        out[:, hidden] = (across @ solved)[..., 0].to(out)
    return predicted
