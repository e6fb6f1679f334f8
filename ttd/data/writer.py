"""Write samples into tar shards with an index beside them; the folder appears whole or not at all.

    with ShardWriter(root / "train", kind="paired") as writer:
        writer.write("sub-01_img-0001", {"eeg.npy": eeg, "meta.json": meta})
        writer.finish({"study": "Simulated", "part": "train", "sfreq": 128.0, ...})

Shapes: N samples, M member names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from pydantic import ValidationError

from ttd.config import UserError
from ttd.data import tar
from ttd.data.schema import EEG_KINDS, Facts, Kind, check_sample, check_shape, hash_of

COLUMNS = ("subject", "cap", "image_sha256", "image_id", "concept", "label")
"""Fields of ``meta.json`` that also stand in the index, so that they are known without opening a shard."""


@lru_cache(maxsize=1024)
def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    out = BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


def encode_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of an npy file (never an object array)."""
    return b"".join(_npy_parts(array))


def _npy_parts(array: np.ndarray) -> list[bytes | memoryview]:
    if array.dtype.hasobject:
        raise ValueError("object arrays would need pickle; store numbers, or JSON")
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [_npy_header(array.dtype, array.shape), content.data]


class ShardWriter:
    """Tar shards of ``samples_per_shard`` samples each, then ``index.json`` and ``index.npz``.

    Everything is written into a hidden folder beside ``folder``; ``finish`` renames it. Leaving the ``with`` block
    without ``finish`` removes it.
    """

    def __init__(self, folder: Path | str, *, kind: Kind, samples_per_shard: int = 512):
        self.folder, self.kind, self.samples_per_shard = Path(folder), kind, samples_per_shard
        self._aside = self.folder.with_name(f".{self.folder.name}.writing")
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self._keys: dict[str, None] = {}
        self._rows: list[tuple[int, dict[str, tuple[int, int, int]]]] = []  # shard, {member: offset, size, xxh3}
        self._columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
        self._n_repetitions: list[int] = []
        self._shapes: dict[tuple[str, tuple[int, ...]], str] = {}  # (cap, shape [C, T]) → a key that has it
        self._shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    @property
    def n_samples(self) -> int:
        return len(self._keys)

    def write(self, key: str, members: dict[str, np.ndarray | bytes | dict]) -> None:
        """Append one sample: arrays for ``*.npy``, dicts for ``*.json``, bytes for images. EEG in µV is stored as
        float16.

        Raises:
            UserError: the key was written before, or the sample breaks the contract (see ``schema.check_sample``).
        """
        if "eeg.npy" in members:
            with np.errstate(over="ignore"):  # an overflow becomes infinite, which the contract refuses
                members = {**members, "eeg.npy": np.asarray(members["eeg.npy"]).astype(np.float16)}
        wrong = "this key was written before" if key in self._keys else check_sample(self.kind, key, members)
        if wrong:
            raise UserError(f"{self.folder}: sample {key!r}: {wrong}")
        meta: Any = members.get("meta.json", {})
        if self.kind in EEG_KINDS:
            eeg: Any = members["eeg.npy"]
            self._shapes.setdefault((meta["cap"], eeg.shape[1:]), key)
        if self.kind == "image":
            meta = {**meta, "image_sha256": meta["sha256"]}
        for name in COLUMNS:
            self._columns[name].append(meta.get(name) or "")
        self._n_repetitions.append(len(meta.get("onsets", ())))

        if self._file is None:
            self._open_shard()
        self._keys[key] = None
        row = {name: self._append(f"{key}.{name}", _encode(value)) for name, value in members.items()}
        self._rows.append((len(self._shards) - 1, row))
        self._shards[-1]["n_samples"] += 1
        if self._shards[-1]["n_samples"] == self.samples_per_shard:
            self._close_shard()

    def finish(self, facts: dict[str, Any]) -> Facts:
        """Write the index from ``facts`` (fields of ``schema.Facts`` that only the caller knows) and rename the folder.

        Raises:
            UserError: nothing was written, a fact is wrong, or a sample does not fit its cap.
        """
        if self._file is not None:
            self._close_shard()
        if not self._keys:
            raise UserError(f"{self.folder}: not one sample was written; are the inputs empty or all rejected?")
        facts = {**facts, "kind": self.kind, "shards": self._shards}
        complete = write_index(self._aside, self._table(), facts, of=self.folder)
        for (cap, shape), key in self._shapes.items():
            wrong = check_shape(complete, cap, (1, *shape))
            if wrong:
                raise UserError(f"{self.folder}: sample {key!r}: {wrong}")
        self._rename()
        return complete

    def _open_shard(self) -> None:
        name = f"{len(self._shards):06d}.tar"
        self._shards.append({"name": name, "size": 0, "sha256": "", "n_samples": 0})
        self._file, self._hash = (self._aside / name).open("wb"), hashlib.sha256()

    def _put(self, content: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(content)
        self._hash.update(content)
        self._shards[-1]["size"] += len(content)

    def _append(self, name: str, parts: list[bytes | memoryview]) -> tuple[int, int, int]:
        size, checksum = sum(len(part) for part in parts), xxhash.xxh3_64()
        self._put(tar.header(name, size))
        offset = self._shards[-1]["size"]
        for part in parts:
            self._put(part)
            checksum.update(part)
        self._put(tar.padding(size))
        return offset, size, checksum.intdigest()

    def _close_shard(self) -> None:
        assert self._file is not None
        self._put(tar.END)
        self._shards[-1]["sha256"] = self._hash.hexdigest()
        _sync(self._file)
        self._file.close()
        self._file = None

    def _table(self) -> dict[str, np.ndarray]:
        names = sorted({name for _, row in self._rows for name in row})
        absent = (-1, 0, 0)
        places = [[row.get(name, absent) for name in names] for _, row in self._rows]
        offset, size, xxh3 = ([[place[i] for place in row] for row in places] for i in range(3))  # [N, M]
        shard = [shard for shard, _ in self._rows]
        return index_table(list(self._keys), names, shard, offset, size, xxh3, self._n_repetitions, self._columns)

    def _rename(self) -> None:
        old = self.folder.with_name(f".{self.folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self._aside.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)


def index_table(
    keys: Sequence[str],
    members: Sequence[str],
    shard: Any,
    offset: Any,
    size: Any,
    xxh3: Any,
    n_repetitions: Any,
    columns: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The arrays of ``index.npz``: ``shard`` and ``n_repetitions`` [N]; ``offset`` (-1 where there is none), ``size`` and
    ``xxh3`` [N, M]; each of ``columns`` [N] text."""
    encoded = [key.encode() for key in keys]
    table: dict[str, np.ndarray] = {
        "keys": np.frombuffer(b"".join(encoded), np.uint8),
        "key_ends": np.cumsum([len(key) for key in encoded], dtype=np.int64),
        "members": np.array(members),
        "shard": np.array(shard, np.int32),
        "offset": np.array(offset, np.int64),
        "size": np.array(size, np.int64),
        "xxh3": np.array(xxh3, np.uint64),
        "n_repetitions": np.array(n_repetitions, np.int32),
    }
    for name, values in columns.items():
        table[f"{name}.values"], codes = np.unique(np.array(values), return_inverse=True)
        table[f"{name}.codes"] = codes.astype(np.int32)
    return table


def write_index(folder: Path, table: dict[str, np.ndarray], facts: dict[str, Any], *, of: Path) -> Facts:
    """Write ``index.npz`` and ``index.json`` into ``folder``, beside the shards that ``facts`` lists; messages name the
    place ``of`` them all.

    Raises:
        UserError: a fact is wrong.
    """
    with open(folder / "index.npz", "wb") as file:
        np.savez_compressed(file, **table)  # type: ignore[arg-type]
        _sync(file)
    known = {
        "code_version": version("ttd"),
        "n_samples": len(table["key_ends"]),
        "index_sha256": hashlib.sha256((folder / "index.npz").read_bytes()).hexdigest(),
    }
    try:
        complete = Facts.model_validate({**facts, **known})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'facts'}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{of}: " + "; ".join(lines)) from error
    content = complete.model_dump(mode="json")
    content["facts_sha256"] = hash_of(content)
    with open(folder / "index.json", "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        _sync(file)
    return complete


def _encode(value: np.ndarray | bytes | dict) -> list[bytes | memoryview]:
    if isinstance(value, np.ndarray):
        return _npy_parts(value)
    if isinstance(value, dict):
        return [json.dumps(value, ensure_ascii=False, sort_keys=True).encode()]
    return [bytes(value)]


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
