"""Epochs and windows: pieces of a clean recording at the rate of the chain.

An epoch holds the samples at multiples of 1/sfreq from the onset that lie in [tmin, tmax]; the onset itself is one
of them.

Shapes: E epochs, C channels, T time points.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from ttd.config import Config, UserError
from ttd.eeg.preprocessing import Clean


class EpochsConfig(Config):
    """Which piece of the recording belongs to an event."""

    tmin: float = -0.1
    """Seconds relative to the onset."""
    tmax: float = 0.6
    baseline: tuple[float | None, float | None] | None = (None, 0.0)
    """Stretch whose mean is subtracted per channel, both ends included; null for none, an end that is null is the
    epoch's."""
    reject_uv: float | None = Field(default=None, gt=0)
    """Epochs in which any channel exceeds this absolute value (after the baseline) are left out and counted."""

    @model_validator(mode="after")
    def _ordered(self) -> EpochsConfig:
        if self.tmin >= self.tmax:
            raise ValueError(f"tmin={self.tmin} must be below tmax={self.tmax}")
        if self.baseline is not None:
            start, stop = self.baseline
            if (self.tmin if start is None else start) > (self.tmax if stop is None else stop):
                raise ValueError(f"baseline={self.baseline} is empty")
        return self


@dataclass(frozen=True)
class Epochs:
    """What ``cut`` found: the epochs that are whole and clean, and why the others are not."""

    data: np.ndarray
    """float32 [E, C, T] in µV."""
    kept: list[int]
    """Which of the onsets they belong to."""
    dropped: dict[str, int]
    """Number of epochs left out, by reason."""


def offsets(config: EpochsConfig, sfreq: float) -> np.ndarray:
    """Sample numbers [T] of an epoch relative to its onset, at the rate of the chain."""
    return np.arange(math.ceil(config.tmin * sfreq - 1e-6), math.floor(config.tmax * sfreq + 1e-6) + 1)


def cut(clean: Clean, onsets_s: Sequence[float], config: EpochsConfig, *, sfreq: float) -> Epochs:
    """All epochs of a recording at once; see ``each``."""
    dropped: collections.Counter[str] = collections.Counter()
    found = list(each(clean, onsets_s, config, sfreq=sfreq, dropped=dropped))
    shape = (0, len(clean.ch_names), len(offsets(config, sfreq)))
    data = np.stack([eeg for _, eeg in found]) if found else np.empty(shape, np.float32)
    return Epochs(data, [i for i, _ in found], dict(dropped))


def each(
    clean: Clean,
    onsets_s: Sequence[float],
    config: EpochsConfig,
    *,
    sfreq: float,
    dropped: collections.Counter[str],
) -> Iterator[tuple[int, np.ndarray]]:
    """Epochs at ``sfreq`` one by one, from a recording at that rate or an integer multiple of it (see ``preprocess``):
    (number of the onset, float32 [C, T] in µV).

    Left out and counted in ``dropped``: epochs not wholly inside the recording, those that overlap an annotation
    ``BAD…`` (counted under its name), and those above ``reject_uv``.

    Raises:
        UserError: most onsets lie beyond the end of the recording; they are not seconds.
    """
    factor = round(clean.sfreq / sfreq)
    assert abs(factor * sfreq - clean.sfreq) < 1e-6, (clean.sfreq, sfreq)
    grid = offsets(config, sfreq) * factor  # [T] samples of the recording
    centres = np.round(np.asarray(onsets_s, dtype=float) * clean.sfreq).astype(int)
    beyond = int((centres >= clean.n_times).sum())
    if beyond > len(centres) / 2:
        raise UserError(
            f"{beyond} of {len(centres)} onsets lie after the end of the recording "
            f"({clean.n_times / clean.sfreq:.0f} s); are they given in samples or milliseconds? BIDS wants seconds"
        )
    base = _baseline_mask(config, grid / clean.sfreq)
    bad = _bad_samples(clean)
    for i, centre in enumerate(centres):
        first, last = centre + grid[0], centre + grid[-1]
        if first < 0 or last >= clean.n_times:
            dropped["outside the recording"] += 1
            continue
        reason = next((text for start, stop, text in bad if first < stop and last > start), None)
        if reason is not None:
            dropped[reason] += 1
            continue
        eeg = clean.data[:, first : last + 1 : factor].copy()  # [C, T]
        if base is not None:
            eeg -= eeg[:, base].mean(axis=1, keepdims=True)
        if config.reject_uv is not None and np.abs(eeg).max() > config.reject_uv:
            dropped[f"above {config.reject_uv:g} µV"] += 1
            continue
        yield i, eeg


def windows(
    clean: Clean, n_times: int, stride: int, ranges_s: Sequence[tuple[float, float]] | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Contiguous pieces of a clean recording: (onset in seconds, float32 [C, T] in µV), ``stride`` samples apart.

    Given ranges, windows lie wholly inside one of them. Windows that overlap an annotation ``BAD…`` are skipped.
    """
    sfreq, bad = clean.sfreq, _bad_samples(clean)
    for start_s, stop_s in ranges_s if ranges_s is not None else [(0.0, clean.n_times / sfreq)]:
        begin, end = max(0, math.ceil(start_s * sfreq - 1e-6)), min(clean.n_times, math.floor(stop_s * sfreq + 1e-6))
        for first in range(begin, end - n_times + 1, stride):
            if not any(first < stop and first + n_times - 1 > start for start, stop, _ in bad):
                yield first / sfreq, clean.data[:, first : first + n_times].copy()


def _baseline_mask(config: EpochsConfig, times: np.ndarray) -> np.ndarray | None:
    if config.baseline is None:
        return None
    start, stop = config.baseline
    mask = (times >= (times[0] if start is None else start) - 1e-9) & (
        times <= (times[-1] if stop is None else stop) + 1e-9
    )
    if not mask.any():
        raise UserError(f"epochs.baseline={config.baseline}: holds no sample of [{times[0]:.3f}, {times[-1]:.3f}] s")
    return mask


def _bad_samples(clean: Clean) -> list[tuple[float, float, str]]:
    """The stretches to leave out as (first, last, name) in samples.

    One without duration (a boundary) touches the two samples it lies between.
    """
    rate = clean.sfreq
    return [(start * rate, max(stop * rate, start * rate + 1e-3), name) for start, stop, name in clean.bad]
