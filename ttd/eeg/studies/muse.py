"""The Muse P300 recordings of NeuroTechX' eeg-notebooks: four dry electrodes, a CSV per recording, two classes of
pictures.

Markers sit on samples: 1 a non-target, 2 a target picture. Which picture of the class was shown was not logged, so
trials are paired *by class*: each takes a picture of its class in turn, and says so. Time stamps jitter and may have
gaps, so everything is indexed by sample; a gap becomes an annotation ``BAD_gap``, and epochs that span it are left
out and counted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import mne
import numpy as np
import pandas as pd

from ttd.config import Config, UserError
from ttd.eeg import files
from ttd.eeg.montage import MUSE_4
from ttd.eeg.studies.interface import Event, Recording, Study, reading

SFREQ = 256.0
MARKERS = {1: "nontarget", 2: "target"}
GAP_S = 0.02
"""Five samples: longer than any jitter of the time stamps."""


class MuseP300Config(Config):
    """Where the folder with ``subject*/session*/data_*.csv.gz`` and ``stimuli/`` lies."""

    name: Literal["muse_p300"] = "muse_p300"
    root: Path


class MuseP300(Study):
    """CSV recordings below ``subject*/session*/`` and the pictures of both classes in ``stimuli/``."""

    title = "Barachant2017"
    citation = "Barachant, Banville, Holdgraf and Morrison, 2017: NeuroTechX eeg-notebooks, visual P300"
    licence = "BSD-3-Clause (EEG), CC0 (pictures)"

    def __init__(self, config: MuseP300Config):
        self.config, self.location = config, config.root
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; give the folder with subject1/ and stimuli/")
        self.by_label = {
            label: sorted(p for p in (config.root / "stimuli").glob(f"{label}-*") if p.suffix in (".jpg", ".png"))
            for label in MARKERS.values()
        }
        absent = [label for label, paths in self.by_label.items() if not paths]
        if absent:
            raise UserError(f"{config.root / 'stimuli'}: holds no picture named {absent[0]}-*.jpg")

    def recordings(self) -> list[Recording]:
        """All recordings, sorted by subject, session and time; the time in the file name is the run.

        Raises:
            UserError: there is none.
        """
        found: list[Recording] = []
        for path in sorted(self.config.root.glob("subject*/session*/*.csv.gz")):
            subject, session = (re.sub(r"\D", "", part) for part in path.parts[-3:-1])
            run = path.name.removesuffix(".csv.gz").removeprefix("data_")
            found.append(MuseRecording(path, self.by_label, subject=subject, session=session, run=run))
        if not found:
            raise UserError(f"{self.config.root}: holds no recording subject*/session*/*.csv.gz")
        return found


class MuseRecording(Recording):
    """One CSV file: time stamps, four electrodes in µV, an auxiliary channel that is dropped, and the marker."""

    def __init__(self, path: Path, pictures: dict[str, list[Path]], **entities: str):
        super().__init__(path, **entities)
        self._pictures = pictures
        self._table: pd.DataFrame | None = None

    def check(self) -> None:
        """Refuse a file that is absent, empty or not compressed."""
        files.check_present(self.path)
        with self.path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                raise UserError(f"{self.path}: not a gzip file; download it again in binary mode")

    def raw(self) -> mne.io.BaseRaw:
        """TP9, AF7, AF8, TP10 in volts; gaps of the time stamps as annotations ``BAD_gap``."""
        table = self._read()
        info = mne.create_info(list(MUSE_4), SFREQ, "eeg")
        raw = mne.io.RawArray(table[list(MUSE_4)].to_numpy().T * 1e-6, info, verbose="ERROR")
        before = np.flatnonzero(np.diff(table["timestamps"].to_numpy()) > GAP_S)  # last sample before each gap
        annotations = mne.Annotations(before / SFREQ, np.full(len(before), 1 / SFREQ), ["BAD_gap"] * len(before))
        return raw.set_annotations(annotations, verbose="ERROR")

    def events(self) -> list[Event]:
        """Every marked sample, each with a picture of its class, in turn."""
        marker = self._read()["marker"].to_numpy()
        turn = dict.fromkeys(MARKERS.values(), 0)
        found = []
        for sample in np.flatnonzero(marker):
            label = MARKERS[int(marker[sample])]
            picture = self._pictures[label][turn[label] % len(self._pictures[label])]
            turn[label] += 1
            onset_s = float(sample / SFREQ)
            found.append(Event(onset_s, picture.stem, label, picture, label, pairing="class"))
        return found

    def _read(self) -> pd.DataFrame:
        if self._table is None:
            self.check()
            with reading(self.path):
                table = pd.read_csv(self.path)
            markers = [name for name in table.columns if name.startswith("Marker")]
            absent = [name for name in ("timestamps", *MUSE_4) if name not in table]
            if absent or len(markers) != 1:
                raise UserError(f"{self.path}: needs the columns timestamps, {', '.join(MUSE_4)} and one Marker…")
            table = table.rename(columns={markers[0]: "marker"})[["timestamps", *MUSE_4, "marker"]]
            numbers = all(pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes)
            if not numbers or table.isna().any(axis=None) or not set(table["marker"]) <= {0, *MARKERS}:
                raise UserError(f"{self.path}: holds a value that is no number, or a marker other than 0, 1 and 2")
            self._table = table
        return self._table
