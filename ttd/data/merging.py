"""Join portions of a study (``portions``) into what one build of the whole would have written.

Same samples, order, statistics, split and ``build.json``; only where one tar ends and the next begins may differ. Tars are
linked, not copied, where input and output lie on one file system; nothing is encoded again. Pictures, which portions have in
common, are written anew byte for byte, once each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ttd.config import UserError, fingerprint, write_json
from ttd.data import portions as of
from ttd.data.index import ShardIndex
from ttd.data.ingest import building, put_in_place
from ttd.data.portions import Portion
from ttd.data.writer import COLUMNS, ShardWriter, index_table, write_index

T = TypeVar("T")


def identity(portions: Sequence[Portion]) -> dict[str, Any]:
    """Configuration and inputs as one build of the whole states them (``ingest.identity``)."""
    return {
        "config": {**portions[0].build["config"], "only_subjects": None},
        "inputs": {name: inputs for portion in portions for name, inputs in portion.build["inputs"].items()},
    }


def same_disk(portions: Sequence[Portion], root: Path) -> bool:
    """Whether tars can be linked instead of copied."""
    place = next(path for path in root.absolute().parents if path.exists())
    return {portion.folder.stat().st_dev for portion in portions} == {place.stat().st_dev}


def pictures(portions: Sequence[Portion]) -> dict[str, tuple[ShardIndex, int]]:
    """Where each picture lies, by sha256: in the first portion that shows it."""
    found: dict[str, tuple[ShardIndex, int]] = {}
    for portion in portions:
        for i, sha256 in enumerate(portion.images.keys if portion.images else ()):
            assert portion.images is not None
            found.setdefault(sha256, (portion.images, i))
    return found


def merge(portions: Sequence[Portion], root: Path, progress: Callable[..., Iterable[T]]) -> dict[str, int]:
    """Write the whole into ``root``, which appears at the end; returns the samples of each part.

    Portions are those that ``portions.problems`` has nothing against; ``progress(items, desc=...)`` iterates.

    Raises:
        UserError: shards are damaged (all are named), or another process is building there.
    """
    who = identity(portions)
    with building(root) as aside:
        shards = _place(portions, aside, progress)
        manifest = of.manifest(portions)
        manifest.write(aside)
        for part in of.parts_of(portions):
            indexes = of.indexes_of(portions, part)
            facts = {
                **indexes[0].facts.model_dump(),
                "caps": of.caps_of(portions, part),
                "statistics": of.statistics(portions, part),
                "shards": shards[part],
                "split_fingerprint": manifest.fingerprint,
                "source": {**indexes[0].facts.source, "fingerprint": fingerprint(who)},
            }
            facts["preprocessing"] = {**facts["preprocessing"], "interpolated": _interpolated(portions)}
            write_index(aside / part, _table(indexes), facts, of=root / part)
        _write_pictures(portions, aside, progress)
        _write_ledger(portions, aside)
        samples = {part: sum(map(len, of.indexes_of(portions, part))) for part in of.parts_of(portions)}
        write_json(
            aside / "build.json", {"fingerprint": fingerprint(who), **who, **_report(portions), "samples": samples}
        )
        put_in_place(aside, root)
    return samples


def _place(portions: Sequence[Portion], aside: Path, progress: Callable[..., Iterable]) -> dict[str, list[dict]]:
    """Link (or copy) the tars of all parts, number them anew, and compare what stands there then with its sha256."""
    shards: dict[str, list[dict]] = {}
    todo = []
    for part in of.parts_of(portions):
        (aside / part).mkdir()
        every = [(index, shard) for index in of.indexes_of(portions, part) for shard in index.facts.shards]
        shards[part] = [{**s.model_dump(), "name": f"{number:06d}.tar"} for number, (_, s) in enumerate(every)]
        todo += [
            (index.folder / s.name, aside / part / f"{number:06d}.tar", s) for number, (index, s) in enumerate(every)
        ]
    damaged = []
    for source, target, shard in progress(todo, desc="shards"):
        try:
            os.link(source, target)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, target)
            _sync(target)
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                damaged.append(f"{source}: the sha256 differs from the index; build the portion again")
    if damaged:
        raise UserError("\n".join(damaged))
    return shards


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _table(indexes: Sequence[ShardIndex]) -> dict[str, np.ndarray]:
    """The table of all samples, one index after the other."""
    starts = np.cumsum([0, *(len(index.facts.shards) for index in indexes[:-1])])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(index, name) for index in indexes])

    return index_table(
        [key for index in indexes for key in index.keys],
        indexes[0].members,
        np.concatenate([index.shard + start for index, start in zip(indexes, starts, strict=True)]),
        joined("offset"),
        joined("size"),
        joined("xxh3"),
        joined("n_repetitions"),
        {name: np.concatenate([index.column(name) for index in indexes]) for name in COLUMNS},
    )


def _write_pictures(portions: Sequence[Portion], aside: Path, progress: Callable[..., Iterable]) -> None:
    found = pictures(portions)
    if not found:
        return
    facts = next(portion.images.facts for portion in portions if portion.images)
    members, per_shard = of.Members(portions), portions[0].build["config"]["samples_per_shard"]
    with ShardWriter(aside / "images", kind="image", samples_per_shard=per_shard) as writer:
        for sha256 in progress(sorted(found), desc="pictures"):
            index, i = found[sha256]
            picture = {name: next(members(index, name, np.array([i]))) for name in index.member_names(i)}
            content = next(value for name, value in picture.items() if name.startswith("image."))
            if hashlib.sha256(content).hexdigest() != sha256:
                raise UserError(f"{index.folder}: picture {sha256} is another one; build the portion again")
            writer.write(sha256, picture)
        writer.finish({"study": facts.study, "simulated": facts.simulated, "part": "all"})


def _write_ledger(portions: Sequence[Portion], aside: Path) -> None:
    """Whoever opened the test part of a portion has opened that of the whole."""
    ledgers = [portion.folder / "ledger.jsonl" for portion in portions]
    lines = [line for path in ledgers if path.is_file() for line in path.read_text().splitlines()]
    if lines:
        (aside / "ledger.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _interpolated(portions: Sequence[Portion]) -> dict[str, list[str]]:
    every = [(name, report["interpolated"]) for p in portions for name, report in p.build["channels"].items()]
    return {name: electrodes for name, electrodes in every if electrodes}


def _report(portions: Sequence[Portion]) -> dict[str, Any]:
    first = portions[0].build
    report: dict[str, Any] = {"dropped": of.added(portions, "dropped")}
    if "presentations" in first:
        report["presentations"] = sum(portion.build["presentations"] for portion in portions)
    report["channels"] = {name: found for p in portions for name, found in p.build["channels"].items()}
    return report | {name: first[name] for name in ("excluded",) if name in first}
