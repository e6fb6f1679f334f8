"""EEG Motor Movement/Imagery of PhysioNet: 109 people, 14 runs each, 64 electrodes, EDF+.

Schalk et al., 2004, "BCI2000", IEEE TBME 51:1034; Goldberger et al., 2000, "PhysioBank", Circulation 101:e215.

The annotations T0, T1 and T2 mean something else in each kind of run (``MEANING``). Three subjects (S088, S092, S100)
were recorded at 128 instead of 160 Hz: the rate is the header's, always.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import mne

from ttd.config import Config, UserError
from ttd.eeg import montage
from ttd.eeg.studies.interface import Event, Recording, Study, eeg_only, read_signal_file

NAMES = re.compile(r"S(?P<subject>\d{3})R(?P<run>\d{2})")

_FIST = ("rest", "left fist", "right fist")
_BOTH = ("rest", "both fists", "both feet")
MEANING: dict[str, tuple[str, ...]] = {
    "01": ("baseline, eyes open",),
    "02": ("baseline, eyes closed",),
    **{run: _FIST for run in ("03", "07", "11")},
    **{run: ("rest", *(f"{what}, imagined" for what in _FIST[1:])) for run in ("04", "08", "12")},
    **{run: _BOTH for run in ("05", "09", "13")},
    **{run: ("rest", *(f"{what}, imagined" for what in _BOTH[1:])) for run in ("06", "10", "14")},
}
"""What T0, T1 and T2 mean, run by run (the corpus' own description)."""


class Schalk2004Config(Config):
    """Where the folders S001 to S109 lie, and which recordings are meant."""

    name: Literal["schalk2004"] = "schalk2004"
    root: Path
    """The folder with S001/S001R01.edf …"""
    subjects: list[str] | None = None
    """Three digits each, as "001"; all where null."""
    runs: list[str] | None = None
    """Two digits each, as "03"; all where null."""


class Schalk2004(Study):
    """The runs ``SxxxRyy.edf`` below a folder."""

    title = "Schalk2004"
    citation = "Schalk et al., 2004, IEEE TBME 51:1034; Goldberger et al., 2000, Circulation 101:e215"
    licence = "ODC-By 1.0"
    download = "PhysioNet, https://physionet.org/content/eegmmidb/1.0.0/ (3.4 GB)"

    def __init__(self, config: Schalk2004Config):
        self.config, self.location = config, config.root
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; get the recordings from {self.download}")

    def recordings(self) -> list[Recording]:
        """The chosen runs, sorted by subject and run.

        Raises:
            UserError: there is none.
        """
        found: list[Recording] = []
        for path in sorted(self.config.root.glob("**/*.edf")):
            match = NAMES.match(path.name)
            if match is None:
                continue
            subject, run = match["subject"], match["run"]
            chosen = self.config.subjects is None or subject in self.config.subjects
            if chosen and (self.config.runs is None or run in self.config.runs):
                found.append(Schalk2004Recording(path, subject=subject, run=run))
        if not found:
            raise UserError(
                f"{self.config.root}: holds no S###R##.edf of the chosen subjects and runs; "
                f"get the recordings from {self.download}"
            )
        return sorted(found, key=lambda recording: (recording.subject, recording.run))


class Schalk2004Recording(Recording):
    """One run of one or two minutes."""

    def raw(self) -> mne.io.BaseRaw:
        """The 64 electrodes by their 10-05 names, in volts, at the rate of the header.

        Raises:
            UserError: the file is damaged, or a channel is no electrode.
        """
        self.check()
        raw = eeg_only(read_signal_file(self.path), self.path)
        mne.datasets.eegbci.standardize(raw)  # "Fc5." → "FC5"
        foreign = [name for name in raw.ch_names if not montage.is_electrode(name)]
        if foreign:
            raise UserError(f"{self.path}: channels that are no electrodes of the 10-05 system: {', '.join(foreign)}")
        return raw

    def events(self) -> list[Event]:
        """The beginnings of rest and movement, labelled by what the kind of run makes of them; no picture was shown."""
        self.check()
        annotations, found = read_signal_file(self.path).annotations, []
        for onset, text in zip(annotations.onset, annotations.description, strict=True):
            meaning = MEANING.get(self.run, ())
            number = int(text[1:]) if re.fullmatch(r"T[0-2]", text) else -1
            if not 0 <= number < len(meaning):
                raise UserError(f"{self.path}: annotation {text!r} at {onset:g} s does not belong to run {self.run}")
            label = meaning[number]
            found.append(Event(float(onset), image_id="", concept=label, image_path=None, label=label))
        return found
