"""Which electrodes of a recording are used: chosen by name, the bad ones found, missing ones interpolated when asked.

A channel is bad where it is flat, where its standard deviation is far from that of the median channel, or where the
study itself says so (column ``status`` of BIDS). Interpolation is MNE's spherical spline (Perrin et al., 1989,
Electroencephalogr. Clin. Neurophysiol. 72:184) at the places of ``montage``. It is linear and knows no time, so it may
come after the filters.

Shapes: C channels, T time points.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mne
import numpy as np

from ttd.config import UserError
from ttd.eeg import montage

SD_RANGE_UV = (1.0, 500.0)
"""A recording whose median channel varies less or more than this is not EEG in the unit it claims: an EDF with shifted
bytes has 8,450 µV, volts mistaken for µV a millionth. Measured on real recordings: 64 channels of eegmmidb 50 to 53 µV
(single channels 23 to 123), the four dry electrodes of a Muse 8 to 27 µV (5 to 64)."""

FLAT_UV = 0.1
"""A channel that varies less than this is not connected: amplifiers have 0.3 to 1 µV of noise of their own."""

NOISY_FACTOR = 5.0
"""A channel this many times louder or quieter than the median channel is bad. On the recordings named above the loudest
good channel, over the eyes or badly pressed on, reaches 3.4."""

MAX_INTERPOLATED = 0.25
"""Of the electrodes of a cap; beyond a quarter most of the map would be guessed."""

CHUNK = 100_000
"""Samples handled at a time where a whole recording would need a copy of itself."""


@dataclass(frozen=True)
class ChannelReport:
    """What was found out about the channels of one recording."""

    sd_uv: dict[str, float] = field(default_factory=dict)
    """Standard deviation of every recorded channel after the filters."""
    bad: dict[str, str] = field(default_factory=dict)
    """Channel → why it counts as bad."""
    interpolated: list[str] = field(default_factory=list)
    """Electrodes whose signal was computed from the others."""


def as_json(reports: dict[str, ChannelReport]) -> dict[str, Any]:
    """What ``build.json`` keeps of each recording's channels."""
    return {
        name: {
            "sd_uv": {channel: round(sd, 3) for channel, sd in report.sd_uv.items()},
            "bad": report.bad,
            "interpolated": report.interpolated,
        }
        for name, report in reports.items()
    }


def interpolated(reports: dict[str, ChannelReport]) -> dict[str, list[str]]:
    """Recording → its computed electrodes, where there are any: what the facts of an index say."""
    return {name: report.interpolated for name, report in reports.items() if report.interpolated}


def arrange(ch_names: Sequence[str], wanted: Sequence[str] | None, *, interpolate: bool, name: str | Path) -> list[str]:
    """The electrodes of the result in order: those ``wanted``, or all of the recording where None.

    Raises:
        UserError: an electrode is missing and is not to be interpolated, too many are, or one occurs twice.
    """
    if wanted is None:
        return list(ch_names)
    check_unique(name, ch_names)
    missing = [electrode for electrode in wanted if electrode not in ch_names]
    if missing and not interpolate:
        raise UserError(
            f"{name}: has no electrode {', '.join(missing)}; leave it out of preprocessing.channels, or set "
            "preprocessing.interpolate_missing=true to compute it from its neighbours"
        )
    _check_share(missing, wanted, name)
    return list(wanted)


def check_unique(path: str | Path, labels: Sequence[str]) -> None:
    """Refuse an electrode that several channels claim to be; a reader would rename them, and they would be left out.

    Raises:
        UserError: naming the electrode and the labels.
    """
    found = collections.defaultdict(list)
    for label in labels:
        electrode = montage.normalise_name(label)
        if montage.is_electrode(electrode):
            found[electrode].append(label)
    for electrode, written in found.items():
        if len(written) > 1:
            raise UserError(
                f"{path}: electrode {electrode} occurs {len(written)} times ({', '.join(written)}); which one is meant? "
                "Rename or remove the others in the file"
            )


def check_amplitude(sd_uv: np.ndarray, name: str | Path) -> None:
    """Refuse a (filtered) recording whose median channel has a standard deviation [C] that no EEG has.

    Raises:
        UserError: naming the recording and the value.
    """
    median = float(np.median(sd_uv))
    low, high = SD_RANGE_UV
    if not low <= median <= high:
        raise UserError(
            f"{name}: its median channel varies by {median:.3g} µV (standard deviation), EEG by {low:g} to {high:g}: "
            "the unit is wrong or the file is damaged"
        )


def find_bad(sd_uv: dict[str, float], declared: Sequence[str]) -> dict[str, str]:
    """Channel → why it is bad, from the standard deviations of all and what the study says."""
    median, found = float(np.median(list(sd_uv.values()))), {}
    for channel, sd in sd_uv.items():
        if sd < FLAT_UV:
            found[channel] = f"flat ({sd:.2g} µV)"
        elif not median / NOISY_FACTOR <= sd <= median * NOISY_FACTOR:
            found[channel] = f"varies by {sd:.3g} µV where the median channel has {median:.3g}"
        elif channel in declared:
            found[channel] = "marked bad by the study"
    return found


def check_bad(bad: dict[str, str], *, interpolate: bool, name: str | Path) -> None:
    """Refuse flat channels unless bad ones are interpolated: in an average reference they would carry all others.

    Raises:
        UserError: naming the channels.
    """
    flat = [channel for channel, why in bad.items() if why.startswith("flat")]
    if flat and not interpolate:
        raise UserError(
            f"{name}: channels are flat: {', '.join(flat)}; name the others in preprocessing.channels, or set "
            "preprocessing.interpolate_bad=true to compute them from their neighbours"
        )


def interpolate(data: np.ndarray, ch_names: Sequence[str], targets: Sequence[str], name: str | Path) -> None:
    """Fill the rows ``targets`` of ``data`` [C, T] from the other rows, in place.

    Raises:
        UserError: too many, or an electrode without a place on the canonical montage.
    """
    _check_share(targets, ch_names, name)
    unknown = [channel for channel in ch_names if not montage.is_electrode(channel)]
    if unknown:
        raise UserError(f"{name}: cannot interpolate: no place is known for {', '.join(unknown)}; name the electrodes")
    goods = [row for row, channel in enumerate(ch_names) if channel not in targets]
    bads = [row for row, channel in enumerate(ch_names) if channel in targets]
    probe = np.zeros((len(ch_names), len(goods)))
    probe[goods] = np.eye(len(goods))  # MNE interpolates unit vectors: its weights
    raw = mne.io.RawArray(probe, mne.create_info(list(ch_names), 1.0, "eeg"), verbose="ERROR")
    raw.set_montage(montage.STANDARD, verbose="ERROR")
    raw.info["bads"] = list(targets)
    weights = raw.interpolate_bads(on_bad_position="raise", verbose="ERROR").get_data()[bads].astype(data.dtype)
    for start in range(0, data.shape[1], CHUNK):
        data[bads, start : start + CHUNK] = weights @ data[goods, start : start + CHUNK]


def _check_share(targets: Sequence[str], ch_names: Sequence[str], name: str | Path) -> None:
    if len(targets) > MAX_INTERPOLATED * len(ch_names):
        raise UserError(
            f"{name}: {len(targets)} of {len(ch_names)} electrodes would have to be interpolated "
            f"({', '.join(list(targets)[:5])}{', …' if len(targets) > 5 else ''}), more than a quarter; leave the "
            "recording out, or name fewer electrodes in preprocessing.channels"
        )
