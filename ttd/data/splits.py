"""The split manifest: which samples belong to which part, proof that the parts share nothing, and who opened the
test part.

``split.json`` stands at the root of a study's shards, the ledger ``ledger.jsonl`` beside it.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from ttd.config import Config, UserError, fingerprint, write_json

By = Literal["given", "concept", "session", "subject", "run", "sequence"]

DISJOINT: dict[By, tuple[str, ...]] = {
    "given": ("image",),
    "concept": ("concept", "image"),
    "session": ("recording",),
    "subject": ("recording",),
    "run": ("recording",),
    "sequence": (),
}
"""What parts may not share. Split by session, subject, run or sequence, the same pictures are shown in every part by
design, so they are counted, not refused; sequences of one recording may belong to different parts. Raw samples in time
are refused always."""


class Use(NamedTuple):
    """One repetition in one part: where its raw samples lie, and what was shown."""

    part: str
    recording: str
    """Content hash, or ``recording_name`` where that is not known."""
    start: float
    """Seconds in the recording, onset + tmin; ``stop`` is onset + tmax."""
    stop: float
    concept: str | None = None
    image: str | None = None
    """sha256 of the image file."""


class Counts(Config):
    repetitions: int
    recordings: int
    concepts: int
    images: int


class SplitManifest(Config):
    """How one study is split. ``assignments`` maps each part to its values of ``by``: concepts, subjects, sessions as
    "subject/session", runs as "subject/session/run", sequences as "subject/session/run/sequence", or image ids where the
    study itself says (given)."""

    study: str
    by: By
    assignments: dict[str, list[str]]
    recordings: dict[str, str] = Field(default_factory=dict)
    """``recording_name`` → sha256 of the recording's file."""
    counts: dict[str, Counts] = Field(default_factory=dict)
    shared_images: int = 0
    """Pictures that more than one part shows; 0 unless split by session, subject, run or sequence."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self)

    def part_of(self, value: str) -> str | None:
        """The part that a value of ``by`` was assigned to, or None."""
        return next((part for part, values in self.assignments.items() if value in values), None)

    def check(self, uses: Iterable[Use]) -> None:
        """Compare the parts with each other.

        Raises:
            UserError: a value is assigned twice, or parts share concepts, images, recordings (as ``by`` forbids) or raw
                samples in time; every kind of overlap is named.
        """
        uses = list(uses)
        names = {sha: name for name, sha in self.recordings.items()}
        problems = []
        for a, b in combinations(self.assignments, 2):
            both = sorted(set(self.assignments[a]) & set(self.assignments[b]))
            if both:
                problems.append(f"assigned to {a} and {b}: {some_of(both)}")
        for what in DISJOINT[self.by]:
            for (a, b), both in _shared(uses, what).items():
                values = some_of([names.get(value, value) for value in both])
                problems.append(f"{a} and {b} share {len(both)} {what}s ({values})")
        problems += [line for line in [_overlap_in_time(uses, names)] if line]
        if problems:
            raise UserError(f"split of {self.study} by {self.by}: " + "; ".join(problems))

    def counted(self, uses: Iterable[Use]) -> SplitManifest:
        """This manifest, checked, with the counts of what each part holds.

        Raises:
            UserError: see ``check``.
        """
        uses = list(uses)
        self.check(uses)
        counts = {}
        for part in dict.fromkeys(use.part for use in uses):
            mine = [use for use in uses if use.part == part]
            counts[part] = Counts(
                repetitions=len(mine),
                recordings=len({use.recording for use in mine}),
                concepts=len({use.concept for use in mine} - {None}),
                images=len({use.image for use in mine} - {None}),
            )
        shared = {image for both in _shared(uses, "image").values() for image in both}
        return self.model_copy(update={"counts": counts, "shared_images": len(shared)})

    def write(self, root: Path | str) -> Path:
        """Write ``<root>/split.json``."""
        path = Path(root) / "split.json"
        write_json(path, self.model_dump(mode="json"))
        return path

    @classmethod
    def read(cls, root: Path | str) -> SplitManifest:
        """Read ``split.json`` (give the file or its folder).

        Raises:
            UserError: it is missing or damaged.
        """
        path = manifest_path(root)
        if not path.is_file():
            raise UserError(f"{path}: no split manifest; a script of shards/ writes it beside the shards")
        try:
            return cls.model_validate(json.loads(path.read_text()))
        except (ValueError, ValidationError) as error:
            raise UserError(f"{path}: not a split manifest ({str(error).splitlines()[0]})") from error


def leave_one_out(
    study: str, by: By, values: Sequence[str], held_out: str, *, validation: str | None = None
) -> SplitManifest:
    """The fold that tests on one run (or session, or subject), validates on another if asked, and trains on the rest.

    Raises:
        ValueError: a name is not among ``values``, or both are the same.
    """
    for name in (held_out, validation):
        if name is not None and name not in values:
            raise ValueError(f"{name!r} is not one of {list(values)}")
    if held_out == validation:
        raise ValueError(f"{held_out!r} cannot be both tested and validated on")
    parts = {"train": [value for value in values if value not in (held_out, validation)]}
    if validation is not None:
        parts["validation"] = [validation]
    return SplitManifest(study=study, by=by, assignments={**parts, "test": [held_out]})


def recording_name(subject: str, session: str, run: str) -> str:
    """How a recording is called in manifests and messages."""
    return f"{subject}/{session}/{run}"


def manifest_path(root: Path | str) -> Path:
    """``split.json``, given itself or the folder that holds it."""
    return Path(root) if Path(root).name == "split.json" else Path(root) / "split.json"


def open_test(root: Path | str, *, who: str, config_hash: str = "") -> int:
    """Enter into the ledger that the test part is being opened; returns how often it has been, this time included.

    Then ``ShardIndex.read(root / "test", open_test=True)`` reads it.

    Args:
        root: folder of the study's shards, or its ``split.json``.
        who: the entry, such as "generate".
        config_hash: fingerprint of its resolved configuration.

    Raises:
        UserError: there is no split manifest.
    """
    path = manifest_path(root)
    split = SplitManifest.read(path).fingerprint
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "who": who, "config": config_hash, "split": split}
    ledger = path.with_name("ledger.jsonl")
    fd = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, (json.dumps(entry) + "\n").encode())  # one write: entries of two processes do not mix
    finally:
        os.close(fd)
    return len(read_ledger(root))


def read_ledger(root: Path | str) -> list[dict[str, str]]:
    """Every opening of the test part: time, who, fingerprints of configuration and split."""
    ledger = manifest_path(root).with_name("ledger.jsonl")
    return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.is_file() else []


def some_of(values: Sequence[str], n: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(values[:n]) + (", …" if len(values) > n else "")


def _shared(uses: Sequence[Use], what: str) -> dict[tuple[str, str], list[str]]:
    """{(part, part): values of ``what`` in both}, where there are any."""
    values: dict[str, set[str]] = defaultdict(set)
    for use in uses:
        value = getattr(use, what)
        if value is not None:
            values[use.part].add(value)
    pairs = {(a, b): sorted(values[a] & values[b]) for a, b in combinations(values, 2)}
    return {pair: both for pair, both in pairs.items() if both}


def _overlap_in_time(uses: Sequence[Use], names: dict[str, str]) -> str | None:
    """One sentence if repetitions of different parts contain the same raw samples, with an example."""
    by_recording: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        by_recording[use.recording].append(use)
    count, example = 0, None
    for mine in by_recording.values():
        last: dict[str, Use] = {}  # part → the use of it that ends last so far
        for use in sorted(mine, key=lambda use: use.start):
            for part, earlier in last.items():
                if part != use.part and use.start < earlier.stop:
                    count += 1
                    example = example or (earlier, use)
            if use.part not in last or use.stop > last[use.part].stop:
                last[use.part] = use
    if example is None:
        return None
    a, b = example
    return (
        f"{count} repetitions share raw samples with another part (recording {names.get(a.recording, a.recording)}: "
        f"{a.part} {a.start:.3f} to {a.stop:.3f} s, {b.part} {b.start:.3f} to {b.stop:.3f} s); "
        f"hold whole sequences out (by sequence, run or session), or leave a gap of {a.stop - b.start:.3f} s more between parts"
    )
