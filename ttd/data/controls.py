"""EEG that cannot know the picture: what a decoder makes of it is its chance level, whatever it has learnt.

Scaled EEG has mean 0 over the training part, so a value that is set to 0 is one that says nothing.

Letters: B epochs, C channels, T time points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttd.seeding import torch_rng


def pre_stimulus(eeg: Tensor, *, tmin: float, sfreq: float) -> Tensor:
    """Scaled epochs [B, C, T] in which all from the picture's onset on is hidden: what is left was recorded before it.

    A decoder that scores above chance on it reads something else than the picture: drift, a block design, a leak.
    """
    return hide_times(eeg, 0.0, float("inf"), tmin=tmin, sfreq=sfreq)


def noise_like(eeg: Tensor, seeds: Sequence[int]) -> Tensor:
    """White noise with the standard deviation over time of every channel of epochs [B, C, T], one seed for each epoch."""
    drawn = torch.stack([torch.randn(eeg.shape[1:], generator=torch_rng(seed, "noise EEG")) for seed in seeds])
    return drawn.to(eeg) * eeg.std(dim=2, keepdim=True)


def hide_times(eeg: Tensor, start_s: float, stop_s: float, *, tmin: float, sfreq: float) -> Tensor:
    """Scaled epochs [B, C, T] with the times from ``start_s`` (included) to ``stop_s`` (not) after the onset set to 0."""
    times = tmin + torch.arange(eeg.shape[-1], device=eeg.device) / sfreq
    half = 0.5 / sfreq  # a limit between two samples is not a matter of rounding
    return eeg.masked_fill((times > start_s - half) & (times < stop_s - half), 0)


def hide_channels(eeg: Tensor, channels: list[int]) -> Tensor:
    """Scaled epochs [B, C, T] with these channels set to 0."""
    out = eeg.clone()
    out[:, channels] = 0
    return out
