"""Readers of foreign pickled files that execute nothing: ``.npy``, pickles named ``.npy``, and ``torch.save``.

A pickle is a program (PEP 307, PEP 3154). Here its opcodes are interpreted by hand: a global is never looked up, it is a
pair of words, and the few pairs that mean "an array" or "a tensor" are rebuilt by this module. Any other class is refused,
or becomes an ``Inert`` record that holds its name. Files are mapped, not read: bytes of a pickle are spans of the file, so an
array is a read-only view of it, and nothing that a header claims is allocated before it was compared with the file's size.

Tensors come back as NumPy arrays (bfloat16, which NumPy has not, as float32), so that reading needs no torch.
"""

from __future__ import annotations

import mmap
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttd.untrusted.pickles import Global, Inert, Pickle, Unknown
from ttd.untrusted.views import RefusedError, Span, guarded, plain_dtype, view

__all__ = ["Global", "Inert", "RefusedError", "read_npy", "read_torch"]

MAX_HEADER = 1 << 16


def read_npy(path: Path, *, unknown: Unknown = "refuse") -> Any:
    """What ``np.load(path, allow_pickle=True)`` gives, with ``.item()`` of a single object, by the file's content.

    An array of numbers or text is a read-only view of the file; a dictionary saved with ``np.save``, or pickled under the
    name .npy, is a dictionary with such arrays in it.

    Raises:
        RefusedError: naming the file and what it asks for.
    """
    data = _mapped(path)
    if data[:6] != b"\x93NUMPY":
        return Pickle(path, data, 0, unknown=unknown).run()
    return guarded(path, lambda: _npy(path, data, unknown))


def read_torch(path: Path, *, unknown: Unknown = "refuse") -> Any:
    """What ``torch.load(path, weights_only=True)`` gives, with arrays for tensors; zip files and those before torch 1.6.

    Raises:
        RefusedError: naming the file and what it asks for.
    """
    data = _mapped(path)
    if data[:4] == b"PK\x03\x04":
        return guarded(path, lambda: _torch_zip(path, data, unknown))
    return guarded(path, lambda: _torch_legacy(path, data, unknown))


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise RefusedError(f"{path}: cannot be read: {error}") from error


def _npy(path: Path, data: mmap.mmap, unknown: Unknown) -> Any:
    size = {1: 2, 2: 4, 3: 4}[data[6]]
    n_header = int.from_bytes(data[8 : 8 + size], "little")
    start = 8 + size + n_header
    if n_header > MAX_HEADER or start > len(data):
        raise ValueError(f"its header claims {n_header:,} bytes")
    text = data[8 + size : start].decode("latin-1").strip()
    match = re.fullmatch(
        r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,15}(?:, ?\d{1,15})*,?)?)\), ?\}",
        text,
    )
    if match is None:
        raise ValueError(f"not a header of plain arrays: {text[:80]!r}")
    shape = tuple(int(n) for n in match[3].replace(" ", "").split(",") if n)
    if match[1] in ("|O", "O"):
        content = Pickle(path, data, start, unknown=unknown).run()
        if not isinstance(content, np.ndarray) or content.dtype != object or content.shape != shape:
            raise ValueError(f"its header claims objects of shape {shape}, its content is another")
        return content.item() if content.shape == () else content
    order: Literal["C", "F"] = "F" if match[2] == "True" else "C"
    return view(data, Span(start, len(data)), plain_dtype(match[1]), shape, order)


def _width(dtype: str) -> int:
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


def _torch_zip(path: Path, data: mmap.mmap, unknown: Unknown) -> Any:
    """``archive/data.pkl`` and one stored (never compressed) entry per storage; the entries' CRC-32 are compared."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise ValueError("two entries of the archive have the same name")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("not a file of torch.save (it holds no data.pkl)")
    root = pickles[0].removesuffix("data.pkl")
    spans: dict[str, Span] = {}

    def span_of(name: str) -> Span:
        if name in spans:
            return spans[name]
        entry = entries[name]
        head = entry.header_offset
        if data[head : head + 4] != b"PK\x03\x04" or entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(f"entry {name!r} is not stored as torch.save does")
        start = head + 30 + sum(struct.unpack("<HH", data[head + 26 : head + 30]))
        span = Span(start, start + entry.file_size)
        if span.stop > len(data) or zlib.crc32(memoryview(data)[start : span.stop]) != entry.CRC:
            raise ValueError(f"entry {name!r} does not agree with its checksum")
        spans[name] = span
        return span

    if root + "byteorder" in entries:
        span = span_of(root + "byteorder")
        if data[span.start : span.stop] != b"little":
            raise ValueError("written on a big-endian machine")
    begin, end = span_of(pickles[0])
    return Pickle(path, data, begin, end, unknown=unknown, storage=lambda s: span_of(f"{root}data/{s.key}")).run()


def _torch_legacy(path: Path, data: mmap.mmap, unknown: Unknown) -> Any:
    """Magic number, version, machine, the object, the storages' keys: five pickles; then length and bytes of each storage.

    The object is interpreted twice: once to learn which storages there are, once with their places.
    """
    at, head = 0, []
    for _ in range(3):
        machine = Pickle(path, data, at, unknown="refuse")
        head.append(machine.run())
        at = machine.at
    if head[0] != 0x1950A86A20F9469CFC6C or head[1] != 1001 or not head[2].get("little_endian"):
        raise ValueError("not a file of torch.save")
    first = Pickle(path, data, at, unknown=unknown, storage=lambda _: None)
    first.run()
    keys = Pickle(path, data, first.at, unknown="refuse")
    names, where = keys.run(), {}
    place = keys.at
    for key in names:
        known, n = first.storages[key], int.from_bytes(data[place : place + 8], "little", signed=True)
        span = Span(place + 8, place + 8 + n * _width(known.dtype))
        if n < 0 or span.stop > len(data):
            raise ValueError(f"storage {key} claims {n:,} values, which the file does not hold")
        where[key], place = span, span.stop
    if place != len(data) or len(where) != len(names):
        raise ValueError("the storages do not fill the file")

    return Pickle(path, data, at, unknown=unknown, storage=lambda s: where[s.key]).run()
