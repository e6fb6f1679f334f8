"""From the presentations of a study to paired samples: the part of each, its clean epoch, one sample per picture.

A sample is one picture seen by one subject within one part of the split, with all its repetitions. Where a study pairs
by class alone (which picture was seen is not known), every presentation is a sample of its own.

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from ttd.config import Config, UserError
from ttd.data.ingest import StudyWriter
from ttd.data.overlap import read_concepts
from ttd.data.splits import By, recording_name, some_of
from ttd.eeg import epochs, stored
from ttd.eeg.channels import ChannelReport
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.montage import cap_name
from ttd.eeg.preprocessing import PreprocessingConfig, preprocess
from ttd.eeg.studies import EpochedRecording, Event, Recording

Presentation = tuple[Recording, Event]


class PartsConfig(Config):
    """Which part of the split a presentation belongs to."""

    by: By = "given"
    """``given``: the study's own column ``part``. Otherwise what the two lists below name; all else is training."""
    validation: tuple[str, ...] = ()
    """Concepts, subjects, sessions, runs or sequences, in full ("subject/session/run/sequence" and its beginnings) or by
    the last word. Where concepts are meant, the name of a concept list (configs/splits) stands for all of them."""
    test: tuple[str, ...] = ()
    unseen: tuple[str, ...] | None = None
    """Concepts that training and validation may not see, or the name of a concept list: their presentations there are
    left out and counted. The concepts of another study's test part belong here before models are tested on it."""
    gap_s: float | None = Field(default=None, ge=0)
    """Presentations for training whose epoch comes nearer than this to one for validation or test, and those for
    validation near one for test, are left out and counted. Nothing is left out where null; then overlap is refused."""

    @field_validator("validation", "test", "unseen", mode="before")
    @classmethod
    def _from_a_list(cls, value: Any) -> Any:
        return read_concepts(Path(value)) if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _lists_fit(self) -> PartsConfig:
        if self.by == "given" and (self.validation or self.test):
            raise ValueError("by='given' reads the study's own column; leave validation and test empty")
        twice = sorted(set(self.validation) & set(self.test))
        if twice:
            raise ValueError(f"{', '.join(twice)} stand in validation and in test")
        return self

    def value(self, recording: Recording, event: Event) -> str:
        """What the split goes by, as the manifest writes it."""
        run = recording_name(recording.subject, recording.session, recording.run)
        return {
            "given": event.image_id,
            "concept": event.concept,
            "subject": recording.subject,
            "session": run.rpartition("/")[0],
            "run": run,
            "sequence": f"{run}/{event.sequence}",
        }[self.by]

    def names(self, recording: Recording, event: Event) -> set[str]:
        """Both ways in which the lists may name a presentation: in full, or by the last word alone."""
        value = self.value(recording, event)
        return {value, value.rpartition("/")[2]}

    def part(self, recording: Recording, event: Event) -> str:
        """train, validation or test; empty where the study should say it and does not."""
        if self.by == "given":
            return event.part or ""
        names = self.names(recording, event)
        return "test" if names & self._sets["test"] else "validation" if names & self._sets["validation"] else "train"

    def assign(self, recording: Recording, events: Sequence[Event], epoch: EpochsConfig) -> list[tuple[str, str]]:
        """(part, reason) of each presentation of a recording: the reason is empty unless it is left out of its part."""
        parts = [self.part(recording, event) for event in events]
        reasons = [
            "concept of the test" if part != "test" and event.concept in self._sets["unseen"] else ""
            for part, event in zip(parts, events, strict=True)
        ]
        if self.gap_s is not None:
            onsets = np.array([event.onset_s for event in events])
            rank = np.array([("train", "validation", "test").index(part) for part in parts])
            kept = np.array([not reason for reason in reasons], dtype=bool)
            too_near = epoch.tmax - epoch.tmin + self.gap_s + 1e-9  # epochs that touch share a sample
            for higher in (2, 1):  # test first: what validation loses to it costs training nothing
                others = np.sort(onsets[(rank == higher) & kept])
                if not len(others):
                    continue
                after = np.searchsorted(others, onsets).clip(0, len(others) - 1)
                distance = np.minimum(np.abs(others[after] - onsets), np.abs(others[np.maximum(after - 1, 0)] - onsets))
                for i in np.flatnonzero(kept & (rank < higher) & (distance < too_near)):
                    reasons[i], kept[i] = f"within {self.gap_s:g} s of another part", False
        return list(zip(parts, reasons, strict=True))

    def problems(self, presentations: Iterable[Presentation], *, whole: bool = True) -> list[str]:
        """Why these presentations cannot be split this way, one sentence each; those of a portion of a study need not show all
        that is asked for."""
        presentations = list(presentations)
        if self.by == "given" and any(event.part is None for _, event in presentations):
            return ["parts.by=given: the events have no column part; split by concept, session, subject or run instead"]
        if self.by == "sequence" and any(not event.sequence for _, event in presentations):
            return ["parts.by=sequence: this study numbers no sequences; split by concept, session, subject or run"]
        return [line + hint for line, hint in self.lacking(presentations).items()] if whole else []

    def lacking(self, presentations: Iterable[Presentation]) -> dict[str, str]:
        """What is asked for and occurs in none of these presentations, a sentence each with what to say after it."""
        presentations = list(presentations)
        found = {}
        if not any(self.part(*presentation) == "train" for presentation in presentations):
            found["parts: nothing is left for training"] = ""
        if self.by != "given":
            known = {name for presentation in presentations for name in self.names(*presentation)}
            there = f"; there are {some_of(sorted(known), 8)}"
            found |= {
                f"parts: no {self.by} is called {n}": there for n in sorted({*self.validation, *self.test} - known)
            }
        if self.unseen and not self._sets["unseen"] & {event.concept for _, event in presentations}:
            found[f"parts.unseen: the study shows none of these concepts ({some_of(self.unseen)})"] = ""
        return found

    @functools.cached_property
    def _sets(self) -> dict[str, frozenset[str]]:
        lists = {"validation": self.validation, "test": self.test, "unseen": self.unseen or ()}
        return {name: frozenset(values) for name, values in lists.items()}


