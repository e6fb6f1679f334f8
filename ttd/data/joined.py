"""Several folders of shards as one index: the studies of one pretraining run, each with its own cap and statistics.

Nothing is copied. Keys, shards and caps get the number of their folder in front ("1-muse-4"), so that names which two
studies share stay apart; a damaged sample is still reported, and put in quarantine, in the folder it lies in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.members import DamageError, MemberReader
from ttd.data.schema import Facts


class JoinedSource:
    """The shards of several indices; the number before the first dash of a shard's name says whose."""

    sequential = False

    def __init__(self, parts: Mapping[int, ShardIndex]):
        self.parts = parts
        self.where = " + ".join(str(part.folder) for part in parts.values())

    @property
    def folder(self) -> Path | None:
        """None: there is no single one."""
        return None

    def of(self, name: str) -> tuple[ShardIndex, str]:
        """The index that a numbered name belongs to, and the name there."""
        number, _, own = name.partition("-")
        return self.parts[int(number)], own

    def stage(self, spans: Iterable[tuple[str, int, int]]) -> None:
        """Nothing: the folders are local."""

    def read_into(self, shard: str, offset: int, buffer: memoryview) -> int:
        part, own = self.of(shard)
        return part.reader.source.read_into(own, offset, buffer)


class JoinedReader(MemberReader):
    """Members of a ``JoinedSource``; damage is the business of the folder it is in."""

    source: JoinedSource

    def damage(self, shard: str, key: str, name: str, offset: int, problem: str) -> DamageError:
        part, own = self.source.of(shard)
        return part.reader.damage(own, self.source.of(key)[1], name, offset, problem)


def join(parts: Mapping[int, ShardIndex]) -> ShardIndex:
    """One index over the samples of all ``parts`` {number of the folder: index}, in their order.

    Raises:
        UserError: kinds, parts of the split, rates, lengths or normalisation differ.
    """
    first, *others = parts.values()
    for part in others:
        for name in ("kind", "part", "sfreq", "n_times", "normalise"):
            mine, other = getattr(first.facts, name), getattr(part.facts, name)
            if mine != other:
                raise UserError(
                    f"{part.folder}: {name} is {other}, of {first.folder} it is {mine}; one run needs one: build both alike"
                )
    source = JoinedSource(parts)
    joined = ShardIndex(first.folder, _facts(parts), _table(parts), set(), source)
    joined.reader = JoinedReader(source)
    return joined


def _facts(parts: Mapping[int, ShardIndex]) -> Facts:
    every = {i: part.facts.model_dump() for i, part in parts.items()}
    return Facts.model_validate(
        {
            **next(iter(every.values())),
            "study": " + ".join(dict.fromkeys(facts["study"] for facts in every.values())),
            "simulated": any(facts["simulated"] for facts in every.values()),
            **{
                name: {f"{i}-{cap}": of for i, facts in every.items() for cap, of in facts[name].items()}
                for name in ("caps", "statistics")
            },
            "shards": [{**s, "name": f"{i}-{s['name']}"} for i, facts in every.items() for s in facts["shards"]],
            "n_samples": sum(map(len, parts.values())),
            "source": {"joined": [part.fingerprint for part in parts.values()]},
            "facts_sha256": "",
        }
    )


def _table(numbered: Mapping[int, ShardIndex]) -> dict[str, np.ndarray]:
    """The table of ``index.npz`` for all samples that are in no quarantine."""
    parts = list(numbered.values())
    members = sorted({name for part in parts for name in part.members})
    keys = [f"{i}-{key}".encode() for i, part in numbered.items() for key in part.keys]
    table: dict[str, np.ndarray] = {
        "members": np.array(members),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys]),
        "n_repetitions": np.concatenate([part.n_repetitions for part in parts]),
    }
    starts = np.cumsum([0, *(len(part.facts.shards) for part in parts[:-1])])
    table["shard"] = np.concatenate([part.shard + start for part, start in zip(parts, starts, strict=True)])
    for name in ("offset", "size", "xxh3"):
        rows = []
        for part in parts:
            own = getattr(part, name)
            rows.append(np.full((len(part), len(members)), -1 if name == "offset" else 0, own.dtype))
            rows[-1][:, [members.index(member) for member in part.members]] = own
        table[name] = np.concatenate(rows)
    for name in ("subject", "cap", "image_sha256", "image_id", "concept", "label"):
        mark = name in ("subject", "cap")
        column = np.concatenate(
            [
                [f"{i}-{value}" if mark and value else value for value in part.column(name)]
                for i, part in numbered.items()
            ]
        ).astype(str)
        table[f"{name}.values"], table[f"{name}.codes"] = np.unique(column, return_inverse=True)
    return table
