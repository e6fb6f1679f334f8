"""From the presentations of a study to paired samples: the part of each, its clean epoch, one sample per picture.

A sample is one picture seen by one subject within one part of the split, with all its repetitions. Where a study pairs
by class alone (which picture was seen is not known), every presentation is a sample of its own.

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import model_validator

from ttd.config import Config, UserError
from ttd.data.ingest import StudyWriter
from ttd.data.splits import By, recording_name
from ttd.eeg import epochs
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.montage import cap_name
from ttd.eeg.preprocessing import PreprocessingConfig, preprocess
from ttd.eeg.studies import Event, Recording

Presentation = tuple[Recording, Event]


class PartsConfig(Config):
    """Which part of the split a presentation belongs to."""

    by: By = "given"
    """``given``: the study's own column ``part``. Otherwise what the two lists below name; all else is training."""
    validation: tuple[str, ...] = ()
    """Concepts, subjects, sessions or runs; a session may be written ``subject/session``, a run
    ``subject/session/run``."""
    test: tuple[str, ...] = ()

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
        return "test" if names & set(self.test) else "validation" if names & set(self.validation) else "train"

    def problems(self, presentations: Iterable[Presentation]) -> list[str]:
        """Why these presentations cannot be split this way, one sentence each."""
        presentations = list(presentations)
        if self.by == "given" and any(event.part is None for _, event in presentations):
            return ["parts.by=given: the events have no column part; split by concept, session, subject or run instead"]
        found = []
        if not any(self.part(*presentation) == "train" for presentation in presentations):
            found.append("parts: nothing is left for training")
        if self.by != "given":
            known = {name for presentation in presentations for name in self.names(*presentation)}
            unknown = sorted({*self.validation, *self.test} - known)
            if unknown:
                some = ", ".join(sorted(known)[:8]) + (", …" if len(known) > 8 else "")
                found.append(f"parts: no {self.by} is called {', '.join(unknown)}; there are {some}")
        return found


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
) -> Iterator[Piece]:
    """The clean epochs of one recording; what was left out is added to ``dropped``.

    Raises:
        UserError: the recording is damaged, or its events do not lie in it.
    """
    events = recording.events()
    raw = preprocess(recording.raw(), preprocessing, name=recording.path, exact_onsets=True)
    try:
        cut = epochs.cut(raw, [event.onset_s for event in events], config, sfreq=preprocessing.sfreq)
    except UserError as error:
        raise UserError(f"{recording.path}: {error}") from error
    dropped.update(cut.dropped)
    for i, eeg in zip(cut.kept, cut.data, strict=True):
        yield Piece(recording, events[i], i, eeg.astype(np.float16), raw.ch_names)


class Pictures:
    """The encoded pictures by their sha256; each file is read once."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
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
            content = path.read_bytes()
            self._sha256[path] = hashlib.sha256(content).hexdigest()
            self.content[self._sha256[path]] = content
        return self._sha256[path]


def write_samples(writer: StudyWriter, part: str, found: Iterable[Piece], pictures: Pictures) -> None:
    """Write one subject's samples of one part, sorted by picture; repetitions in the order of time."""
    groups: dict[tuple[str, str, str], list[Piece]] = collections.defaultdict(list)
    for piece in found:
        groups[piece.group].append(piece)
    for (cap, image_id, own), members in sorted(groups.items(), key=lambda item: item[0]):
        recording, event = members[0].recording, members[0].event
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
        writer.write(part, key, np.stack([piece.eeg for piece in members]), members[0].ch_names, meta)
        writer.add_image(sha256, pictures.content[sha256], {"image_id": image_id, "concept": event.concept})
