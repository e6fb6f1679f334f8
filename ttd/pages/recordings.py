"""The recordings as the report shows them: how many, how clean, and what they look like on average.

Only the training and validation parts are read.

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.pages import figures, page

MAX_SAMPLES = 250
"""Samples read per subject; 250 × 4 repetitions put the standard error of a 10 µV background at 0.3 µV."""


@dataclass(frozen=True)
class Quality:
    """One subject in numbers."""

    n_samples: int
    n_repetitions: int
    n_averaged: int
    """Repetitions that were read and averaged; the figures below are of these."""
    rms_uv: float
    """Root mean square over channels and time of single repetitions."""
    peaks_above_100_uv: float
    """Fraction of repetitions with a value beyond ±100 µV."""
    evoked_peak_uv: float
    """Largest global field power (sd over channels) of the average."""
    noise_uv: float
    """Standard error of the average, mean over channels and time: what remains of the background in it."""


def read_subject(reader: ShardReader, rows: np.ndarray) -> tuple[np.ndarray, Quality]:
    """Mean response [C, T] in µV of samples ``rows``, and how clean they are."""
    total = np.zeros((reader.index.n_chans, reader.index.n_times))
    squares, n, high = np.zeros_like(total), 0, 0
    for i in rows[:MAX_SAMPLES]:
        eeg = reader.eeg(int(i)).astype(np.float64)  # [R, C, T]
        total += eeg.sum(0)
        squares += (eeg**2).sum(0)
        high += int((np.abs(eeg).max(axis=(1, 2)) > 100).sum())
        n += len(eeg)
    mean = total / n
    variance = np.maximum(squares / n - mean**2, 0)
    n_repetitions = int(reader.index.n_repetitions[rows].sum())
    quality = Quality(
        len(rows), n_repetitions, n, float(np.sqrt((squares / n).mean())), high / n,
        float(mean.std(0).max()), float(np.sqrt(variance / n).mean()),
    )  # fmt: skip
    return mean, quality


def section(shards: Path) -> list[str]:
    """Facts of the index, quality by subject, evoked response and topographies."""
    index = ShardIndex.read(shards / "train")
    facts, reader = index.facts, ShardReader(index)
    parts = []
    for part in ("train", "validation"):
        if (shards / part / "index.json").is_file():
            other = ShardIndex.read(shards / part)
            repetitions = sorted(set(other.n_repetitions.tolist()))
            many = f"{repetitions[0]}" if len(repetitions) == 1 else f"{repetitions[0]}–{repetitions[-1]}"
            pictures = len(set(other.column("image_sha256").tolist()))
            parts.append([part, f"{other.n_samples:,}", f"{pictures:,}", many, str(len(other.subjects))])
    locked = shards / "test" / "index.json"
    if locked.is_file():  # its facts are no secret; its samples are not opened for a report
        parts.append(["test (locked)", f"{json.loads(locked.read_text())['n_samples']:,}", "–", "–", "–"])
    line = (
        f"Study {facts.study}: {index.n_chans} electrodes, {index.sfreq:g} Hz, {1e3 * index.tmin:.0f} to "
        f"{1e3 * (index.tmin + (index.n_times - 1) / index.sfreq):.0f} ms around each picture."
    )
    out = [page.paragraph(line), page.table(["part", "samples", "pictures", "repetitions", "subjects"], parts)]

    names = index.column("subject")
    qualities: dict[str, Quality] = {}
    responses: dict[str, mne.EvokedArray] = {}
    for subject in index.subjects:
        mean, qualities[subject] = read_subject(reader, np.flatnonzero(names == subject))
        n_averaged = qualities[subject].n_averaged
        responses[subject] = figures.evoked(mean, index.ch_names, index.sfreq, index.tmin, n_averaged=n_averaged)
    cells = [
        [s, f"{q.n_samples:,}", f"{q.n_repetitions:,}", f"{q.rms_uv:.1f}", f"{100 * q.peaks_above_100_uv:.1f} %",
         f"{q.evoked_peak_uv:.2f}", f"{q.noise_uv:.2f}"]
        for s, q in qualities.items()
    ]  # fmt: skip
    header = [
        "subject",
        "samples",
        "repetitions",
        "RMS µV",
        "beyond ±100 µV",
        "evoked peak µV (GFP)",
        "standard error µV",
    ]
    out += ["<h3>Quality of the training part</h3>", page.table(header, cells)]
    grand = mne.grand_average(list(responses.values())) if len(responses) > 1 else next(iter(responses.values()))
    grand.nave = sum(q.n_averaged for q in qualities.values())  # MNE counts subjects, the label should count trials
    drawn = figures.evoked_figure(grand)
    caption = "Average over subjects and pictures of the training part, every electrode."
    out += ["<h3>Evoked response</h3>", page.drawing(drawn, "evoked response", caption, vector=False)]
    maps = figures.topographies(responses)
    if maps is not None:
        note = "Scalp maps by subject on one scale; subjects differ in anatomy, strength and latency."
        out += ["<h3>Topographies by subject</h3>", page.drawing(maps, "topographies by subject", note, vector=False)]
    return out
