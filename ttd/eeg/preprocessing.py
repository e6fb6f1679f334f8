"""From a raw recording to a clean one at the rate of the chain: notch, band, reference, resampling. MNE does the work.

Filters are MNE's zero-phase FIR filters (Hamming window, transition bands by MNE's rules). The average reference is
taken after filtering and interpolation. Resampling never aliases: what lies above the new Nyquist frequency is removed
first. All filters work channel by channel, so a few channels at a time are read, cleaned and kept in single precision:
a recording needs 4 bytes per value of the result, not 8 per value of the file.

Shapes: C channels, T time points.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mne
import numpy as np
from pydantic import Field, field_validator, model_validator

from ttd.config import Config, UserError
from ttd.eeg import channels, files, montage
from ttd.eeg.channels import ChannelReport

if TYPE_CHECKING:
    from ttd.eeg.studies import Recording

log = logging.getLogger(__name__)

VALUES_AT_ONCE = 10_000_000
"""Values (channels × samples) in double precision while filtering: 80 MB. MNE's reader needs 100 MB beside it."""


class PreprocessingConfig(Config):
    """What is done to every recording of a study."""

    sfreq: float = Field(gt=0)
    """Hz, one for the whole chain: pretraining and fine-tuning must agree."""
    l_freq: float | None = 0.1
    """High-pass edge in Hz."""
    h_freq: float | None = 40.0
    """Low-pass edge in Hz."""
    notch: float | None = None
    """Mains frequency in Hz; its harmonics are removed as well. Needless where h_freq is well below."""
    reference: Literal["average"] | None = "average"
    channels: tuple[str, ...] | None = None
    """Electrodes to keep, by 10-05 name and in this order; null for those of the file, in its order."""
    interpolate_missing: bool = False
    """Compute electrodes of ``channels`` that a recording lacks from their neighbours (spherical splines); otherwise such
    a recording is refused."""
    interpolate_bad: bool = False
    """Compute bad channels from their neighbours; otherwise noisy ones stay and are reported, flat ones are refused."""

    @model_validator(mode="after")
    def _below_nyquist(self) -> PreprocessingConfig:
        if self.h_freq is not None and self.h_freq > self.sfreq / 2:
            raise ValueError(f"h_freq={self.h_freq} lies above the Nyquist frequency of sfreq={self.sfreq}")
        if self.l_freq is not None and self.h_freq is not None and self.l_freq >= self.h_freq:
            raise ValueError(f"l_freq={self.l_freq} must be below h_freq={self.h_freq}")
        if self.interpolate_missing and self.channels is None:
            raise ValueError("interpolate_missing needs channels: without a list nothing can be missing")
        return self

    @field_validator("channels")
    @classmethod
    def _electrodes(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is None:
            return None
        found = tuple(montage.normalise_name(name) for name in names)
        unknown = [name for name in found if not montage.is_electrode(name)]
        if unknown or not found:
            raise ValueError(f"no electrode of the 10-05 system: {', '.join(unknown) or 'the list is empty'}")
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise ValueError(f"electrodes named twice: {', '.join(twice)}")
        return found


@dataclass(frozen=True)
class Clean:
    """A recording after preprocessing."""

    data: np.ndarray
    """float32 [C, T] in µV."""
    ch_names: list[str]
    sfreq: float
    bad: list[tuple[float, float, str]] = field(default_factory=list)
    """Stretches to leave out: seconds from the first sample, and the name of their annotation."""
    channels: ChannelReport = field(default_factory=ChannelReport)

    @property
    def n_times(self) -> int:
        return self.data.shape[1]


def preprocess(
    raw: mne.io.BaseRaw, config: PreprocessingConfig, *, name: str | Path = "recording", exact_onsets: bool = False
) -> Clean:
    """Clean a recording of EEG channels and bring it to ``config.sfreq``.

    With ``exact_onsets`` a recording whose rate is a multiple of ``sfreq`` keeps its rate, free of what would alias:
    epochs are then cut at the very sample of the onset and thinned out (``epochs.cut``), instead of at the nearest of
    fewer samples.

    Raises:
        UserError: an electrode is missing, the channels do not vary as EEG does (wrong unit, damaged file, flat), or
        ``h_freq`` is too high for the file.
    """
    rate = raw.info["sfreq"]
    if config.h_freq is not None and config.h_freq >= rate / 2:
        raise UserError(f"{name}: h_freq={config.h_freq} is too high for its {rate:g} Hz; lower it")
    ch_names = channels.arrange(raw.ch_names, config.channels, interpolate=config.interpolate_missing, name=name)
    recorded = [row for row, channel in enumerate(ch_names) if channel in raw.ch_names]
    step = decimation(rate, config)
    thin_out = 1 if exact_onsets else step
    resample = step == 1 and rate != config.sfreq

    data: np.ndarray | None = None
    sd_uv: dict[str, float] = {}
    at_once = max(1, VALUES_AT_ONCE // max(raw.n_times, 1))
    for first in range(0, len(recorded), at_once):
        rows = recorded[first : first + at_once]
        names = [ch_names[row] for row in rows]
        part = _filtered(raw, names, config, name)
        for channel in names:
            sd_uv[channel] = float(part.get_data(channel).std()) * 1e6
        if resample:
            part.resample(config.sfreq, verbose="ERROR")
        if data is None:
            data = np.empty((len(ch_names), -(-part.n_times // thin_out)), np.float32)
        for row, channel in zip(rows, names, strict=True):
            data[row] = part.get_data(channel)[0, ::thin_out] * 1e6
        del part  # before the next is read
    assert data is not None, "a recording without channels"

    channels.check_amplitude(np.array(list(sd_uv.values())), name)
    bad = channels.find_bad(sd_uv, raw.info["bads"])
    channels.check_bad(bad, interpolate=config.interpolate_bad, name=name)
    absent = [channel for channel in ch_names if channel not in sd_uv]
    targets = [c for c in ch_names if c in absent or (config.interpolate_bad and c in bad)]
    if targets:
        channels.interpolate(data, ch_names, targets, name)
        log.info("%s: interpolated %s", name, ", ".join(targets))
    left = [f"{channel} ({why})" for channel, why in bad.items() if channel not in targets]
    if left:
        log.warning("%s: bad channels are kept: %s", name, ", ".join(left))
    if config.reference == "average":
        for start in range(0, data.shape[1], channels.CHUNK):
            piece = data[:, start : start + channels.CHUNK]
            piece -= piece.mean(axis=0, dtype=np.float64).astype(np.float32)
    kept_rate = config.sfreq if resample else rate / thin_out
    return Clean(data, ch_names, kept_rate, _bad_stretches(raw), ChannelReport(sd_uv, bad, targets))


def input_problems(recordings: Sequence[Recording], config: PreprocessingConfig) -> list[str]:
    """What can be told without the signals: recordings that occur twice, and those that lack an electrode asked for."""
    problems = files.duplicates(recording.signal_files for recording in recordings)
    for recording in recordings if config.channels is not None else ():
        try:
            channels.arrange(
                recording.ch_names(), config.channels, interpolate=config.interpolate_missing, name=recording.path
            )
        except UserError as error:
            problems.append(str(error))
    return problems


def decimation(sfreq: float, config: PreprocessingConfig) -> int:
    """How many samples at ``sfreq`` make one of the chain, or 1 where thinning out would alias or does not come out
    even.

    The stop band of MNE's low-pass begins a quarter of ``h_freq`` (at least 2 Hz) above it.
    """
    factor = round(sfreq / config.sfreq)
    clean = config.h_freq is not None and config.h_freq + max(config.h_freq / 4, 2) <= config.sfreq / 2
    return factor if clean and abs(factor * config.sfreq - sfreq) < 1e-6 else 1


def _filtered(raw: mne.io.BaseRaw, names: list[str], config: PreprocessingConfig, name: str | Path) -> mne.io.BaseRaw:
    """Some channels of a recording in volts, after notch and band filter."""
    rate = raw.info["sfreq"]
    picks = [raw.ch_names.index(channel) for channel in names]
    part = mne.io.RawArray(raw.get_data(picks), mne.create_info(names, rate, "eeg"), verbose="ERROR")
    if not np.isfinite(part.get_data()).all():
        raise UserError(f"{name}: holds NaN or infinite samples")
    if config.notch is not None:
        lines = np.arange(config.notch, min(rate / 2, (config.h_freq or rate / 2) + config.notch), config.notch)
        part.notch_filter(lines[lines < rate / 2 - 1], verbose="ERROR")
    if config.l_freq is not None or config.h_freq is not None:
        part.filter(config.l_freq, config.h_freq, skip_by_annotation=(), verbose="ERROR")
    return part


def _bad_stretches(raw: mne.io.BaseRaw) -> list[tuple[float, float, str]]:
    """Annotations ``BAD…`` and ``EDGE…`` as (start, stop, name) in seconds after the first sample."""
    notes = raw.annotations
    return [
        (onset - raw.first_time, onset - raw.first_time + duration, str(text))
        for onset, duration, text in zip(notes.onset, notes.duration, notes.description, strict=True)
        if text.upper().startswith(("BAD", "EDGE"))
    ]
