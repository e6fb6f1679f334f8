"""The index beside the shards: the facts of all samples, and where every member lies.

``index.json`` holds the facts (``schema.Facts``), ``index.npz`` the table, ``quarantine.json`` the keys that ``verify``
found damaged; those are left out as if they had never been written.

Shapes: N samples, M member names.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ttd.config import UserError, fingerprint
from ttd.data.members import MemberReader
from ttd.data.schema import SCHEMA_VERSION, Facts

REMEDY = "build the shards again, or copy the folder again"


class ShardIndex:
    """One folder of shards, as its index describes it. Row i is sample i everywhere.

    Attributes:
        facts: ``schema.Facts``.
        keys: list of N keys.
        quarantined: sorted keys that are left out.
        fingerprint: hash of the content and of the quarantine.
    """

    def __init__(self, folder: Path, facts: Facts, table: dict[str, np.ndarray], quarantined: set[str]):
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
        self._row = {key: i for i, key in enumerate(self.keys)}
        self.fingerprint = fingerprint([facts.model_dump(exclude={"code_version"}), self.quarantined])
        self.reader = MemberReader(folder)

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
        path = folder / "index.json"
        if not path.is_file():
            raise UserError(f"{folder}: holds no shards (index.json is missing); build them with a script of shards/")
        try:
            content = json.loads(path.read_text())
            if content.get("schema_version") != SCHEMA_VERSION:
                raise UserError(
                    f"{path}: schema_version {content.get('schema_version')!r}, this code reads {SCHEMA_VERSION}; "
                    "build the shards again with this version"
                )
            facts = Facts.model_validate(content)
        except (ValueError, AttributeError, ValidationError) as error:
            raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); {REMEDY}") from error
        if facts.part == "test" and not open_test:
            raise UserError(f"{folder}: the test part is locked; training and selection take part train or validation")
        table_path = folder / "index.npz"
        if not table_path.is_file():
            raise UserError(f"{table_path}: missing; {REMEDY}")
        content = table_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != facts.index_sha256:
            raise UserError(f"{table_path}: damaged (its hash differs from index.json); {REMEDY}")
        with np.load(BytesIO(content), allow_pickle=False) as file:
            table = {name: file[name] for name in file.files}
        return cls(folder, facts, table, read_quarantine(folder) if quarantine else set())

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
                f"{self.folder}: holds caps {sorted(self.facts.caps)}; one is needed: build one folder per cap"
            )
        return next(iter(self.facts.caps))

    @property
    def ch_names(self) -> list[str]:
        """Channel names of the only cap, in the order of the rows of an epoch."""
        return list(self.facts.caps[self.cap])

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
        m = self.members.index(name)
        shard = self.facts.shards[self.shard[i]].name
        place = int(self.offset[i, m]), int(self.size[i, m]), int(self.xxh3[i, m])
        return self.reader.read(shard, self.keys[i], name, *place)

    def member_names(self, i: int) -> list[str]:
        """Names of the members that sample i has."""
        return [name for name, offset in zip(self.members, self.offset[i], strict=True) if offset >= 0]

    def meta(self, i: int) -> dict[str, Any]:
        """``meta.json`` of sample i (``schema.SampleMeta`` or ``schema.ImageMeta`` as a dict)."""
        return self.read_member(i, "meta.json")


def read_quarantine(folder: Path) -> set[str]:
    """Keys that are left out of ``folder``.

    Raises:
        UserError: ``quarantine.json`` is not what ``verify`` writes.
    """
    path = folder / "quarantine.json"
    if not path.is_file():
        return set()
    try:
        return {str(entry["key"]) for entry in json.loads(path.read_text())["samples"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `python shards/verify.py` again") from error
