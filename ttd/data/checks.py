"""What can be told of a study before anything is built from it, so that a build that starts also ends: every problem at
once, each with its files and the remedy."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path

from ttd.config import UserError
from ttd.data.ingest import picture_member
from ttd.data.pairing import PartsConfig, Pictures
from ttd.data.splits import DISJOINT
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.preprocessing import PreprocessingConfig, input_problems
from ttd.eeg.studies import Event, Recording

DECODED = 3000
"""Pictures that are decoded beforehand, 15 CPU seconds of them; the others when they are written."""
SHOWN = 10


def recording_problems(recordings: Sequence[Recording], preprocessing: PreprocessingConfig) -> list[str]:
    """Files that are absent, damaged or without an electrode, recordings of one name, and those that occur twice."""
    problems = [line for recording in recordings for line in _file_problems(recording, preprocessing)]
    problems += same_names(recordings)
    return problems or input_problems(recordings, preprocessing)


def _file_problems(recording: Recording, preprocessing: PreprocessingConfig) -> list[str]:
    try:
        recording.check()
        if preprocessing.channels is None:  # otherwise ``input_problems`` asks for the electrodes
            recording.ch_names()
    except UserError as error:
        return [str(error)]
    return []


def same_names(recordings: Iterable[Recording]) -> list[str]:
    """Recordings that cannot be told apart by subject, session and run."""
    by_name: dict[str, list[Path]] = collections.defaultdict(list)
    for recording in recordings:
        by_name[recording.name].append(recording.path)
    return [
        f"{' and '.join(map(str, paths))}: all are recording {name!r}; rename them, or adapt study.names where the study "
        "has it, so that subject, session and run differ"
        for name, paths in by_name.items()
        if len(paths) > 1
    ]


def picture_problems(
    shown: Sequence[tuple[Recording, Sequence[Event]]], parts: PartsConfig, epochs: EpochsConfig
) -> list[str]:
    """Pictures that cannot be decoded, and those that several parts show where the split forbids it; absent ones are
    passed over."""
    there = {event.image_path for _, events in shown for event in events if event.image_path}
    there = {path for path in there if path.is_file()}
    problems = []
    for path in sorted(there)[:DECODED]:
        try:
            picture_member(path)
        except UserError as error:
            problems.append(str(error))
    if "image" in DISJOINT[parts.by]:
        problems += _shared_pictures(shown, parts, epochs, there)
    rest = len(problems) - SHOWN
    return problems[:SHOWN] + ([f"and {rest} more pictures"] if rest > 0 else [])


def _shared_pictures(
    shown: Sequence[tuple[Recording, Sequence[Event]]], parts: PartsConfig, epochs: EpochsConfig, there: set[Path]
) -> list[str]:
    """One sentence for each picture that several parts show, under one name or several."""
    pictures = Pictures()
    uses: dict[str, dict[tuple[Path, str], str]] = collections.defaultdict(dict)  # sha256 → {(file, part): concept}
    for recording, events in shown:
        for event, (part, why) in zip(events, parts.assign(recording, events, epochs), strict=True):
            if not why and event.image_path in there:
                uses[pictures.read(event)].setdefault((event.image_path, part), event.concept)
    remedy = {
        "given": "give them one part where the study says it (column part, or study.validation), or split by parts.by",
        "concept": "put their concepts into the same list of parts, or take another picture",
    }[parts.by]
    problems = []
    for files in uses.values():
        if len({part for _, part in files}) > 1:
            of = "; ".join(f"{path} (concept {concept!r}) in {part}" for (path, part), concept in files.items())
            what = "the same picture under several names" if len({path for path, _ in files}) > 1 else "one picture"
            problems.append(f"{what} in several parts: {of}; {remedy}")
    return problems
