"""THINGS-EEG1: 50 people saw 22,248 pictures of 1,854 concepts once each at 10 Hz, then 200 others 12 times each.

Grootswagers, Zhou, Robinson, Hebart and Carlson, 2022, "Human EEG recordings for 1,854 concepts presented in rapid
serial visual presentation streams", Scientific Data 9:3. OpenNeuro ds003825.

What the tables of the study contain, and what is done about it, stands in docs/studies.md: onsets in samples where BIDS
wants seconds, three layouts, concepts that are only in the file names, targets, excluded subjects, two odd caps. The
generic BIDS reader places every event a thousand times too late.
"""

from __future__ import annotations

import collections
import functools
import logging
import re
from pathlib import Path
from typing import Literal, NamedTuple

import mne
import numpy as np
import pandas as pd

from ttd.config import Config, UserError
from ttd.eeg import files, montage
from ttd.eeg.studies import annex
from ttd.eeg.studies.interface import Event, Recording, Study, eeg_only, read_signal_file

log = logging.getLogger(__name__)

SFREQ = 1000.0
"""Hz; what onsets in samples are counted in where the header is not there to say it."""
COLUMNS = ("onset", "object", "sequencenumber", "stim", "istarget")
"""The columns that all three layouts have and that are read."""
TOLERANCE = 2
"""Samples between an onset and its marker: one because markers count from 1, one for rounding."""
AGREEING = 0.99
"""Least share of onsets that have a marker; a few markers get lost in any long recording."""
FETCH = "python shards/fetch.py --study grootswagers2022"
N_MAIN = 12
"""Pictures of a concept in the main part, numbered from 01; the validation pictures have higher numbers."""
_PICTURE = re.compile(r"(?:.*[/\\])?(?P<image>(?P<concept>[A-Za-z0-9_-]+)_(?P<number>\d+)[a-z]\.[a-z]+)")


class Grootswagers2022Config(Config):
    """Where the BIDS folder and the pictures lie, and who is taken in."""

    name: Literal["grootswagers2022"] = "grootswagers2022"
    root: Path
    """The folder with participants.tsv and sub-01 … sub-50."""
    images: Path
    """The folder with one folder of pictures per THINGS concept: ``<concept>/<concept>_01b.jpg``."""
    subjects: list[str] | None = None
    """Labels without ``sub-``, as "02"; all where null."""
    include: tuple[str, ...] = ()
    """Subjects to take in although participants.tsv says ``exclude = 1``."""


class Grootswagers2022(Study):
    """The recordings of the subjects that are not excluded."""

    title = "Grootswagers2022"
    citation = "Grootswagers et al., 2022, Scientific Data 9:3, doi:10.18112/openneuro.ds003825.v1.1.0"
    licence = "CC0"
    download = f"OpenNeuro, https://openneuro.org/datasets/ds003825: {FETCH}"
    pictures = (
        "`python shards/fetch.py --study things_images` says how to get the THINGS images; set study.images to the folder "
        "that holds one folder per concept"
    )

    def __init__(self, config: Grootswagers2022Config):
        self.config, self.location = config, config.root
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; get it from {self.download}")
        self._promised = annex.read_table(config.root)
        self._reasons = self._excluded_by_table()
        self._picture_path: dict[str, Path] = {}  # by file name, so that all subjects share one object per picture
        folders = {path.name.removeprefix("sub-") for path in config.root.glob("sub-*") if path.is_dir()}
        links = {name.split("/")[0].removeprefix("sub-") for name in self._promised if name.startswith("sub-")}
        self._subjects = sorted(folders | links)
        unknown = sorted({*(config.subjects or []), *config.include} - set(self._subjects))
        if unknown:
            some = ", ".join(self._subjects[:8]) or "none"
            raise UserError(f"study: there is no subject {', '.join(unknown)} in {config.root}; there are {some} …")

    def recordings(self) -> list[Recording]:
        """One per subject, whether its signals have been downloaded or not.

        Raises:
            UserError: there is none.
        """
        left = self.excluded()
        chosen = [
            subject
            for subject in self._subjects
            if subject not in left and (self.config.subjects is None or subject in self.config.subjects)
        ]
        if not chosen:
            raise UserError(f"{self.config.root}: holds no subject that is not excluded; get it from {self.download}")
        return [
            Grootswagers2022Recording(self.config, subject, self._promised, self._picture_path) for subject in chosen
        ]

    def excluded(self) -> dict[str, str]:
        """Subjects with ``exclude = 1`` in participants.tsv, but for those of ``study.include``."""
        wanted = self.config.subjects
        return {
            subject: f"{reason}; study.include=['{subject}'] takes it in"
            for subject, reason in self._reasons.items()
            if subject not in self.config.include and (wanted is None or subject in wanted)
        }

    def _excluded_by_table(self) -> dict[str, str]:
        path = self.config.root / "participants.tsv"
        files.check_present(path)
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
        if "participant_id" not in table or "exclude" not in table:
            raise UserError(f"{path}: needs the columns participant_id and exclude, has {', '.join(table.columns)}")
        rows = table[table["exclude"] == "1"].to_dict("records")
        return {
            str(row["participant_id"]).removeprefix("sub-"): str(row.get("note_IZ") or "no reason given")
            for row in rows
        }


