"""Portions of one study's shards, built subject by subject (``only_subjects``), and whether they make up a whole.

What one build of the whole study would refuse is refused here, over all portions: a study is not split well because each
subject is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.ingest import differing, finished, other_settings
from ttd.data.members import Files, MemberReader
from ttd.data.scaling import Moments, scaling
from ttd.data.schema import Facts
from ttd.data.splits import SplitManifest, some_of
from ttd.data.verify import uses

COMMON = ("kind", "study", "part", "sfreq", "tmin", "n_times", "normalise", "simulated", "code_version")
"""Facts in which the same part of two portions may not differ."""


@dataclass(frozen=True)
class Portion:
    """One finished build of some subjects."""

    folder: Path
    build: dict[str, Any]
    """What ``build.json`` says."""
    manifest: SplitManifest
    parts: dict[str, ShardIndex]
    """Those that it has samples for, in the order in which they were begun."""
    images: ShardIndex | None

    @property
    def recordings(self) -> list[str]:
        """Names, in the order of the study."""
        return list(self.build["inputs"])


def find(inputs: Path) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """({folder: its ``build.json``} of the portions in ``inputs``, what is wrong with the other folders there)."""
    if not inputs.is_dir():
        return {}, [f"inputs={inputs}: no such folder; it holds the portions, one folder each"]
    builds, problems = {}, []
    for folder in sorted(path for path in inputs.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            built = finished(folder)
        except (UserError, ValueError):
            built = None
        if built is None:
            problems.append(
                f"{folder}: is not finished (build.json is missing or damaged); run the command that builds it again"
            )
        elif "portion" not in built:
            problems.append(f"{folder}: was not built with only_subjects; build it so, or put it elsewhere")
        else:
            builds[folder] = built
    if not builds and not problems:
        problems.append(
            f"inputs={inputs}: holds no portion; build them with only_subjects and output_dir={inputs}/NAME"
        )
    return builds, problems


def is_merged(root: Path, builds: Mapping[Path, dict[str, Any]]) -> bool:
    """Whether ``root`` holds these portions; any of them may have been deleted since.

    Raises:
        UserError: it holds something else.
    """
    whole = finished(root)
    if whole is None:
        return False
    keys = {key for built in builds.values() for key in differing(whole["config"], built["config"])} - {"only_subjects"}
    if whole["config"].get("only_subjects"):
        keys.add("only_subjects")
    if any(whole["inputs"].get(name) != of for built in builds.values() for name, of in built["inputs"].items()):
        keys.add("the study's recordings or events")
    if keys:
        raise UserError(other_settings(root, sorted(keys)))
    return True


def read(builds: Mapping[Path, dict[str, Any]]) -> tuple[list[Portion], list[str]]:
    """(portions in the order of the study, what is damaged)."""
    portions, problems = [], []
    for folder, built in builds.items():
        try:
            portions.append(_read(folder, built))
        except UserError as error:
            problems.append(str(error))
    place = {name: i for i, name in enumerate(next(iter(builds.values()))["portion"]["recordings"])}
    return sorted(portions, key=lambda p: place.get(p.recordings[0], 0) if p.recordings else len(place)), problems


def _read(folder: Path, built: dict[str, Any]) -> Portion:
    manifest, parts = SplitManifest.read(folder), {}
    for part, n in built["samples"].items():
        index = parts[part] = ShardIndex.read(folder / part, open_test=True, quarantine=False)
        facts = index.facts
        if (facts.split_fingerprint, facts.source["fingerprint"], len(index)) != (
            manifest.fingerprint,
            built["fingerprint"],
            n,
        ):
            raise UserError(f"{folder / part}: is not of the build around it; build the portion again")
    there = (folder / "images/index.json").is_file()
    images = ShardIndex.read(folder / "images", quarantine=False) if there else None
    for index in [*parts.values(), *([images] if images else [])]:
        for shard in index.facts.shards:
            path = index.folder / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.size:
                is_ = "is missing" if size is None else f"has {size} bytes, {shard.size} were written"
                raise UserError(f"{path}: {is_}; build the portion again")
    return Portion(folder, built, manifest, parts, images)


class Members:
    """Verified members out of the shards of all portions, with few files open at a time however many portions there are."""

    def __init__(self, portions: Sequence[Portion]):
        self._reader = MemberReader(Files(portions[0].folder.parent))

    def __call__(self, index: ShardIndex, name: str, rows: np.ndarray | None = None) -> Iterator[Any]:
        """Member ``name`` of the samples ``rows`` [B] of a portion's index, of all where None; see ``MemberReader.read``."""
        folder = f"{index.folder.parent.name}/{index.folder.name}"
        places = index.places(np.arange(len(index)) if rows is None else rows, name)
        for shard, key, member, offset, size, xxh3 in places:
            yield self._reader.read(f"{folder}/{shard}", key, member, offset, size, xxh3)


