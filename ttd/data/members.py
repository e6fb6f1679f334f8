"""Read members of shards, verified: ``os.preadv`` into the caller's buffer, xxh3 of what arrived, then decode.

No mmap: a file truncated while mapped kills the process. No pickle: an npy header that asks for objects is refused. What a
file system loses for a moment (EIO, a stale handle, a read that ends early although the file goes on) is asked for again, at
most three times. A byte that changed is not: the same page would come from the same memory.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from ttd.config import UserError

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 64
"""Per thread; a few threads stay far below the usual limit of 1024."""
PAUSES_S = (0.05, 0.2, 0.8)
"""Before each of the three times that a read is tried again."""
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""What a file server that fails over, or is asked too much, answers; the last two by NFS."""
SLOW_S = 1.0
"""A read that takes longer is told: a disk needs milliseconds, a busy file server tenths of a second."""

_headers: dict[bytes, tuple[tuple[int, ...], bool, np.dtype]] = {}


class StorageError(OSError):
    """A read failed after all tries: of the bytes nothing is known. No mistake of the user's, so a job may start again."""


class DamageError(UserError):
    """Bytes of a sample are not those that were written; ``key`` and ``reason`` are for the quarantine.

    ``folder`` is None where nothing can be written beside the index, or nothing should.
    """

    def __init__(self, message: str, *, folder: Path | None, key: str, reason: str):
        super().__init__(message)
        self.folder, self.key, self.reason = folder, key, reason


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
    if min(shape, default=0) < 0 or len(view) - start != n * dtype.itemsize:
        raise ValueError(f"announces shape {list(shape)} of {dtype}, but holds {len(view) - start} bytes")
    array = np.frombuffer(view, dtype, n, start)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def decode(name: str, content: memoryview) -> Any:
    """npy as an array (a view of ``content``), json as what it holds, anything else as bytes."""
    if name.endswith(".npy"):
        return decode_npy(content)
    return json.loads(bytes(content)) if name.endswith(".json") else bytes(content)


