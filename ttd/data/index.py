"""The index beside the shards: the facts of all samples, and where every member lies.

``index.json`` holds the facts (``schema.Facts``), ``index.npz`` the table, ``quarantine.json`` the keys that ``verify``
found damaged; those are left out as if they had never been written.

Shapes: N samples, M member names.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from ttd.config import UserError, fingerprint
from ttd.data.members import Files, MemberReader, Source, decode_npy
from ttd.data.quarantine import read_quarantine
from ttd.data.schema import SCHEMA_VERSION, Facts, hash_of

REMEDY = "build the shards again, or copy the folder again"
MAX_TABLE = 1 << 30
"""Bytes that ``index.npz`` may unpack to: four million samples. More is refused before it is unpacked."""
MAX_MEMBER = 1 << 30
"""Bytes of one member; a table that announces more is refused before anything is allocated."""

Place = tuple[str, str, str, int, int, int]
"""Where a member lies: shard, key, member, first byte, size, XXH3-64."""


class ShardIndex:
    """One folder of shards, as its index describes it. Row i is sample i everywhere.

    Attributes:
        facts: ``schema.Facts``.
        keys: list of N keys.
        quarantined: sorted keys that are left out.
        fingerprint: hash of the content and of the quarantine.
        montage: the channels of every batch where caps differ (see ``use_montage``); None where the only cap stands for
            itself.
    """

    def __init__(self, folder: Path, facts: Facts, table: dict[str, np.ndarray], quarantined: set[str], source: Source):
        self.folder, self.facts = folder, facts
        ends = table["key_ends"].tolist()
        blob = table["keys"].tobytes()
        keys = [blob[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        self.quarantined = sorted(quarantined & set(keys))
        keep = np.array([key not in quarantined for key in keys])
        self.keys = [key for key, kept in zip(keys, keep, strict=True) if kept]
        self.members: list[str] = table["members"].tolist()
        self.shard, self.offset, self.size, self.xxh3 = (table[n][keep] for n in ("shard", "offset", "size", "xxh3"))
        self.n_repetitions = table["n_repetitions"][keep]  # [N]
        self._columns = {
            name.removesuffix(".codes"): (table[name.replace(".codes", ".values")], table[name][keep])
            for name in table
            if name.endswith(".codes")
        }
        self.montage: list[str] | None = None
        self._row = {key: i for i, key in enumerate(self.keys)}
        self.fingerprint = fingerprint([facts.model_dump(exclude={"code_version", "facts_sha256"}), self.quarantined])
        self.reader = MemberReader(source)

    @classmethod
    def read(cls, folder: Path | str, *, open_test: bool = False, quarantine: bool = True) -> ShardIndex:
        """Read the index of ``folder``.

        Args:
            open_test: the test part is locked; only evaluation opens it, after ``splits.open_test`` has put that
                into the ledger.
            quarantine: leave out what stands in ``quarantine.json``.

        Raises:
            UserError: the index is missing or damaged, of another schema, or of the locked test part.
        """
        folder = Path(folder)
        path, table_path = folder / "index.json", folder / "index.npz"
        if not path.is_file():
            raise UserError(f"{folder}: holds no shards (index.json is missing); build them with a script of shards/")
        source = Files(folder)
        facts = parse_facts(path, source.whole(path.name))
        if facts.part == "test" and not open_test:
            raise UserError(f"{folder}: the test part is locked; training and selection take part train or validation")
        if not table_path.is_file():
            raise UserError(f"{table_path}: missing; {REMEDY}")
        table = parse_table(table_path, source.whole(table_path.name), facts)
        return cls(folder, facts, table, set(read_quarantine(folder)) if quarantine else set(), source)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_samples(self) -> int:
        """Samples that are not in quarantine."""
        return len(self.keys)

    @property
    def cap(self) -> str:
        """The only cap.

        Raises:
            UserError: there are several, so that samples cannot share a batch.
        """
        if len(self.facts.caps) != 1:
            raise UserError(
                f"{self.folder}: holds caps {sorted(self.facts.caps)}; one is needed: build one folder per cap, or (in "
                "pretraining) set data.montage=union"
            )
        return next(iter(self.facts.caps))

    def use_montage(self, electrodes: Sequence[str] | Literal["union"]) -> None:
        """Give every batch these channels, or all that occur in any cap; what a sample's cap lacks is zero there.

        Raises:
            UserError: an electrode occurs twice, a cap holds none of them, or shards are normalised per subject.
        """
        caps = self.facts.caps
        names = [name for cap in caps.values() for name in cap] if electrodes == "union" else list(electrodes)
        montage = list(dict.fromkeys(names))
        strangers = sorted(cap for cap, own in caps.items() if not set(own) & set(montage))
        if electrodes != "union" and len(montage) < len(names):
            raise UserError(f"data.montage: {', '.join(sorted({n for n in names if names.count(n) > 1}))} occurs twice")
        if strangers:
            raise UserError(
                f"{self.folder}: cap {', '.join(strangers)} has no electrode of data.montage; name some of it"
            )
        if self.facts.normalise != "channel":
            raise UserError(f"{self.folder}: shards that are normalised per subject have one cap; drop data.montage")
        self.montage = montage

    @property
    def ch_names(self) -> list[str]:
        """Channel names of the montage if there is one, else of the only cap in the order of the rows of an epoch."""
        return list(self.facts.caps[self.cap]) if self.montage is None else list(self.montage)

    def names_of(self, i: int) -> list[str]:
        """Channel names of sample i as it is stored."""
        return self.facts.caps[str(self.column("cap")[i])] if self.montage is not None else self.ch_names

    @property
    def n_chans(self) -> int:
        return len(self.ch_names)

    @property
    def sfreq(self) -> float:
        """Sampling rate in Hz."""
        return self._eeg_fact("sfreq")

    @property
    def n_times(self) -> int:
        return self._eeg_fact("n_times")

    @property
    def tmin(self) -> float:
        """Seconds from the event to the first time point."""
        return self._eeg_fact("tmin")

    def _eeg_fact(self, name: str) -> Any:
        value = getattr(self.facts, name)
        if value is None:
            raise UserError(f"{self.folder}: holds samples of kind {self.facts.kind!r}, but EEG is needed here")
        return value

    def column(self, name: str) -> np.ndarray:
        """A field of every sample [N] as text ("" where it has none): subject, cap, image_sha256, image_id, concept,
        label."""
        values, codes = self._columns[name]
        return values[codes]

    def codes(self, name: str) -> np.ndarray:
        """Dense numbers [N] of a column's distinct values, in sorted order; -1 where a sample has none."""
        values, codes = self._columns[name]
        return codes - 1 if len(values) and values[0] == "" else codes

    @cached_property
    def subjects(self) -> list[str]:
        """Every subject, sorted; their places are the numbers of ``codes("subject")``."""
        return [str(value) for value in self._columns["subject"][0] if value]

    def find(self, key: str) -> int:
        """The row of a key.

        Raises:
            KeyError: there is none, or it is in quarantine.
        """
        return self._row[key]

    def read_member(self, i: int, name: str) -> Any:
        """One decoded, verified member of sample i; arrays are views, valid until this thread's next read."""
        return self.reader.read(*self.places(np.array([i]), name)[0])

    def places(self, rows: np.ndarray, name: str) -> list[Place]:
        """Where member ``name`` of the samples ``rows`` [B] lies.

        Raises:
            UserError: a sample has no such member.
        """
        if name not in self.members or (self.offset[rows, self.members.index(name)] < 0).any():
            raise UserError(f"{self.folder}: samples have no member {name}, only {', '.join(self.members)}")
        m, shards = self.members.index(name), self.facts.shards
        table = (self.shard, self.offset[:, m], self.size[:, m], self.xxh3[:, m])
        columns = (column[rows].tolist() for column in table)
        return [
            (shards[shard].name, self.keys[i], name, offset, size, xxh3)
            for i, shard, offset, size, xxh3 in zip(np.asarray(rows).tolist(), *columns, strict=True)
        ]

    def stage(self, rows: np.ndarray) -> None:
        """Let a sequential source fetch the samples ``rows`` [B] before their members are read."""
        if self.reader.source.sequential:
            offset, size = self.offset[rows], self.size[rows]  # [B, M]; -1 for a member that a sample lacks
            start = np.where(offset < 0, np.iinfo(np.int64).max, offset).min(1).tolist()
            stop = (offset + size).max(1).tolist()
            names = [self.facts.shards[shard].name for shard in self.shard[rows].tolist()]
            self.reader.source.stage(zip(names, start, stop, strict=True))

    def member_names(self, i: int) -> list[str]:
        """Names of the members that sample i has."""
        return [name for name, offset in zip(self.members, self.offset[i], strict=True) if offset >= 0]

    def meta(self, i: int) -> dict[str, Any]:
        """``meta.json`` of sample i (``schema.SampleMeta`` or ``schema.ImageMeta`` as a dict)."""
        return self.read_member(i, "meta.json")


