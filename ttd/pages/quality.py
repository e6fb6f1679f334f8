"""The quality page of a build: what went in, what came out and why not all of it, and what the signals look like.

Written as ``quality/index.html`` and ``quality/quality.json`` below the shards, from the shards themselves. Signals are
read from the training part alone, a few hundred epochs of it, so the page takes seconds whatever the study's size; of
the test part only the index is looked at (which pictures and concepts it names), no sample is opened.

Shapes: C channels, T time points, F frequencies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ttd.config import UserError, write_json
from ttd.data.index import ShardIndex
from ttd.data.splits import DISJOINT, SplitManifest
from ttd.eeg.montage import is_electrode
from ttd.pages import page

MAX_SAMPLES, MAX_REPETITIONS = 250, 2
"""Samples read, evenly spaced over the training part, and repetitions of each: at most 500 epochs, whose average of a
10 µV background has a standard error of 0.45 µV."""

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Signals:
    """Averages over the epochs that were read."""

    ch_names: list[str]
    n_epochs: int
    mean: np.ndarray
    """Evoked response [C, T] in µV."""
    sd: np.ndarray
    """Standard deviation [C] in µV."""
    freqs: np.ndarray
    """[F] in Hz."""
    power: np.ndarray
    """Mean power spectral density [C, F] in µV²/Hz."""


def write(root: Path) -> Path:
    """Write the page of the shards below ``root``, unless it stands there already; returns its path.

    Raises:
        UserError: there is no finished build.
    """
    target = root / "quality"
    if not (root / "build.json").is_file():
        raise UserError(f"{root}: holds no finished build (build.json is missing); build the shards first")
    build = json.loads((root / "build.json").read_text())
    if (target / "quality.json").is_file():
        old = json.loads((target / "quality.json").read_text())
        if old["build"] == build["fingerprint"] and (target / "index.html").is_file():
            return target / "index.html"
    indexes = {p: ShardIndex.read(root / p, open_test=True) for p in PARTS if (root / p / "index.json").is_file()}
    train, manifest = indexes["train"], SplitManifest.read(root)
    signals = read_signals(train)
    facts = measure(build, indexes, manifest, signals)
    target.mkdir(exist_ok=True)
    (target / "index.html").write_text(lay_out(facts, build, train, signals), encoding="utf-8")
    write_json(target / "quality.json", facts)
    return target / "index.html"


def read_signals(index: ShardIndex) -> Signals:
    """Average evenly spaced samples of the cap that most samples have."""
    from mne.time_frequency import psd_array_welch  # slow to import, and a page that stands needs none of it

    caps, counts = np.unique(index.column("cap"), return_counts=True)
    cap = str(caps[counts.argmax()])
    rows = np.flatnonzero(index.column("cap") == cap)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MAX_SAMPLES, len(rows))).astype(int))]
    sfreq = index.sfreq
    total = squares = power = 0.0
    n, freqs = 0, np.zeros(0)
    for row in rows:
        eeg = index.read_member(int(row), "eeg.npy")[:MAX_REPETITIONS].astype(np.float64)  # [R, C, T]
        total, squares, n = total + eeg.sum(0), squares + (eeg**2).sum(0), n + len(eeg)
        density, freqs = psd_array_welch(eeg, sfreq, n_fft=eeg.shape[-1], remove_dc=True, verbose="ERROR")
        power = power + density.sum(0)
    mean = np.asarray(total) / n
    sd = np.sqrt(np.asarray(squares / n).mean(-1) - mean.mean(-1) ** 2)
    return Signals(list(index.facts.caps[cap]), n, mean, sd, freqs, np.asarray(power) / n)


def measure(
    build: dict[str, Any], indexes: dict[str, ShardIndex], manifest: SplitManifest, signals: Signals
) -> dict[str, Any]:
    """Everything that the page says, as JSON."""
    train = indexes["train"]
    parts = {
        part: {
            "samples": index.n_samples,
            "repetitions": int(index.n_repetitions.sum()),
            "subjects": len(index.subjects),
            "recordings": manifest.counts[part].recordings,
            "concepts": manifest.counts[part].concepts,
            "images": manifest.counts[part].images,
        }
        for part, index in indexes.items()
    }
    gfp = signals.mean.std(0)
    leaks = {f"{a} and {b}": shared(indexes[a], indexes[b], manifest, a, b) for a, b in combinations(indexes, 2)}
    epochs = train.facts.kind != "window"
    return {
        "build": build["fingerprint"],
        "study": train.facts.study,
        "kind": train.facts.kind,
        "simulated": train.facts.simulated,
        "citation": train.facts.source.get("citation", ""),
        "licence": train.meta(0).get("licence") or "not stated",
        "presentations": build.get("presentations"),
        "kept": sum(part["repetitions"] for part in parts.values()),
        "left_out": build.get("dropped", {}),
        "excluded_subjects": build.get("excluded", {}),
        "parts": parts,
        "split": {"by": manifest.by, "fingerprint": manifest.fingerprint, "forbids": list(DISJOINT[manifest.by])},
        "leaks": leaks,
        "channels": {
            name: {"bad": report["bad"], "interpolated": report["interpolated"]}
            for name, report in build.get("channels", {}).items()
            if report["bad"] or report["interpolated"]
        },
        "signals": {
            "n_epochs": signals.n_epochs,
            "channel_sd_uv": {name: round(float(sd), 3) for name, sd in zip(signals.ch_names, signals.sd, strict=True)},
            "evoked_peak_uv": round(float(gfp.max()), 4) if epochs else None,
            "evoked_peak_s": round(float(train.tmin + gfp.argmax() / train.sfreq), 4) if epochs else None,
            "spectrum_hz": signals.freqs.round(3).tolist(),
            "spectrum_uv2_per_hz": np.median(signals.power, axis=0).round(6).tolist(),
        },
    }


def shared(one: ShardIndex, other: ShardIndex, manifest: SplitManifest, a: str, b: str) -> dict[str, int]:
    """What two parts have in common: distinct concepts and images by their indexes, values of the split by the manifest.

    Raw time is compared when the shards are built, repetition by repetition; a build with an overlap does not exist.
    """

    def both(column: str) -> int:
        return len((set(one.column(column)) & set(other.column(column))) - {""})

    assigned = set(manifest.assignments.get(a, ())) & set(manifest.assignments.get(b, ()))
    return {
        "concepts": both("concept"),
        "images": both("image_sha256"),
        "assigned": len(assigned),
        "subjects": both("subject"),
        "raw_time": 0,
    }


def lay_out(facts: dict[str, Any], build: dict[str, Any], train: ShardIndex, signals: Signals) -> str:
    """The page."""
    sheet = page.Page(
        f"Quality of the shards: {facts['study']}",
        subtitle=f"{facts['citation']} · licence: {facts['licence']} · build {facts['build']}",
        banner="Simulated: no person was recorded." if facts["simulated"] else "",
    )
    sheet.section("counts", "In and out", *counts(facts))
    sheet.section("split", "Parts", *split(facts))
    sheet.section("channels", "Channels", *channels(facts, build, signals))
    sheet.section("signals", "Signals", *drawings(facts, train, signals))
    settings = json.dumps(train.facts.preprocessing, indent=1, ensure_ascii=False)
    sheet.section("settings", "Preprocessing", page.commands(settings.splitlines()))
    return sheet.html()


def counts(facts: dict[str, Any]) -> list[str]:
    """Presentations in the events, those left out by reason, and what became of the rest."""
    if facts["presentations"] is None:
        out = [page.paragraph(f"{facts['kept']:,} windows were cut from the recordings; they need no events.")]
    else:
        total = max(facts["presentations"], 1)
        lines = [["presentations in the events", f"{facts['presentations']:,}", "100 %"]]
        lines += [[f"left out: {why}", f"{n:,}", f"{100 * n / total:.2f} %"] for why, n in facts["left_out"].items()]
        lines += [["in the shards", f"{facts['kept']:,}", f"{100 * facts['kept'] / total:.2f} %"]]
        out = [page.table(["", "number", "share"], lines)]
    excluded = [[subject, why] for subject, why in facts["excluded_subjects"].items()]
    if excluded:
        out += ["<h3>Subjects left out</h3>", page.table(["subject", "reason"], excluded, wrap=True)]
    return out


def split(facts: dict[str, Any]) -> list[str]:
    """What each part holds, and what the parts share."""
    columns = ("samples", "repetitions", "subjects", "recordings", "concepts", "images")
    lines = [[part, *(f"{values[name]:,}" for name in columns)] for part, values in facts["parts"].items()]
    out = [page.table(["part", *columns], lines)]
    by, forbids = facts["split"]["by"], facts["split"]["forbids"]
    if facts["leaks"]:
        kinds = ("concepts", "images", "assigned", "subjects", "raw_time")
        header = ["parts", "concepts", "images", f"values of {by!r}", "subjects", "raw samples in time"]
        out += ["<h3>What parts share</h3>"]
        out += [page.table(header, [[pair, *(str(n[k]) for k in kinds)] for pair, n in facts["leaks"].items()])]
    rule = f"Split by {by}: parts may not share {', '.join(f'{what}s' for what in forbids) or 'sequences'}"
    return [*out, page.paragraph(f"{rule}, nor raw samples in time; both were checked on every repetition.", soft=True)]


def channels(facts: dict[str, Any], build: dict[str, Any], signals: Signals) -> list[str]:
    """Bad and interpolated channels by recording, and the standard deviation of all."""
    from ttd.pages import figures

    recorded = [report["sd_uv"] for report in build.get("channels", {}).values() if report["sd_uv"]]
    lines = [
        [
            name,
            "; ".join(f"{c}: {why}" for c, why in found["bad"].items()) or "–",
            ", ".join(found["interpolated"]) or "–",
        ]
        for name, found in facts["channels"].items()
    ]
    if lines:
        out = [page.table(["recording", "bad", "interpolated"], lines, wrap=True)]
    elif recorded:
        out = [page.paragraph(f"No channel of the {len(recorded)} recordings is bad, none was interpolated.")]
    else:
        out = [page.missing("The study came as epochs; its recordings were not looked at.")]
    by_channel = {n: [r[n] for r in recorded if n in r] or [s] for n, s in facts["signals"]["channel_sd_uv"].items()}
    what = "after the filters, median and range over recordings" if recorded else "of the epochs that were read"
    figure = figures.ranges(by_channel, ylabel="standard deviation, µV")
    return [*out, page.drawing(figure, "standard deviation by channel", f"Standard deviation by channel, {what}.")]


def drawings(facts: dict[str, Any], train: ShardIndex, signals: Signals) -> list[str]:
    """Evoked response with topographies, and the power spectrum."""
    from ttd.pages import figures

    out, n = [], signals.n_epochs
    if len(train.facts.caps) > 1:
        caps = ", ".join(f"{cap} ({len(names)})" for cap, names in train.facts.caps.items())
        out.append(page.paragraph(f"There are several caps: {caps}. The figures show the most frequent."))
    if facts["kind"] != "window":
        known = [row for row, name in enumerate(signals.ch_names) if is_electrode(name)]
        names, mean = [signals.ch_names[row] for row in known], signals.mean[known]
        caption = f"Average of {n} epochs of the training part, every electrode."
        if known:
            response = figures.evoked(mean, names, train.sfreq, train.tmin, n_averaged=n)
            drawn = page.drawing(figures.evoked_figure(response), "evoked response", caption, vector=False)
        else:
            drawn = page.missing("No channel is an electrode of the 10-05 system, so there is no map.")
        out += ["<h3>Evoked response</h3>", drawn]
    figure = figures.spectrum(signals.freqs, signals.power)
    caption = f"Power of {n} pieces of the training part: every channel, and their median."
    return [*out, "<h3>Power spectrum</h3>", page.drawing(figure, "power spectrum", caption)]