class Source(Protocol):
    """Where the bytes of shards come from."""

    where: str
    """The folder, for messages."""
    sequential: bool
    """Whether reading in the order of the file is much cheaper than anywhere; then a batch is staged before it is read."""

    @property
    def folder(self) -> Path | None:
        """The folder if it is a local one."""

    def stage(self, spans: Iterable[tuple[str, int, int]]) -> None:
        """Fetch what lies at (shard, first byte, end)."""

    def read_into(self, shard: str, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; returns how many bytes there were."""


class _Open:
    """The open shards of one thread, least recently used closed first."""

    def __init__(self) -> None:
        self.fds: OrderedDict[str, int] = OrderedDict()

    def fd(self, shard: str, place: Callable[[str], Path]) -> int:
        fd = self.fds.get(shard)
        if fd is None:
            if len(self.fds) >= MAX_OPEN_FILES:
                os.close(self.fds.popitem(last=False)[1])
            fd = self.fds[shard] = os.open(place(shard), os.O_RDONLY | os.O_CLOEXEC)
        self.fds.move_to_end(shard)
        return fd

    def forget(self, shard: str) -> None:
        if (fd := self.fds.pop(shard, None)) is not None:
            os.close(fd)

    def __del__(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


class Files:
    """Shards in a local or shared folder. Each thread has its own descriptors; positional reads survive a fork.

    Shards that a job has copied to the node's own disk, below the folder that ``TTD_STAGED`` names, are read there; the index
    that they are verified against stays the shared one.
    """

    sequential = False

    def __init__(self, folder: Path):
        self.where, self._folder, self.local = str(folder), folder, threading.local()
        self.troubles, self.lost_s = 0, 0.0
        self._near = Path(f"{os.environ['TTD_STAGED']}{folder.resolve()}") if "TTD_STAGED" in os.environ else None

    def _place(self, shard: str) -> Path:
        near = self._near / shard if self._near and shard.endswith(".tar") else None
        return near if near and near.is_file() else self._folder / shard

    def distrust_copies(self, shard: str) -> bool:
        """Read the shared files from now on; False where that is what is done already."""
        if self._near is None:
            return False
        logger.warning("%s: differs from the index; reading %s instead", self._near / shard, self._folder / shard)
        self._near = None
        self.local.open.forget(shard)
        return True

    @property
    def folder(self) -> Path | None:
        """The folder."""
        return self._folder

    def stage(self, spans: Iterable[tuple[str, int, int]]) -> None:
        """Nothing: any byte is as near as any other."""

    def whole(self, name: str) -> bytes:
        """All of a file beside the shards.

        Raises:
            UserError: it cannot be read.
        """
        try:
            buffer = memoryview(bytearray((self._folder / name).stat().st_size))
            n = self.read_into(name, 0, buffer)
        except OSError as error:
            raise UserError(f"{self._folder / name}: cannot be read: {error}") from error
        self.local.open.forget(name)
        return bytes(buffer[:n])

    def read_into(self, shard: str, offset: int, buffer: memoryview) -> int:
        if not hasattr(self.local, "open"):
            self.local.open = _Open()
        done, tries = 0, 0
        while True:
            start = time.monotonic()
            try:
                fd = self.local.open.fd(shard, self._place)
                n = os.preadv(fd, [buffer[done:] if done else buffer], offset + done)
                done += n
                if (took_s := time.monotonic() - start) > SLOW_S:
                    self._tell(shard, offset, f"a read took {took_s:.1f} s", took_s)
                if done == len(buffer) or (not n and offset + done >= os.fstat(fd).st_size):
                    return done
                if n:
                    continue
                what = f"{done} of {len(buffer)} bytes arrived"
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                if tries == len(PAUSES_S):
                    raise OSError(error.errno, f"{os.strerror(error.errno)}, {tries + 1} times") from error
                what = str(error)
                self.local.open.forget(shard)  # a stale handle stays stale
            if tries == len(PAUSES_S):
                return done
            pause_s = PAUSES_S[tries]
            self._tell(shard, offset + done, f"{what}; trying again", time.monotonic() - start + pause_s)
            time.sleep(pause_s)
            tries += 1

    def _tell(self, shard: str, offset: int, what: str, lost_s: float) -> None:
        """Log what storage did, and how often and how long so far; of many times the 1st, 2nd, 4th, 8th and so on."""
        self.troubles, self.lost_s = self.troubles + 1, self.lost_s + lost_s
        if self.troubles & (self.troubles - 1) == 0:
            so_far = f"{self.troubles} such reads so far, {self.lost_s:.1f} s lost"
            message = f"{self._folder / shard} at byte {offset}: {what} ({so_far})"
            logger.warning(message, extra={"any_rank": True})  # each rank's reads are its own


class MemberReader:
    """Verified members of the shards of ``source``."""

    def __init__(self, source: Source):
        self.source = source
        self._local = threading.local()

    def buffer(self, size: int) -> memoryview:
        """``size`` bytes that belong to this thread until its next call."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = memoryview(bytearray(max(size, 1 << 16)))
        return buffer[:size]

    def read_into(self, shard: str, key: str, name: str, offset: int, xxh3: int, view: memoryview) -> None:
        """Fill ``view`` with one whole member.

        Raises:
            DamageError: the bytes are not those that were written; names shard, key, member, offset and the remedy.
            StorageError: they cannot be read.
        """
        try:
            n = self.source.read_into(shard, offset, view)
        except FileNotFoundError:
            raise self.damage(shard, key, name, offset, "the shard is missing") from None
        except OSError as error:
            if error.errno in TRANSIENT:
                where = f"{self.source.where}/{shard}: sample {key!r}, member {name} at byte {offset}"
                raise StorageError(f"{where}: {error}; look at the storage, then start again") from error
            unreadable = self.damage(shard, key, name, offset, str(error))
            unreadable.folder = None  # of the sample nothing is known, so no policy leaves it out
            raise unreadable from error
        good = n == len(view) and xxhash.xxh3_64_intdigest(view) == xxh3
        if not good and isinstance(self.source, Files) and self.source.distrust_copies(shard):
            return self.read_into(shard, key, name, offset, xxh3, view)
        if n < len(view):
            raise self.damage(shard, key, name, offset, f"truncated: {n} of {len(view)} bytes are there")
        if not good:
            raise self.damage(shard, key, name, offset, "damaged: the checksum differs from the index")

    def read(self, shard: str, key: str, name: str, offset: int, size: int, xxh3: int) -> Any:
        """One decoded member. Arrays are views, valid until this thread's next call.

        Raises:
            DamageError: as ``read_into``, or the content is not what its name says.
        """
        view = self.buffer(size)
        self.read_into(shard, key, name, offset, xxh3, view)
        try:
            return decode(name, view)
        except (ValueError, RecursionError) as error:
            raise self.damage(shard, key, name, offset, str(error)) from error

    def damage(self, shard: str, key: str, name: str, offset: int, problem: str) -> DamageError:
        """The error that names a member, what is wrong with it, and the remedy."""
        message = (
            f"{self.source.where}/{shard}: sample {key!r}, member {name} at byte {offset}: {problem}; "
            f"find all damage with `python shards/verify.py shards={self.source.where}` and leave it out with "
            "quarantine=true, or build the shards again"
        )
        return DamageError(
            message, folder=self.source.folder, key=key, reason=f"member {name} at byte {offset}: {problem}"
        )