def parse_facts(path: Path | str, content: bytes) -> Facts:
    """The facts in the bytes of ``index.json``.

    Raises:
        UserError: they are damaged, or of another schema.
    """
    try:
        loaded = json.loads(content)
        if loaded.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema_version {loaded.get('schema_version')!r}, this code reads {SCHEMA_VERSION}; "
                "build the shards again with this version"
            )
        if loaded.get("facts_sha256") and loaded["facts_sha256"] != hash_of(loaded):
            raise ValueError("its content differs from its own hash")
        return Facts.model_validate(loaded)
    except (ValueError, AttributeError, ValidationError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); {REMEDY}") from error


def parse_table(path: Path | str, content: bytes, facts: Facts) -> dict[str, np.ndarray]:
    """The arrays in the bytes of ``index.npz``, each checked against ``facts`` and the others.

    Raises:
        UserError: the table is damaged, would unpack to more than ``MAX_TABLE``, or contradicts itself.
    """
    if hashlib.sha256(content).hexdigest() != facts.index_sha256:
        raise UserError(f"{path}: damaged (its hash differs from index.json); {REMEDY}")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_TABLE:
                raise ValueError(f"it would unpack to more than {MAX_TABLE} bytes")
            table = {info.filename.removesuffix(".npy"): decode_npy(archive.read(info)) for info in archive.infolist()}
        n, m = len(table["key_ends"]), len(table["members"])
        shapes = {"shard": (n,), "offset": (n, m), "size": (n, m), "xxh3": (n, m), "n_repetitions": (n,)}
        wrong = [name for name, shape in shapes.items() if table[name].shape != shape]
        columns = [name for name in table if name.endswith(".codes")]
        wrong += [name for name in columns if table[name].shape != (n,) or _outside(table, name)]
        if wrong or n != facts.n_samples:
            raise ValueError(f"{n} keys, {facts.n_samples} samples, and these do not fit: {wrong}")
        ends = table["key_ends"]
        if (np.diff(ends, prepend=0) < 1).any() or ends[-1] != len(table["keys"]):
            raise ValueError("the ends of keys do not fit")
        if not (table["shard"].min() >= 0 and table["shard"].max() < len(facts.shards)):
            raise ValueError("a sample lies in a shard that does not exist")
        ends = table["offset"] + table["size"]
        sizes = np.array([shard.size for shard in facts.shards])[table["shard"]]
        if table["size"].min() < 0 or table["size"].max() > MAX_MEMBER or (ends > sizes[:, None]).any():
            raise ValueError("a member reaches beyond its shard")
    except (ValueError, KeyError, IndexError, EOFError, RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path}: damaged ({error}); {REMEDY}") from error
    return table


def _outside(table: dict[str, np.ndarray], name: str) -> bool:
    codes, values = table[name], table[name.replace(".codes", ".values")]
    return bool(len(codes)) and not (codes.min() >= 0 and codes.max() < len(values))
