"""Which frequencies of hidden EEG a prediction gets right: coherence, power and explained power per band.

Coherence: Bendat & Piersol, Random Data, 4th ed., chapter 9. Each hidden stretch is cut to spans of one length, tapered (Hann)
and transformed; sums run over windows, channels and spans. The resolution is that of the span: 4 Hz for 32 samples at 128 Hz.
A prediction of smaller power than the truth is no fault: the best guess of what cannot be known is near zero.

Shapes: B windows, C channels, T samples, S spans, L samples of a span, F frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BANDS = ((0.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 45.0))
"""Hz, the upper end excluded: delta, theta, alpha, beta, low gamma."""


@dataclass(frozen=True)
class BandScore:
    """One band [low, high) of one prediction."""

    low: float
    high: float
    coherence: float
    """Magnitude-squared, 0 to 1; by chance 1 over the number of independent spans."""
    power_ratio: float
    """Power of the prediction over power of the truth."""
    explained: float
    """1 minus the power of the error over that of the truth; 0 for predicting zero, negative for worse than that."""


def hidden_spans(mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Window numbers [S] and sample numbers [S, L] of the spans of ``length`` that fit into the hidden stretches of mask
    [B, T], one after the other from each stretch's start."""
    position = torch.arange(mask.shape[1], device=mask.device)
    start = torch.where(mask, -1, position).cummax(1).values + 1  # [B, T] first sample of the stretch that t lies in
    last = mask & ((position - start + 1) % length == 0)  # where a whole span ends
    window, end = last.nonzero(as_tuple=True)
    return window, end[:, None] + torch.arange(1 - length, 1, device=mask.device)


def band_scores(
    predicted: Tensor, eeg: Tensor, mask: Tensor, *, sfreq: float, length: int, present: Tensor | None = None
) -> list[BandScore]:
    """Scores of ``predicted`` [B, C, T] against ``eeg`` on spans of ``length`` samples hidden by ``mask`` [B, T], per band.

    Bands that hold no frequency of the span are left out. ``present`` [B, C]: electrodes that count; all where None.

    Raises:
        ValueError: no hidden stretch is as long as a span.
    """
    window, samples = hidden_spans(mask, length)
    if not len(window):
        raise ValueError(f"no hidden stretch of {length} samples")
    counts = torch.ones(eeg.shape[:2]) if present is None else present.float()
    weight = counts[window].T[..., None]  # [C, S, 1]
    taper = torch.hann_window(length + 1)[1:].double()
    truth, guess = (
        torch.fft.rfft(x.double()[window[:, None], :, samples].permute(2, 0, 1) * taper) * weight  # [C, S, F]
        for x in (eeg, predicted)
    )
    cross = (truth.conj() * guess).sum((0, 1)).abs().square()  # [F]
    power, own, error = (x.abs().square().sum((0, 1)) for x in (truth, guess, truth - guess))
    frequency = torch.fft.rfftfreq(length, 1 / sfreq)
    scores = []
    for low, high in BANDS:
        band = (frequency >= low) & (frequency < high)
        if not band.any() or not power[band].sum() > 0:
            continue
        joint = power[band] * own[band]
        coherence = torch.where(joint > 0, cross[band] / joint.clamp(min=1e-300), 0.0)
        mean = (coherence * power[band]).sum() / power[band].sum()  # frequencies count by their power
        ratio, lost = own[band].sum() / power[band].sum(), error[band].sum() / power[band].sum()
        scores.append(BandScore(low, high, float(mean), float(ratio), float(1 - lost)))
    return scores
