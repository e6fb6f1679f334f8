"""Loose recordings (EDF, BDF, BrainVision, EEGLAB, FIF) without events: what pretraining reads.

Subject, session and run are found in the file names, by default as PhysioNet writes them (``S001R03.edf``);
electrodes are told by name, whatever the recorder's spelling.
"""

from __future__ import annotations

import collections
import logging
import re
from pathlib import Path
from typing import Literal

import mne
from pydantic import field_validator

from ttd.config import Config, UserError
from ttd.eeg import files, montage
from ttd.eeg.studies.interface import Event, Recording, Study, eeg_only, read_signal_file

log = logging.getLogger(__name__)

SHOWN = 5


class RecordingsConfig(Config):
    """Where loose recordings lie and how their names are read."""

    name: Literal["recordings"] = "recordings"
    root: Path
    pattern: str = "**/*"
    """Glob below ``root``; of what it finds, files of the formats named above are taken, hidden ones left alone."""
    names: str = r"S(?P<subject>\d+)R(?P<run>\d+)"
    """Regular expression with the groups subject and, where there are any, session and run; searched in the file
    name."""
    title: str
    """Author and year of the study, as Schalk2004."""
    citation: str = ""
    licence: str = "not stated"
    subjects: list[str] | None = None
    runs: list[str] | None = None
    """Which runs to take; all where null."""

    @field_validator("names")
    @classmethod
    def _has_a_subject(cls, names: str) -> str:
        try:
            groups = re.compile(names).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if "subject" not in groups:
            raise ValueError("must hold a group (?P<subject>…)")
        return names


class Recordings(Study):
    """All files below a folder that match a pattern."""

    def __init__(self, config: RecordingsConfig):
        self.config, self.location = config, config.root
        self.title, self.citation, self.licence = config.title, config.citation or config.title, config.licence
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; give the folder that holds the recordings")

    def recordings(self) -> list[Recording]:
        """Matching files, sorted by subject, session and run.

        Raises:
            UserError: none matches, or a name does not say whose recording it is.
        """
        found: list[Recording] = []
        foreign: list[Path] = []
        paths = [
            path
            for path in sorted(self.config.root.glob(self.config.pattern))
            if path.suffix.lower() in files.SIGNAL_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(self.config.root).parts)
        ]
        for path in paths:
            match = re.search(self.config.names, path.name)
            if not match:
                foreign.append(path)
                continue
            entities = match.groupdict(default="")
            subject, run = entities["subject"], entities.get("run", "")
            chosen = self.config.subjects is None or subject in self.config.subjects
            if chosen and (self.config.runs is None or run in self.config.runs):
                found.append(LooseRecording(path, subject=subject, session=entities.get("session", ""), run=run))
        if foreign:
            some = ", ".join(str(path.relative_to(self.config.root)) for path in foreign[:SHOWN])
            more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
            raise UserError(
                f"{self.config.root}: {len(foreign)} of {len(paths)} recordings have names without study.names="
                f"{self.config.names!r}: {some}{more}; adapt study.names, or leave them out by study.pattern"
            )
        if not paths:
            raise UserError(
                f"{self.config.root}: study.pattern={self.config.pattern!r} finds no recording "
                f"({', '.join(files.SIGNAL_SUFFIXES)}); give the folder that holds them, or adapt study.pattern"
            )
        if not found:
            raise UserError(
                f"{self.config.root}: none of {len(paths)} recordings belongs to study.subjects={self.config.subjects} and "
                f"study.runs={self.config.runs}; as study.names reads them, {paths[0].name} is of "
                f"{re.search(self.config.names, paths[0].name).groupdict()}"  # type: ignore[union-attr]
            )
        return sorted(found, key=lambda recording: (recording.subject, recording.session, recording.run))


class LooseRecording(Recording):
    """One file that stands for itself."""

    def raw(self) -> mne.io.BaseRaw:
        """Channels that are electrodes of the 10-05 system, in volts; others are left out and named in the log.

        Raises:
            UserError: the file is damaged, holds no electrode, or one electrode twice.
        """
        self.check()
        raw = eeg_only(read_signal_file(self.path), self.path)
        names = {name: montage.normalise_name(name) for name in raw.ch_names}
        foreign = [name for name in raw.ch_names if not montage.is_electrode(names[name])]
        if len(foreign) == len(names):
            raise UserError(f"{self.path}: no channel is an electrode of the 10-05 system (found {', '.join(names)})")
        if foreign:
            log.info("%s: left out channels that are no electrodes: %s", self.path.name, ", ".join(foreign))
            raw.drop_channels(foreign)
        twice = [name for name, n in collections.Counter(names[old] for old in raw.ch_names).items() if n > 1]
        if twice:
            raise UserError(f"{self.path}: electrodes occur twice under different spellings: {', '.join(twice)}")
        mne.rename_channels(raw.info, {name: names[name] for name in raw.ch_names}, verbose="ERROR")
        return raw

    def events(self) -> list[Event]:
        """None: loose recordings are read for pretraining."""
        return []
