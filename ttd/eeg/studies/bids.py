"""Any BIDS dataset with EEG in BrainVision, EDF, BDF or EEGLAB files, read through MNE-BIDS.

Pernet et al., 2019, "EEG-BIDS", Scientific Data 6:103. Pictures are named by ``stim_file`` of ``events.tsv`` and lie
under ``stimuli/``. Beyond the standard, the columns ``image_id``, ``concept``, ``label`` and ``part`` are read where
they exist. Tables may begin with a byte-order mark.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Literal

import mne
import mne_bids
import pandas as pd

from ttd.config import Config, UserError
from ttd.eeg import files, montage
from ttd.eeg.studies.interface import Event, Recording, Study, eeg_only, reading

SUFFIXES = [".vhdr", ".edf", ".bdf", ".set"]
_ABSENT = ("", "n/a")


class BIDSConfig(Config):
    """Where a BIDS dataset lies, and which of its recordings are meant."""

    name: Literal["bids"] = "bids"
    root: Path
    """The folder with dataset_description.json."""
    title: str = ""
    """Author and year of the study, as Grootswagers2022; the dataset's own name where empty."""
    subjects: list[str] | None = None
    """Labels without ``sub-``; all where null."""
    tasks: list[str] | None = None
    """Labels without ``task-``; all where null."""
    trial_types: list[str] | None = None
    """Rows of events.tsv that are presentations; every row with a picture where null."""


class BIDS(Study):
    """The recordings and events of a BIDS dataset."""

    def __init__(self, config: BIDSConfig):
        self.config, self.location = config, config.root
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; give the folder of a BIDS dataset")
        path = config.root / "dataset_description.json"
        if not path.is_file():
            raise UserError(f"{config.root}: holds no dataset_description.json, so it is not a BIDS dataset")
        try:
            facts = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON: {error}") from error
        self.title = config.title or str(facts.get("Name") or config.root.name)
        self.citation = str(facts.get("HowToAcknowledge") or facts.get("DatasetDOI") or self.title)
        self.licence = str(facts.get("License") or "not stated")
        self.simulated = facts.get("Simulated") is True

    def recordings(self) -> list[Recording]:
        """All EEG recordings, sorted by subject, session and run.

        Raises:
            UserError: there is none.
        """
        paths = mne_bids.find_matching_paths(
            self.config.root,
            subjects=self.config.subjects,
            tasks=self.config.tasks,
            suffixes="eeg",
            datatypes="eeg",
            extensions=SUFFIXES,
        )
        if not paths:
            chosen = f" for subjects {self.config.subjects}" if self.config.subjects else ""
            raise UserError(f"{self.config.root}: holds no EEG recording ({', '.join(SUFFIXES)}){chosen}")
        found: list[Recording] = [BIDSRecording(path, self.config) for path in paths]
        return sorted(found, key=lambda recording: (recording.subject, recording.session, recording.run))


class BIDSRecording(Recording):
    """One ``*_eeg`` file with its sidecars."""

    def __init__(self, path: mne_bids.BIDSPath, config: BIDSConfig):
        super().__init__(path.fpath, subject=path.subject, session=path.session or "", run=path.run or path.task or "")
        self._bids, self._config = path, config

    def raw(self) -> mne.io.BaseRaw:
        """EEG channels by channels.tsv, in volts; of the annotations only those that mark bad stretches."""
        self.check()
        with reading(self.path):
            raw = mne_bids.read_raw_bids(self._bids, verbose="ERROR")
        raw = eeg_only(raw, self.path)
        keep = [i for i, text in enumerate(raw.annotations.description) if text.upper().startswith(("BAD", "EDGE"))]
        raw.set_annotations(raw.annotations[keep], verbose="ERROR")
        mne.rename_channels(raw.info, {name: montage.normalise_name(name) for name in raw.ch_names}, verbose="ERROR")
        return raw

    def events(self) -> list[Event]:
        """The rows of events.tsv that show a picture; none where the file does not exist.

        Raises:
            UserError: a column or value is missing, or a picture is absent or outside ``stimuli/``.
        """
        path = self._bids.copy().update(suffix="events", extension=".tsv").fpath
        if not path.exists() and not path.is_symlink():
            return []
        files.check_present(path)
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
        if "onset" not in table or "stim_file" not in table:
            raise UserError(f"{path}: needs the columns onset and stim_file, has {', '.join(table.columns)}")
        found = []
        for row in table.to_dict("records"):
            chosen = self._config.trial_types is None or row.get("trial_type") in self._config.trial_types
            if row["stim_file"] not in _ABSENT and chosen:
                found.append(self._event({str(key): str(value) for key, value in row.items()}, path))
        return sorted(found, key=lambda event: event.onset_s)

    def _event(self, row: dict[str, str], path: Path) -> Event:
        try:
            onset_s = float(row["onset"])
        except ValueError as error:
            raise UserError(f"{path}: onset {row['onset']!r} is not a number of seconds") from error
        place = PurePosixPath(row["stim_file"].replace("\\", "/"))  # some datasets were written under Windows
        place = place.relative_to("stimuli") if place.parts[:1] == ("stimuli",) else place
        if place.is_absolute() or ".." in place.parts or ":" in str(place):
            raise UserError(f"{path}: stim_file {row['stim_file']!r} must lie below stimuli/")

        def value(column: str, otherwise: str) -> str:
            return row[column] if row.get(column, "") not in _ABSENT else otherwise

        concept = value("concept", place.parent.name or value("trial_type", place.stem))
        part = value("part", "") or None
        if part not in (None, "train", "validation", "test"):
            raise UserError(f"{path}: part {part!r} must be train, validation or test")
        return Event(
            onset_s=onset_s,
            image_id=value("image_id", place.stem),
            concept=concept,
            image_path=self._config.root / "stimuli" / place,
            label=value("label", value("trial_type", concept)),
            part=part,
        )
