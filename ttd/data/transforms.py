"""What happens to the EEG between shard and model: choice of repetitions, scaling, and variation of training samples.

Every random choice is keyed by (seed, purpose, position of the sample in the stream).

Shapes: B batch, R repetitions, C channels, T time points.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from ttd.data.schema import Statistics
from ttd.seeding import key, numpy_rng

Repetitions = Literal["all", "mean", "random", "random_mean_k"]


def average(eeg: np.ndarray, chosen: np.ndarray | slice | None = None) -> np.ndarray:
    """Mean float32 [C, T] of the chosen repetitions of [R, C, T] (float16 µV is summed in float32)."""
    picked = eeg if chosen is None else eeg[chosen]
    single = torch.from_numpy(picked).float().numpy()  # torch converts float16 several times faster than NumPy
    out = single[0]
    for repetition in single[1:]:
        out += repetition
    return out if len(single) == 1 else out / np.float32(len(single))


def choose_repetitions(n: int, mode: Repetitions, k: int, *, seed: int, position: int) -> np.ndarray:
    """Which of ``n`` repetitions the sample at ``position`` averages: all, one, or ``min(k, n)`` different ones,
    sorted."""
    if mode == "mean" or n == 1:
        return np.arange(n)
    if mode == "random":
        return np.array([key(seed, "repetition", position) % n])
    if mode == "random_mean_k":
        return np.sort(np.argsort([key(seed, "repetition", position, r) for r in range(n)])[:k])
    raise ValueError(f"repetitions={mode!r} does not choose")


def scale(eeg: np.ndarray, statistics: Statistics) -> None:
    """Z-score µV [B, C, T] in place, per channel, with the statistics of the training part."""
    x = torch.from_numpy(eeg)  # torch walks the broadcast rows twice as fast as NumPy, to the same bits
    x.sub_(torch.tensor(statistics.mean, dtype=torch.float32)[:, None])
    x.mul_((1 / torch.tensor(statistics.std, dtype=torch.float64)).float()[:, None])


def jitter_time(eeg: np.ndarray, limit: int, *, seed: int, position: int) -> None:
    """Shift [C, T] in place by up to ``limit`` time points either way; the edge is repeated."""
    shift = key(seed, "time_jitter", position) % (2 * limit + 1) - limit
    if shift > 0:
        eeg[:, :-shift] = eeg[:, shift:]
        eeg[:, -shift:] = eeg[:, -1:]
    elif shift < 0:
        eeg[:, -shift:] = eeg[:, :shift]
        eeg[:, :-shift] = eeg[:, :1]


def drop_electrodes(eeg: np.ndarray, probability: float, *, seed: int, position: int) -> None:
    """Set each channel of scaled [C, T] to zero (its mean) with ``probability``, in place."""
    eeg[numpy_rng(seed, "electrode_dropout", position).random(len(eeg)) < probability] = 0


def add_noise(eeg: np.ndarray, std: float, *, seed: int, position: int) -> None:
    """Add white noise to scaled [C, T] in place; ``std`` is in standard deviations of the channel."""
    eeg += np.float32(std) * numpy_rng(seed, "noise", position).standard_normal(eeg.shape, np.float32)
