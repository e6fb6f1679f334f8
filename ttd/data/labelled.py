"""Labelled epochs in memory, for probes: from shards, or from category averages that others derived.

An epoch carries its class and its group: the recording, the subject or the half of a recording that is left out
together with it. Rejection looks at amplitudes alone, never at labels.

Shapes: n epochs, C channels, T samples.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy.signal import resample_poly

from ttd.config import Config, UserError
from ttd.data.reader import ShardReader


@dataclass(frozen=True)
class Labelled:
    """Epochs of several groups on one time grid.

    Attributes:
        eeg: µV [n, C, T].
        labels, groups, keys: [n] each, text; a key names the same epoch in another selection of the same source.
        tmin: seconds of the first sample.
        scale: mean and standard deviation [C] of the training part of the shards; None where there is no such part.
        dropped: epochs left out, by reason.
    """

    eeg: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    keys: np.ndarray
    sfreq: float
    tmin: float
    ch_names: list[str]
    scale: tuple[np.ndarray, np.ndarray] | None
    dropped: dict[str, int]


class ShardEpochs(Config):
    """Samples of any part of a study's shards, their repetitions averaged."""

    name: Literal["shards"] = "shards"
    shards: Path
    label_by: Literal["label", "concept", "run"] = "label"
    classes: dict[str, str] = Field(default_factory=dict)
    """Value of ``label_by`` → class; samples of other values are not taken. Every value is a class where empty."""
    leave_out: Literal["run", "session", "subject", "half"] = "run"
    """What is left out whole. ``half``: the earlier and the later half of each recording in turn."""
    gap_s: float = Field(default=0.0, ge=0)
    """For halves: no epoch lies within this stretch round the middle of its recording."""
    reject_uv: float | None = Field(default=None, gt=0)
    """Drop epochs with a sample above so many µV, whatever their label and whether trained on or scored; count them."""


class EvokedAverages(Config):
    """One average per subject and category: an npz with ``evoked_uV`` [K, S, C, T], ``time_s``, ``channels``,
    ``categories``. Claims about it are about categories, never about pictures."""

    name: Literal["evoked"] = "evoked"
    file: Path
    sfreq: float = Field(default=125.0, gt=0)
    """Rate after resampling, in Hz."""
    tmin: float = 0.0
    tmax: float = 0.6
    """Seconds; the sample at ``tmax`` is not taken."""
    normalise: Literal["none", "epoch", "subject"] = "none"
    """``epoch``: every channel of an epoch in its own standard deviations; needs nothing but that epoch. ``subject``:
    take away the mean over the subject's categories and divide by each channel's standard deviation: needs the unlabelled
    epochs of the left-out subject as well (transductive), and has to be reported so."""


LabelledConfig = Annotated[ShardEpochs | EvokedAverages, Field(discriminator="name")]


def missing(config: ShardEpochs | EvokedAverages) -> str | None:
    """What is not there, in a phrase with its remedy, or None."""
    if isinstance(config, EvokedAverages):
        return None if config.file.is_file() else f"file={config.file}: no such file; give the npz of category averages"
    found = parts_of(config)
    return None if found else f"shards={config.shards}: holds no shards; build them with a script of shards/"


def parts_of(config: ShardEpochs) -> list[str]:
    """The parts of the split that stand there."""
    return [p for p in ("train", "validation", "test") if (config.shards / p / "index.json").is_file()]


def load(config: ShardEpochs | EvokedAverages) -> Labelled:
    """Read the epochs; a locked test part has to be entered into the ledger first (``splits.open_test``).

    Raises:
        UserError: files are missing or do not hold what they should, or one class alone is left.
    """
    data = load_evoked(config) if isinstance(config, EvokedAverages) else load_shards(config)
    if len(set(data.labels)) < 2:
        source = config.file if isinstance(config, EvokedAverages) else config.shards
        raise UserError(
            f"{source}: needs at least two classes, holds {sorted(set(data.labels.tolist())) or 'no epoch'}"
        )
    return data


def load_shards(config: ShardEpochs) -> Labelled:
    """Every part of the shards in one array."""
    readers = [ShardReader.open(config.shards / part, open_test=True) for part in parts_of(config)]
    if not readers:
        raise UserError(str(missing(config)))
    eeg, labels, groups, keys = [], [], [], []
    dropped: dict[str, int] = {}
    ends = _ends(readers) if config.leave_out == "half" else {}
    for reader in readers:
        told = _values(reader, config.label_by)
        for i in range(len(reader)):
            label = config.classes.get(told(i), "") if config.classes else told(i)
            if not label:
                continue
            group = _group(reader, i, config, ends)
            epoch = reader.eeg(i).mean(0)
            reason = None
            if group is None:
                reason = f"within {config.gap_s:g} s round the middle"
            elif config.reject_uv is not None and np.abs(epoch).max() > config.reject_uv:
                reason = f"above {config.reject_uv:g} µV"
            if reason or group is None:
                dropped[str(reason)] = dropped.get(str(reason), 0) + 1
                continue
            eeg.append(epoch)
            labels.append(label)
            groups.append(group)
            keys.append(reader.index.keys[i])
    index = readers[0].index
    statistics = index.facts.statistics.get(index.cap)
    scale = (np.asarray(statistics.mean), np.asarray(statistics.std)) if statistics else None
    return Labelled(
        np.stack(eeg) if eeg else np.zeros((0, index.n_chans, index.n_times), np.float32),
        labels=np.array(labels, dtype=str),
        groups=np.array(groups, dtype=str),
        keys=np.array(keys, dtype=str),
        sfreq=index.sfreq,
        tmin=index.tmin,
        ch_names=index.ch_names,
        scale=scale,
        dropped=dropped,
    )


