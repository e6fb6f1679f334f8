"""Read one member of one shard, verified: ``os.preadv`` into a buffer of the thread, xxh3 of what arrived, then decode.

No mmap: a file truncated while mapped kills the process. No pickle: an npy header that asks for objects is refused.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ttd.config import UserError

MAX_OPEN_FILES = 128
"""Per process; far below the usual limit of 1024."""

_headers: dict[bytes, tuple[tuple[int, ...], bool, np.dtype]] = {}


def decode_npy(content: memoryview | bytes) -> np.ndarray:
    """A view [shape] of the array in the bytes of an npy file.

    Raises:
        ValueError: not an npy file, an object array, or a size that differs from what the header announces.
    """
    view = memoryview(content)
    start = 10 + int.from_bytes(view[8:10], "little")  # magic, version 1.0, length of the header
    head = bytes(view[:start])
    if head not in _headers:
        stream = BytesIO(head)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("npy format version is not 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject:
            raise ValueError("holds Python objects, which only pickle could read; refused")
        if len(_headers) > 4096:
            _headers.clear()
        _headers[head] = (shape, fortran, dtype)
    shape, fortran, dtype = _headers[head]
    n = 1
    for length in shape:
        n *= length  # Python integers: cannot overflow
    if len(view) - start != n * dtype.itemsize:
        raise ValueError(f"announces shape {list(shape)} of {dtype}, but holds {len(view) - start} bytes")
    array = np.frombuffer(view, dtype, n, start)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def decode(name: str, content: memoryview) -> Any:
    """npy as an array (a view of ``content``), json as what it holds, anything else as bytes."""
    if name.endswith(".npy"):
        return decode_npy(content)
    return json.loads(bytes(content)) if name.endswith(".json") else bytes(content)


class _Files:
    """The open shards of one process, least recently used closed first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fds: OrderedDict[str, int] = OrderedDict()

    def read_into(self, path: Path, name: str, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; returns how many bytes there were."""
        with self.lock:
            fd = self.fds.get(name)
            if fd is None:
                if len(self.fds) >= MAX_OPEN_FILES:
                    os.close(self.fds.popitem(last=False)[1])
                fd = self.fds[name] = os.open(path / name, os.O_RDONLY | os.O_CLOEXEC)
            self.fds.move_to_end(name)
            done = 0
            while done < len(buffer):
                n = os.preadv(fd, [buffer[done:]], offset + done)
                if n == 0:
                    break
                done += n
            return done


class MemberReader:
    """Reads members of the shards in ``folder``. File descriptors belong to a process, buffers to a thread."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[int, _Files] = {}
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def read(self, shard: str, key: str, name: str, offset: int, size: int, xxh3: int) -> Any:
        """One decoded member. Arrays are views, valid until this thread's next call.

        Raises:
            UserError: the bytes are not those that were written; names shard, key, member, offset and the remedy.
        """
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(max(size, 1 << 16))
        view = memoryview(buffer)[:size]
        files = self._files.setdefault(os.getpid(), _Files())
        problem, content = "", None
        try:
            n = files.read_into(self.folder, shard, view, offset)
            if n < size:
                problem = f"truncated: {n} of {size} bytes are there"
            elif xxhash.xxh3_64_intdigest(view) != xxh3:
                problem = "damaged: the checksum differs from the index"
            else:
                content = decode(name, view)
        except FileNotFoundError:
            problem = "the shard is missing"
        except (OSError, ValueError) as error:
            problem = str(error)
        if problem:
            raise UserError(
                f"{self.folder / shard}: sample {key!r}, member {name} at byte {offset}: {problem}; "
                f"find all damage with `python shards/verify.py shards={self.folder}` and leave it out with "
                "quarantine=true, or build the shards again"
            )
        return content