@dataclass(frozen=True)
class Piece:
    """One clean epoch of one presentation."""

    recording: Recording
    event: Event
    number: int
    """Of the presentation within its recording."""
    eeg: np.ndarray
    """float16 [C, T] in µV."""
    ch_names: list[str]

    @property
    def group(self) -> tuple[str, str, str]:
        """Cap, picture, and a name of its own where the pairing is by class: what repetitions of one sample share."""
        own = "" if self.event.pairing == "image" else f"{self.recording.name}_event-{self.number:04d}"
        return cap_name(self.ch_names), self.event.image_id, own


def pieces(
    recording: Recording,
    preprocessing: PreprocessingConfig,
    config: EpochsConfig,
    dropped: collections.Counter[str],
    channels: dict[str, ChannelReport],
) -> Iterator[Piece]:
    """The clean epochs of one recording; what was left out is added to ``dropped``, what its channels are like to
    ``channels``.

    Raises:
        UserError: the recording is damaged, or its events do not lie in it.
    """
    events = recording.events()
    if isinstance(recording, EpochedRecording):
        channels[recording.name] = ChannelReport()
        names = stored.ch_names(recording, preprocessing)
        for i, eeg in stored.each(recording, preprocessing, config, dropped=dropped):
            yield Piece(recording, events[i], i, eeg.astype(np.float16), names)
        return
    clean = preprocess(recording.raw(), preprocessing, name=recording.path, exact_onsets=True)
    channels[recording.name] = clean.channels
    onsets = [event.onset_s for event in events]
    try:
        for i, eeg in epochs.each(clean, onsets, config, sfreq=preprocessing.sfreq, dropped=dropped):
            yield Piece(recording, events[i], i, eeg.astype(np.float16), clean.ch_names)
    except UserError as error:
        raise UserError(f"{recording.path}: {error}") from error


class Pictures:
    """The sha256 of pictures; each file is read once."""

    def __init__(self) -> None:
        self._sha256: dict[Path, str] = {}

    def read(self, event: Event) -> str:
        """The sha256 of an event's picture.

        Raises:
            UserError: it has no file.
        """
        path = event.image_path
        if path is None or not path.is_file():
            raise UserError(
                f"{path or event.image_id}: a picture named by the events is not there; put the stimuli there"
            )
        if path not in self._sha256:
            self._sha256[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._sha256[path]


class Waiting:
    """The pieces of one subject until all repetitions of its pictures are there, on disk.

    Memory holds where each lies: a subject of THINGS-EEG1 has 0.7 GB of them. Samples are then written sorted by
    picture, repetitions in the order of time.
    """

    def __init__(self, folder: Path, *, n_times: int):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self._n_times = n_times
        self._groups: dict[str, dict[tuple[str, str, str], list[tuple[Piece, int]]]] = {}

    def add(self, part: str, piece: Piece) -> None:
        """Keep one piece for later."""
        groups = self._groups.setdefault(part, collections.defaultdict(list))
        groups[piece.group].append((dataclasses.replace(piece, eeg=np.empty(0, np.float16)), self._file.tell()))
        self._file.write(piece.eeg.tobytes())

    def write(self, writer: StudyWriter, pictures: Pictures) -> None:
        """Write the samples of all parts and forget them."""
        self._file.flush()
        for part, groups in sorted(self._groups.items()):
            for group, members in sorted(groups.items(), key=lambda item: item[0]):
                shape = (len(members[0][0].ch_names), self._n_times)
                size = 2 * shape[0] * shape[1]
                read = [os.pread(self._file.fileno(), size, offset) for _, offset in members]
                eeg = np.stack([np.frombuffer(content, np.float16).reshape(shape) for content in read])  # [R, C, T]
                _write_sample(writer, part, group, [piece for piece, _ in members], eeg, pictures)
        self._groups.clear()
        self._file.seek(0)
        self._file.truncate()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _write_sample(
    writer: StudyWriter,
    part: str,
    group: tuple[str, str, str],
    members: list[Piece],
    eeg: np.ndarray,
    pictures: Pictures,
) -> None:
    (cap, image_id, own), recording, event = group, members[0].recording, members[0].event
    sha256 = pictures.read(event)
    meta = {
        "subject": recording.subject,
        "cap": cap,
        "sessions": [piece.recording.session for piece in members],
        "runs": [piece.recording.run for piece in members],
        "onsets": [piece.event.onset_s for piece in members],
        "image_id": image_id,
        "concept": event.concept,
        "label": event.label,
        "image_sha256": sha256,
        "pairing": event.pairing,
    }
    key = re.sub(r"[^A-Za-z0-9_=+-]", "-", own or f"sub-{recording.subject}_{part}_{image_id}")
    writer.write(part, key, eeg, members[0].ch_names, meta)
    assert event.image_path is not None  # ``pictures.read`` looked
    writer.add_image(sha256, event.image_path, {"image_id": image_id, "concept": event.concept})