def problems(portions: Sequence[Portion]) -> list[str]:
    """Why these portions do not make up one study, one sentence each; what comes first hides what follows from it."""
    for look in (_other_builds, _other_recordings, _out_of_order, _other_facts, _no_study):
        found = list(look(portions))
        if found:
            return found
    return []


def _other_builds(portions: Sequence[Portion]) -> Iterator[str]:
    first, *others = portions
    for other in others:
        keys = [key for key in differing(first.build["config"], other.build["config"]) if key != "only_subjects"]
        if keys:
            yield f"{first.folder} and {other.folder}: were built with different settings: {', '.join(keys)}"
        mine, its = first.build["portion"]["recordings"], other.build["portion"]["recordings"]
        changed = sorted({*mine} ^ {*its}) or [a for a, b in zip(mine, its, strict=True) if a != b]
        if changed:
            yield (
                f"{first.folder} and {other.folder}: the study changed between them ({some_of(changed)} came or went); "
                "build both again"
            )


def _other_recordings(portions: Sequence[Portion]) -> Iterator[str]:
    held: dict[str, list[Path]] = defaultdict(list)
    names: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for portion in portions:
        for name in portion.recordings:
            held[name].append(portion.folder)
        for name, sha256 in portion.manifest.recordings.items():
            names[sha256].append((portion.folder, name))
    for folders, twice in _grouped({name: tuple(folders) for name, folders in held.items() if len(folders) > 1}):
        yield f"{' and '.join(map(str, folders))}: hold the same recordings ({some_of(twice)}); delete one of them"
    for found in names.values():
        if len({name for _, name in found}) > 1 and len({folder for folder, _ in found}) > 1:
            where = " and ".join(f"{name} ({folder})" for folder, name in found)
            yield f"{where}: the same recording under two names; take one of them out of the study"
    whole = portions[0].build["portion"]["recordings"]
    absent = {name: (subject,) for name, subject in whole.items() if name not in held}
    for (subject,), missing in _grouped(absent):
        yield (
            f"sub-{subject}: no portion holds {some_of(missing)}; build it with only_subjects='[\"{subject}\"]', or leave "
            "the subject out of the study and build all portions again"
        )


def _out_of_order(portions: Sequence[Portion]) -> Iterator[str]:
    place = {name: i for i, name in enumerate(portions[0].build["portion"]["recordings"])}
    for one, other in pairwise(portion for portion in portions if portion.recordings):
        if place[one.recordings[-1]] > place[other.recordings[0]]:
            yield (
                f"{one.folder} and {other.folder}: subjects of one lie between those of the other; build portions of "
                "neighbours, or of one subject each"
            )


def _grouped(values: Mapping[str, tuple]) -> list[tuple[tuple, list[str]]]:
    out: dict[tuple, list[str]] = defaultdict(list)
    for name, value in values.items():
        out[value].append(name)
    return list(out.items())


