"""Shards, as this rank sees them: every shard there in its full size, and a sample of each read against its checksums."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ttd.checkup.findings import Finding, ok, problem, warning
from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.members import DamageError
from ttd.data.verify import index_folders

ABSENT = "is not there, or holds no shards (no index.json in it or below)"


def folders_of(path: Path) -> list[Path]:
    """The folders with an index that ``path`` stands for: itself, those below it, or that of its ``index.json``."""
    return [path.parent] if path.name == "index.json" and path.is_file() else index_folders(path)


def read_shards(paths: Sequence[Path], *, rank: int = 0, budget_s: float = 30.0) -> Finding:
    """Read one sample of each shard; ranks start from different ends, so that together they see more of a shard.

    The test part is opened as ``shards/verify.py`` does: for its bytes, nothing is scored.

    Args:
        budget_s: seconds after which no further shard is begun.
    """
    wrong: list[str] = []
    seen = left = size = 0
    start = time.monotonic()
    for path in paths:
        folders = folders_of(path)
        wrong += [] if folders else [f"{path} {ABSENT}"]
        for folder in folders:
            try:
                index = ShardIndex.read(folder, open_test=True)
            except (UserError, OSError) as error:
                wrong.append(str(error))
                continue
            for number in range(len(index.facts.shards)):
                if time.monotonic() - start > budget_s:
                    left += 1
                    continue
                seen += 1
                try:
                    size += sum(_sample(index, number, rank))
                except DamageError as error:
                    wrong.append(f"{folder / index.facts.shards[number].name}: sample {error.key!r}: {error.reason}")
                except (UserError, OSError) as error:
                    wrong.append(str(error))
    seconds = time.monotonic() - start
    where = ", ".join(map(str, paths))
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        remedy = f"copy or build them again; `python shards/verify.py shards={paths[0]}` reads every byte"
        return problem(f"{wrong[0]}{more}", remedy)
    text = f"{where}: a sample of each of {seen} shards, {size / 1e6:.1f} MB in {seconds:.2f} s, checksums right"
    if left:
        return warning(
            f"{text}; {left} shards were not reached", "the storage is slow: copy the shards to a local disk"
        )
    return ok(text)


def _sample(index: ShardIndex, number: int, rank: int) -> Iterator[int]:
    """Sizes of the verified members of one sample of shard ``number``: the last for rank 0, the one before for rank 1."""
    shard = index.facts.shards[number]
    there = (index.folder / shard.name).stat().st_size
    if there != shard.size:
        raise UserError(f"{index.folder / shard.name}: has {there} bytes, {shard.size} were written")
    rows = np.flatnonzero(index.shard == number)  # empty where all are in quarantine
    if len(rows):
        row = int(rows[-1 - rank % len(rows)])
        for name in index.member_names(row):
            index.read_member(row, name)
            yield int(index.size[row, index.members.index(name)])


def fingerprints(paths: Sequence[Path]) -> dict[str, str]:
    """A short hash of every index: ranks that read different shards under one path train on different data."""
    folders = [folder for path in paths for folder in folders_of(path)]
    return {
        f"{folder}/index.json": hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()[:12]
        for folder in folders
    }