def _values(reader: ShardReader, by: str) -> Callable[[int], str]:
    """The value of the labelling column of sample i."""
    if by == "run":
        return lambda i: reader.meta(i)["runs"][0]
    column = reader.index.column(by)
    return lambda i: str(column[i])


def _place(reader: ShardReader, i: int) -> tuple[str, float, float]:
    """Recording of sample i, and where it begins and ends there in seconds."""
    meta, index = reader.meta(i), reader.index
    start = meta["onsets"][0] + index.tmin
    return f"{meta['subject']}/{meta['sessions'][0]}/{meta['runs'][0]}", start, start + index.n_times / index.sfreq


def _ends(readers: list[ShardReader]) -> dict[str, tuple[float, float]]:
    """First and last second of each recording that a sample covers."""
    out: dict[str, tuple[float, float]] = {}
    for reader in readers:
        for i in range(len(reader)):
            name, start, stop = _place(reader, i)
            low, high = out.get(name, (start, stop))
            out[name] = (min(low, start), max(high, stop))
    return out


def _group(reader: ShardReader, i: int, config: ShardEpochs, ends: dict[str, tuple[float, float]]) -> str | None:
    """What sample i is left out with; None where it touches the gap between the halves."""
    meta = reader.meta(i)
    if config.leave_out == "half":
        name, start, stop = _place(reader, i)
        middle = sum(ends[name]) / 2
        if stop <= middle - config.gap_s / 2:
            return "first half"
        return "second half" if start >= middle + config.gap_s / 2 else None
    return {"run": meta["runs"][0], "session": meta["sessions"][0], "subject": meta["subject"]}[config.leave_out]


def load_evoked(config: EvokedAverages) -> Labelled:
    """All averages of all subjects; group: the subject."""
    names = ("evoked_uV", "time_s", "channels", "categories")
    try:
        with np.load(config.file, allow_pickle=False) as file:
            evoked, time_s, channels, categories = (file[name] for name in names)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{config.file}: not an npz of category averages ({', '.join(names)}): {error}") from error
    if evoked.ndim != 4 or evoked.shape != (len(categories), evoked.shape[1], len(channels), len(time_s)):
        raise UserError(
            f"{config.file}: evoked_uV has shape {list(evoked.shape)}, not [K, S, C, T] of its other arrays"
        )
    rate = round(1 / float(np.diff(time_s).mean()))
    ratio = (round(config.sfreq), rate)
    evoked = resample_poly(evoked, *ratio, axis=-1, padtype="line") if ratio[0] != ratio[1] else evoked
    time = time_s[0] + np.arange(evoked.shape[-1]) / config.sfreq
    inside = (time > config.tmin - 1e-9) & (time < config.tmax - 1e-9)
    if not inside.any() or config.tmin < time_s[0] - 1e-9 or config.tmax > time_s[-1] + 1 / rate + 1e-9:
        raise UserError(
            f"{config.file}: holds {time_s[0]:g} to {time_s[-1]:g} s, not {config.tmin:g} to {config.tmax:g}"
        )
    eeg = evoked[..., inside].swapaxes(0, 1).astype(np.float32)  # [S, K, C, T]
    if config.normalise == "epoch":
        eeg = (eeg - eeg.mean(3, keepdims=True)) / eeg.std(3, keepdims=True)
    elif config.normalise == "subject":
        eeg = eeg - eeg.mean(1, keepdims=True)
        eeg = eeg / eeg.std(axis=(1, 3), keepdims=True)
    n_subjects, n_classes = eeg.shape[:2]
    subjects = np.repeat([f"subject-{s:02d}" for s in range(n_subjects)], n_classes)
    labels = np.tile(categories.astype(str), n_subjects)
    return Labelled(
        eeg.reshape(-1, *eeg.shape[2:]),
        labels,
        subjects,
        np.array([f"{s}_{label}" for s, label in zip(subjects, labels, strict=True)]),
        sfreq=config.sfreq,
        tmin=float(time[inside][0]),
        ch_names=[str(name) for name in channels],
        scale=None,
        dropped={},
    )


def locked(configs: dict[str, ShardEpochs | EvokedAverages]) -> list[Path]:
    """The distinct shards whose locked test part these sources open."""
    shards = [c.shards for c in configs.values() if isinstance(c, ShardEpochs) and "test" in parts_of(c)]
    return list(dict.fromkeys(shards))
