"""EEG-ImageNet40 (Spampinato et al., 2017, CVPR, arXiv:1609.00344): six people, 40 classes, 50 pictures of each.

Shown in blocks of one class, so that the class is confounded with the time of recording: a classifier of slow drifts does
as well as one of pictures (Li et al., 2021, IEEE TPAMI 43:316, arXiv:1812.07697). Read for compatibility, never for a
headline.

``eeg_*_std.pth`` holds ``dataset`` (a list of trials: eeg [C, T], image, label, subject), ``labels`` and ``images``;
``block_splits_*.pth`` the numbers of the trials of each part.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ttd.config import Config, UserError
from ttd.eeg import files
from ttd.eeg.studies.interface import Epoched, EpochedRecording, Event, Recording, Study, foreign
from ttd.untrusted import read_torch

log = logging.getLogger(__name__)

SFREQ = 1000.0
LENGTHS = (450, 600)
"""Samples that a trial must have to be used, as all published code does it."""
CROP = (20, 460)
"""Samples used of each: the first 20 ms may still belong to the picture before."""
N_CHANNELS = 128
WARNING = (
    "Spampinato2017 was shown in blocks of one class: its published splits share blocks between training and test, so that "
    "slow drifts tell the class. Do not report results on it as decoding of pictures (Li et al., 2021, arXiv:1812.07697)"
)
PARTS = {"train": "train", "val": "validation", "test": "test"}
IMAGE = re.compile(r"(n\d+)_\d+")


class Spampinato2017Config(Config):
    """Where the trials, the splits and the pictures lie."""

    name: Literal["spampinato2017"] = "spampinato2017"
    root: Path
    """Holds the files below, and images/ with ILSVRC pictures as images/n02106662/n02106662_13.JPEG."""
    signals: str = Field(default="eeg_5_95_std.pth", pattern=r"^[\w.-]+\.pth$")
    """Which band: eeg_5_95_std.pth, eeg_14_70_std.pth or eeg_55_95_std.pth."""
    splits: str = Field(default="block_splits_by_image_all.pth", pattern=r"^[\w.-]+\.pth$")
    split: int = Field(default=0, ge=0)
    """Number of the split in that file."""
    subjects: list[str] | None = None
    """Labels "1" to "6"; all where null."""


class Spampinato2017(Study):
    """The trials of one file, subject by subject, split as its authors did."""

    title = "Spampinato2017"
    citation = "Spampinato et al., 2017, CVPR, arXiv:1609.00344; on its design Li et al., 2021, arXiv:1812.07697"
    licence = "not stated by its authors"
    download = (
        "https://github.com/perceivelab/eeg_visual_classification names the place of the signals and splits; "
        "the pictures are those of ILSVRC 2012"
    )
    pictures = "put the ILSVRC 2012 pictures under images/<synset>/ of study.root"

    def __init__(self, config: Spampinato2017Config):
        self.config, self.location = config, config.root
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; get it: {self.download}")
        warn()

    def recordings(self) -> list[Recording]:
        """One per subject.

        Raises:
            UserError: a file is missing or damaged, or no trial belongs to the subjects.
        """
        trials = Trials(self.config)
        known = sorted({str(trial["subject"]) for trial in trials.content["dataset"]})
        chosen = [name for name in known if self.config.subjects is None or name in self.config.subjects]
        if not chosen:
            raise UserError(f"study.subjects={self.config.subjects}: no trials; there are {', '.join(known)}")
        return [SubjectTrials(trials, name) for name in chosen]


@functools.cache
def warn() -> None:
    """Say once what is wrong with the design."""
    log.warning(WARNING)


class Trials:
    """Both files, checked."""

    def __init__(self, config: Spampinato2017Config):
        self.config, self.path = config, config.root / config.signals
        files.check_present(self.path)
        files.check_present(config.root / config.splits)

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """The dictionary of the signals.

        Raises:
            UserError: it is another file.
        """
        with foreign():
            found = read_torch(self.path)
        try:
            n_labels, n_images = len(found["labels"]), len(found["images"])
            for i, trial in enumerate(found["dataset"]):
                eeg = trial["eeg"]
                if not isinstance(eeg, np.ndarray) or eeg.ndim != 2 or len(eeg) != N_CHANNELS or eeg.dtype.kind != "f":
                    raise ValueError(f"trial {i}: eeg is no array [{N_CHANNELS}, T] of numbers")
                numbers = (int(trial["image"]), int(trial["label"]), int(trial["subject"]))
                if not (0 <= numbers[0] < n_images and 0 <= numbers[1] < n_labels and numbers[2] > 0):
                    raise ValueError(f"trial {i}: image, label or subject {numbers} is out of range")
            strange = [str(name) for name in found["images"] if not IMAGE.fullmatch(str(name))]
            if strange or not found["dataset"]:
                raise ValueError(f"no trials, or {strange[:1]} is no name of a picture of ILSVRC")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{self.path}: not a file of EEG-ImageNet40: {error}") from error
        return found

    @functools.cached_property
    def part(self) -> dict[int, str]:
        """Number of a trial → its part.

        Raises:
            UserError: another file, no split of this number, or a trial in two parts.
        """
        path = self.config.root / self.config.splits
        with foreign():
            found = read_torch(path)
        n_trials, parts = len(self.content["dataset"]), {}
        try:
            splits = found["splits"]
            if self.config.split >= len(splits):
                raise UserError(f"study.split={self.config.split}: {path} has {len(splits)} splits")
            for name, part in PARTS.items():
                for i in map(int, splits[self.config.split][name]):
                    if not 0 <= i < n_trials or i in parts:
                        raise ValueError(f"trial {i} does not exist or is in two parts")
                    parts[i] = part
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the splits of {self.path.name}: {error}") from error
        return parts

    @functools.cached_property
    def digest(self) -> str:
        return files.content_hash([self.path])


class SubjectTrials(EpochedRecording):
    """What one subject saw. Times are not kept: an event's onset is the place of its trial in the file, in seconds."""

    def __init__(self, trials: Trials, subject: str):
        super().__init__(trials.path, subject=subject)
        self._trials = trials

    def check(self) -> None:
        super().check()
        _ = self._trials.part

    def content_hash(self) -> str:
        """All subjects share a file, so the subject belongs to its identity."""
        return hashlib.sha256(f"{self._trials.digest} {self.subject}".encode()).hexdigest()

    def _chosen(self) -> tuple[list[int], collections.Counter[str]]:
        chosen, why = [], collections.Counter[str]()
        for i, trial in enumerate(self._trials.content["dataset"]):
            if str(trial["subject"]) != self.subject:
                continue
            length = trial["eeg"].shape[1]
            if not LENGTHS[0] <= length <= LENGTHS[1]:
                why[f"not {LENGTHS[0]} to {LENGTHS[1]} samples long"] += 1
            elif length < CROP[1]:  # published code cuts these short in silence
                why[f"shorter than {CROP[1]} samples"] += 1
            elif i not in self._trials.part:
                why["in no part of the split"] += 1
            else:
                chosen.append(i)
        return chosen, why

    def left_out(self) -> collections.Counter[str]:
        return self._chosen()[1]

    def events(self) -> list[Event]:
        found, content = [], self._trials.content
        for i in self._chosen()[0]:
            trial = content["dataset"][i]
            name, synset = content["images"][int(trial["image"])], str(content["labels"][int(trial["label"])])
            if name.partition("_")[0] != synset:
                raise UserError(f"{self.path}: trial {i} shows {name} under the label {synset}")
            path = self._trials.config.root / "images" / synset / f"{name}.JPEG"
            found.append(Event(float(i), name, synset, path, synset, self._trials.part[i]))
        return found

    def epoched(self) -> Epoched:
        names = [f"E{i + 1:03d}" for i in range(N_CHANNELS)]  # the file names no electrodes
        n_times, dataset, (first, stop) = CROP[1] - CROP[0], self._trials.content["dataset"], CROP

        def rows() -> Iterator[np.ndarray]:
            for i in self._chosen()[0]:
                yield dataset[i]["eeg"][:, first:stop]

        return Epoched(names, SFREQ, first / SFREQ, n_times, "standard deviations", rows())
