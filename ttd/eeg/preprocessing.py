"""From a raw recording to a clean one at the rate of the chain: notch, band, reference, resampling. MNE does the work.

Filters are MNE's zero-phase FIR filters (Hamming window, transition bands by MNE's rules). The average reference is
taken after filtering. Resampling never aliases: what lies above the new Nyquist frequency is removed first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import mne
import numpy as np
from pydantic import Field, model_validator

from ttd.config import Config, UserError

SD_RANGE_UV = (1.0, 500.0)
"""A recording whose median channel varies less or more than this is not EEG in the unit it claims: scalp EEG has 5 to
100 µV, an EDF with shifted bytes 8,000 µV, volts mistaken for µV a millionth."""


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

    @model_validator(mode="after")
    def _below_nyquist(self) -> PreprocessingConfig:
        if self.h_freq is not None and self.h_freq > self.sfreq / 2:
            raise ValueError(f"h_freq={self.h_freq} lies above the Nyquist frequency of sfreq={self.sfreq}")
        if self.l_freq is not None and self.h_freq is not None and self.l_freq >= self.h_freq:
            raise ValueError(f"l_freq={self.l_freq} must be below h_freq={self.h_freq}")
        return self


def preprocess(
    raw: mne.io.BaseRaw, config: PreprocessingConfig, *, name: str | Path = "recording", exact_onsets: bool = False
) -> mne.io.BaseRaw:
    """Clean a recording of EEG channels in place and bring it to ``config.sfreq``.

    With ``exact_onsets`` a recording whose rate is a multiple of ``sfreq`` keeps its rate, free of what would alias:
    epochs are then cut at the very sample of the onset and thinned out (``epochs.cut``), instead of at the nearest of
    fewer samples.

    Raises:
        UserError: the channels do not vary as EEG does (wrong unit, damaged file), or ``h_freq`` is too high for the
        file.
    """
    nyquist = raw.info["sfreq"] / 2
    if config.h_freq is not None and config.h_freq >= nyquist:
        raise UserError(f"{name}: h_freq={config.h_freq} is too high for its {raw.info['sfreq']:g} Hz; lower it")
    raw.load_data(verbose="ERROR")
    if not np.isfinite(raw._data).all():
        raise UserError(f"{name}: holds NaN or infinite samples")
    if config.notch is not None:
        lines = np.arange(config.notch, min(nyquist, (config.h_freq or nyquist) + config.notch), config.notch)
        raw.notch_filter(lines[lines < nyquist - 1], verbose="ERROR")
    if config.l_freq is not None or config.h_freq is not None:
        raw.filter(config.l_freq, config.h_freq, skip_by_annotation=(), verbose="ERROR")
    check_amplitude(raw, name)
    if config.reference == "average":
        raw.set_eeg_reference("average", verbose="ERROR")
    if exact_onsets and decimation(raw.info["sfreq"], config) > 1:
        return raw
    if raw.info["sfreq"] != config.sfreq:
        raw.resample(config.sfreq, verbose="ERROR")
    return raw


def decimation(sfreq: float, config: PreprocessingConfig) -> int:
    """How many samples at ``sfreq`` make one of the chain, or 1 where thinning out would alias or does not come out
    even.

    The stop band of MNE's low-pass begins a quarter of ``h_freq`` (at least 2 Hz) above it.
    """
    factor = round(sfreq / config.sfreq)
    clean = config.h_freq is not None and config.h_freq + max(config.h_freq / 4, 2) <= config.sfreq / 2
    return factor if clean and abs(factor * config.sfreq - sfreq) < 1e-6 else 1


def check_amplitude(raw: mne.io.BaseRaw, name: str | Path) -> None:
    """Refuse a (filtered) recording whose median channel has a standard deviation that no EEG has.

    Raises:
        UserError: naming the recording and the value.
    """
    sd_uv = float(np.median(raw._data.std(axis=1))) * 1e6
    low, high = SD_RANGE_UV
    if not low <= sd_uv <= high:
        raise UserError(
            f"{name}: its median channel varies by {sd_uv:.3g} µV (standard deviation), EEG by {low:g} to {high:g}: "
            "the unit is wrong or the file is damaged"
        )
