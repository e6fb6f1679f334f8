"""Epochs that were cut by somebody else, brought to the window and rate of the chain: cropped, resampled, never filtered.

Shapes: C channels, T time points.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from ttd.config import UserError
from ttd.eeg import channels, epochs
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.preprocessing import PreprocessingConfig
from ttd.eeg.studies.interface import Epoched, EpochedRecording

OFF_GRID = 0.25
"""Fraction of a sample by which a stored sample may miss the time wanted: epochs from -0.1 s at 512 Hz miss the onset by a
fifth of one, which is 0.4 ms."""


def ch_names(recording: EpochedRecording, preprocessing: PreprocessingConfig) -> list[str]:
    """The electrodes of the result."""
    stored = recording.epoched().ch_names
    return channels.arrange(stored, preprocessing.channels, interpolate=False, name=recording.path)


def each(
    recording: EpochedRecording,
    preprocessing: PreprocessingConfig,
    config: EpochsConfig,
    *,
    dropped: collections.Counter[str],
) -> Iterator[tuple[int, np.ndarray]]:
    """The stored epochs one by one: (number of the event, float32 [C, T]). Where another rate is asked for they are
    resampled with SciPy's polyphase filter, the ends continued as straight lines.

    Raises:
        UserError: the configuration asks for what cannot be done to epochs, or for a window that is not stored.
    """
    stored = recording.epoched()
    problems = impossible(stored, preprocessing, config)
    if problems:
        raise UserError(f"{recording.path}: holds epochs that are preprocessed already: {'; '.join(problems)}")
    wanted = [stored.ch_names.index(name) for name in ch_names(recording, preprocessing)]
    first, last = window(stored, preprocessing.sfreq, config)
    ratio = Fraction(preprocessing.sfreq / stored.sfreq).limit_denominator(1000)
    for i, eeg in enumerate(stored.data):
        if eeg.shape != (len(stored.ch_names), stored.n_times):
            raise UserError(f"{recording.path}: epoch {i} has the shape {eeg.shape}, others {stored.n_times} samples")
        found = np.asarray(eeg[wanted], np.float32)
        if not np.isfinite(found).all():
            dropped["not finite"] += 1
            continue
        if ratio != 1:
            found = resample_poly(found, ratio.numerator, ratio.denominator, axis=-1, padtype="line").astype(np.float32)
        found = found[:, first : last + 1]
        if config.reject_uv is not None and np.abs(found).max() > config.reject_uv:
            dropped[f"above {config.reject_uv:g} µV"] += 1
            continue
        yield i, found


def windows(
    recording: EpochedRecording,
    preprocessing: PreprocessingConfig,
    n_times: int,
    *,
    dropped: collections.Counter[str],
) -> Iterator[tuple[int, np.ndarray]]:
    """Stored windows for pretraining: (number, float32 [C, T]); as ``each``."""
    config = EpochsConfig(tmin=0.0, tmax=(n_times - 1) / preprocessing.sfreq, baseline=None)
    return each(recording, preprocessing, config, dropped=dropped)


def impossible(stored: Epoched, preprocessing: PreprocessingConfig, config: EpochsConfig) -> list[str]:
    """What of a configuration cannot be done to these epochs, one phrase each."""
    fields = ("l_freq", "h_freq", "notch", "reference")
    asked = [f"preprocessing.{name}" for name in fields if getattr(preprocessing, name) is not None]
    asked += ["epochs.baseline"] if config.baseline is not None else []
    found = [f"{', '.join(asked)} must be null"] if asked else []
    if preprocessing.interpolate_bad or preprocessing.interpolate_missing:
        found.append("channels cannot be interpolated")
    if config.reject_uv is not None and stored.unit != "µV":
        found.append(f"epochs.reject_uv must be null, for their unit is not µV ({stored.unit})")
    grid = epochs.offsets(config, preprocessing.sfreq)
    first, last = window(stored, preprocessing.sfreq, config)
    n_there = -(-stored.n_times * Fraction(preprocessing.sfreq / stored.sfreq).limit_denominator(1000) // 1)
    there = f"{stored.tmin:g} to {stored.tmin + (stored.n_times - 1) / stored.sfreq:g} s at {stored.sfreq:g} Hz"
    exact = (grid[0] / preprocessing.sfreq - stored.tmin) * preprocessing.sfreq
    if first < 0 or last >= n_there:
        found.append(f"epochs.tmin={config.tmin:g} and tmax={config.tmax:g} reach beyond what is stored ({there})")
    elif abs(exact - first) > OFF_GRID:
        found.append(f"epochs.tmin={config.tmin:g} lies between the stored samples ({there})")
    return found


def window(stored: Epoched, sfreq: float, config: EpochsConfig) -> tuple[int, int]:
    """First and last sample of the wanted window among those stored, at the rate of the chain."""
    grid = epochs.offsets(config, sfreq)
    first = round((grid[0] / sfreq - stored.tmin) * sfreq)
    return first, first + len(grid) - 1