def _other_facts(portions: Sequence[Portion]) -> Iterator[str]:
    for part in parts_of(portions):
        indexes = indexes_of(portions, part)
        first, caps = indexes[0], dict[str, list[str]]()
        for index in indexes:
            keys = [name for name in COMMON if getattr(index.facts, name) != getattr(first.facts, name)]
            keys += ["preprocessing"] if _cleaning(index.facts) != _cleaning(first.facts) else []
            keys += [
                f"electrodes of {cap}" for cap, of in index.facts.caps.items() if caps.setdefault(cap, of) != list(of)
            ]
            if keys:
                yield f"{first.folder} and {index.folder}: differ in {', '.join(keys)}; build both again alike"
        twice = [key for key, n in Counter(key for index in indexes for key in index.keys).items() if n > 1]
        if twice:
            yield f"{len(twice)} samples of part {part} have one key in several portions ({some_of(twice)})"


def _cleaning(facts: Facts) -> dict[str, Any]:
    return {name: value for name, value in facts.preprocessing.items() if name != "interpolated"}


def _no_study(portions: Sequence[Portion]) -> Iterator[str]:
    lacking = set.intersection(*(set(portion.build["portion"]["lacks"]) for portion in portions))
    if lacking:
        yield from sorted(lacking)
        return
    if "train" not in parts_of(portions):
        counts = ", ".join(f"{n} {why}" for why, n in added(portions, "dropped").items())
        yield f"not one sample for the training part; left out: {counts or 'nothing'}"
        return
    try:
        for part in parts_of(portions):
            statistics(portions, part)
        manifest(portions)
    except UserError as error:
        yield str(error)


def parts_of(portions: Sequence[Portion]) -> list[str]:
    """Parts of the split in the order in which one build would begin them."""
    return list(dict.fromkeys(part for portion in portions for part in portion.parts))


def indexes_of(portions: Sequence[Portion], part: str) -> list[ShardIndex]:
    """The indexes of all portions that have samples for ``part``."""
    return [portion.parts[part] for portion in portions if part in portion.parts]


def added(portions: Sequence[Portion], name: str) -> dict[str, int]:
    """Counts that every ``build.json`` has under ``name``, added up."""
    total: dict[str, int] = {}
    for portion in portions:
        for what, n in portion.build[name].items():
            total[what] = total.get(what, 0) + n
    return total


def statistics(portions: Sequence[Portion], part: str) -> dict[str, Any]:
    """Mean and standard deviation of each cap of ``part``, over the training parts of all portions.

    Raises:
        UserError: a cap does not occur in training.
    """
    moments: dict[str, dict[str, Moments]] = defaultdict(dict)
    for portion in portions:
        for cap, of_cap in portion.build["portion"]["moments"].items():
            moments[cap] |= of_cap
    return scaling(moments, caps_of(portions, part), part, portions[0].folder.parent)


def caps_of(portions: Sequence[Portion], part: str) -> dict[str, list[str]]:
    """Channel names of each cap of ``part``, in the order in which they occur."""
    return {cap: list(of) for index in indexes_of(portions, part) for cap, of in index.facts.caps.items()}


def manifest(portions: Sequence[Portion]) -> SplitManifest:
    """The split of the whole, its parts compared over all portions.

    Raises:
        UserError: parts share what they may not.
    """
    first = portions[0].manifest
    assignments: dict[str, list[str]] = {}
    for portion in portions:
        for part, values in portion.manifest.assignments.items():
            assignments[part] = list(dict.fromkeys([*assignments.get(part, ()), *values]))
    if "windows" not in portions[0].build["config"]:  # pairs: sorted; windows: in the order of the recordings
        assignments = {part: sorted(values) for part, values in assignments.items()}
    recordings = {name: sha256 for portion in portions for name, sha256 in portion.manifest.recordings.items()}
    whole = SplitManifest(study=first.study, by=first.by, assignments=assignments, recordings=recordings)
    members = Members(portions)
    return whole.counted(
        use
        for portion in portions
        for index in (portion.parts[part] for part in portion.manifest.assignments if part in portion.parts)
        for use in uses(index, dict(enumerate(members(index, "meta.json"))), whole)
    )