class Shown(NamedTuple):
    """The table of events, understood."""

    table: pd.DataFrame
    """All rows, with the columns onset_s, image, concept, validation and target added."""
    sfreq: float
    """Hz, of the recording that the table belongs to."""
    unit: str
    """What the onsets were found to be: samples or seconds."""
    n_columns: int


class Grootswagers2022Recording(Recording):
    """One continuous recording of about 50 minutes at 1000 Hz."""

    def __init__(
        self,
        config: Grootswagers2022Config,
        subject: str,
        promised: dict[str, annex.Content],
        picture_path: dict[str, Path],
    ):
        self._stem = f"sub-{subject}/eeg/sub-{subject}_task-rsvp"
        super().__init__(config.root / f"{self._stem}_eeg.vhdr", subject=subject)
        self._config, self._promised, self._picture_path = config, promised, picture_path

    def check(self) -> None:
        """Refuse signals that are absent, with the size and MD5 that the clone knows, and those that are cut short.

        Raises:
            UserError: naming subject, files and the remedy.
        """
        remedy = f"get it with `{FETCH} subjects=[{int(self.subject)}]`, or with `datalad get` in a clone of ds003825"
        absent, short = [], []
        for suffix in (".eeg", ".vhdr", ".vmrk"):
            path = self.path.with_suffix(suffix)
            content = annex.promised(path) or self._promised.get(f"{self._stem}_eeg{suffix}")
            if annex.is_absent(path):
                absent.append(f"{path.name} ({content})" if content else path.name)
            elif content and path.stat().st_size < content.size:
                short.append(f"{path.name} ({path.stat().st_size:,} of {content.size:,} bytes)")
        if absent:
            raise UserError(f"sub-{self.subject}: not downloaded: {', '.join(absent)}; {remedy}")
        if short:
            raise UserError(f"sub-{self.subject}: cut short: {', '.join(short)}; {remedy}")
        super().check()
        files.check_present(self._table_path)

    def raw(self) -> mne.io.BaseRaw:
        """The electrodes of the study's cap by name and in its order, in volts, whatever else was plugged in.

        Subjects 49 and 50, recorded with a 128-channel set-up, lack FCz, which was their reference.

        Raises:
            UserError: the files are damaged, or hold none of these electrodes.
        """
        self.check()
        raw = eeg_only(read_signal_file(self.path), self.path)
        starts = [note["onset"] for note in raw.annotations if note["description"].startswith("New Segment")]
        pauses = [onset for onset in starts if onset > raw.first_time]  # the recorder was stopped and started again
        raw.set_annotations(mne.Annotations(pauses, 0.0, "EDGE new segment"), verbose="ERROR")
        mne.rename_channels(raw.info, {name: montage.normalise_name(name) for name in raw.ch_names}, verbose="ERROR")
        cap = [name for name in montage.THINGS_EEG1_63 if name in raw.ch_names]
        if not cap:
            raise UserError(f"{self.path}: holds no electrode of the study's cap (found {', '.join(raw.ch_names[:8])})")
        if len(cap) < len(raw.ch_names):
            log.info("%s: %d channels are not part of the study's cap", self.path.name, len(raw.ch_names) - len(cap))
        return raw.pick(cap)

    def events(self) -> list[Event]:
        """All presentations but those at which the participant had to respond, in the order of time.

        The validation trials (200 pictures, 12 times each, at the end) are the part ``validation``, all others
        ``train``.

        Raises:
            UserError: the table is not one of this study, or its onsets are not where the markers are.
        """
        shown = self._shown()
        self._compare_with_markers(shown)
        rows = shown.table[~shown.table["target"]]
        columns = (rows[c] for c in ("onset_s", "image", "concept", "validation", "sequencenumber"))
        return [
            Event(
                onset_s=onset_s,
                image_id=image.partition(".")[0],
                concept=concept,
                image_path=self._picture_path.setdefault(image, self._config.images / concept / image),
                label=concept,
                part="validation" if validation else "train",
                sequence=sequence,
            )
            for onset_s, image, concept, validation, sequence in zip(*columns, strict=True)
        ]

    def left_out(self) -> collections.Counter[str]:
        """The targets: a response was due, in the main part and among the validation trials."""
        return self._facts[0]

    def remark(self) -> str:
        """Rows and layout of the table, unit of its onsets, and what the markers say."""
        return self._facts[1]

    @functools.cached_property
    def _facts(self) -> tuple[collections.Counter[str], str]:
        shown = self._shown()
        table = shown.table
        n, targets = int(table["validation"].sum()), int((table["target"] & ~table["validation"]).sum())
        left_out = {"target": targets, "target in a validation trial": int(table["target"].sum()) - targets}
        parts = f"{len(table) - n} in the main part, " + (f"{n} validation" if n else "no validation part")
        unit = f"onsets in {shown.unit}, {self._compare_with_markers(shown)}"
        remark = f"{len(table)} rows of {shown.n_columns} columns ({parts}), {unit}"
        return +collections.Counter(left_out), remark

    @property
    def _table_path(self) -> Path:
        return self._config.root / f"{self._stem}_events.tsv"

    def _shown(self) -> Shown:
        path = self._table_path
        files.check_present(path)
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise UserError(f"{path}: lacks the columns {', '.join(missing)}; it is no table of this study")
        if table.empty:
            raise UserError(f"{path}: holds no presentation")
        onset = pd.to_numeric(table["onset"], errors="coerce").to_numpy()
        if not np.isfinite(onset).all() or (np.diff(onset) <= 0).any():
            raise UserError(f"{path}: the onsets are not numbers that increase from row to row")
        # Pictures follow each other in 0.1 s or 100 samples.
        in_samples = float(np.median(np.diff(onset))) > 1 if len(onset) > 1 else float(onset[0]) > 1e4
        sfreq = _header_rate(self.path) or SFREQ
        table["onset_s"] = onset / sfreq if in_samples else onset
        names = table["stim"].str.extract(f"^{_PICTURE.pattern}$")
        if names.isna().any(axis=None):
            bad = table.loc[names["image"].isna(), "stim"].iloc[0]
            raise UserError(f"{path}: stim {bad!r} does not end in <concept>_<number><letter>.jpg")
        table["image"], table["concept"] = names["image"], names["concept"]
        table["validation"] = names["number"].astype(int) > N_MAIN
        if ((table["object"] == "-1") & ~table["validation"]).any():
            raise UserError(f"{path}: a validation trial (object -1) shows a picture of the main part")
        table["target"] = table["istarget"] == "1"
        added = ("onset_s", "image", "concept", "validation", "target")
        return Shown(table, sfreq, "samples" if in_samples else "seconds", len(table.columns) - len(added))

    def _compare_with_markers(self, shown: Shown) -> str:
        """How the onsets lie beside the markers E1 (stimulus on) of the recording, in a few words.

        Raises:
            UserError: they lie somewhere else.
        """
        path = self.path.with_suffix(".vmrk")
        if annex.is_absent(path):
            return "not compared with markers (not downloaded)"
        marked = np.sort(_markers(path, "E1")) - 1  # markers count samples from 1
        if not len(marked):
            return "not compared: the marker file has no E1"
        onset = np.rint(shown.table["onset_s"].to_numpy() * shown.sfreq).astype(int)
        following = np.searchsorted(marked, onset).clip(1, len(marked) - 1) if len(marked) > 1 else np.zeros(1, int)
        distance = np.minimum(np.abs(marked[following] - onset), np.abs(marked[following - 1] - onset))
        agreeing = int((distance <= TOLERANCE).sum())
        if agreeing < AGREEING * len(onset):
            raise UserError(
                f"{self._table_path}: taken as {shown.unit}, {len(onset) - agreeing} of {len(onset)} onsets have no marker "
                f"E1 within {TOLERANCE} samples (half of them are {int(np.median(distance))} or more away): the table "
                "does not belong to this recording"
            )
        return f"{agreeing} of them at markers"


def _header_rate(header: Path) -> float | None:
    """Sampling rate of a BrainVision header in Hz; None where it was not downloaded."""
    if annex.is_absent(header):
        return None
    match = re.search(r"^SamplingInterval\s*=\s*([\d.]+)", header.read_bytes().decode("latin-1"), re.MULTILINE)
    if match is None or not float(match[1]) > 0:
        raise UserError(f"{header}: the header gives no SamplingInterval; it is damaged")
    return 1e6 / float(match[1])


def _markers(path: Path, name: str) -> np.ndarray:
    """Positions of the markers with this description, blanks aside ("E  1"), in samples that count from 1."""
    found = re.findall(r"^Mk\d+=[^,]*,([^,]*),(\d+)", path.read_bytes().decode("latin-1"), re.MULTILINE)
    return np.array([int(place) for text, place in found if "".join(text.split()) == name], dtype=int)
