"""USTAR archives: the subset shards are made of (plain files with short names), written and walked by our own code.

The walk refuses whatever is not a plain, whole file, and always ends: ``tarfile`` can hang on a crafted header
(CVE-2025-8194) and silently stops at a damaged one. POSIX.1-1988, "ustar interchange format".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_SIZE = 8**11 - 1
"""Eleven octal digits: 8 GiB."""


# What is the same in every header: mode, uid, gid; mtime 0; a plain file, "ustar" and no link, owner or device.
_BEFORE = b"0000644\0" + b"0000000\0" * 2
_MTIME = b"%011o\0" % 0
_AFTER = (b"0".ljust(101, b"\0") + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
_FIXED_SUM = sum(_BEFORE) + sum(_MTIME) + sum(_AFTER) + 8 * 32  # the checksum's own field counts as blanks


class TarDamageError(Exception):
    """The archive is not what was written; ``offset`` is the byte where that shows."""

    def __init__(self, offset: int, message: str):
        super().__init__(message)
        self.offset = offset


class Entry(NamedTuple):
    name: str
    offset: int
    """First byte of the content."""
    size: int


def _checksum(header: bytes | bytearray) -> int:
    return sum(header[:148]) + 8 * 32 + sum(header[156:])


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a file's content; depends on name and size alone, so equal content makes equal archives.

    Raises:
        ValueError: the name is longer than 100 bytes, or the size needs more than eleven octal digits.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= 100:
        raise ValueError(f"member name {name!r} must have 1 to 100 characters")
    if size > MAX_SIZE:
        raise ValueError(f"{name}: {size} bytes are more than a tar member can hold ({MAX_SIZE})")
    digits = b"%011o\0" % size
    checksum = _FIXED_SUM + sum(encoded) + sum(digits)
    return b"".join((encoded.ljust(100, b"\0"), _BEFORE, digits, _MTIME, b"%06o\0 " % checksum, _AFTER))


def padding(size: int) -> bytes:
    """Zeros from the end of a content of ``size`` bytes to the next block."""
    return bytes(-size % BLOCK)


def _octal(field: bytes, offset: int, what: str) -> int:
    digits = field.rstrip(b" \0").lstrip(b" ")
    if not digits or any(c not in b"01234567" for c in digits):
        raise TarDamageError(offset, f"{what} is not an octal number: {field!r}")
    return int(digits, 8)


def walk(fd: int) -> Iterator[Entry]:
    """Every file of an open archive, in order.

    Raises:
        TarDamageError: a header's checksum, type, name or size is wrong, the archive is truncated, or the end mark
            is missing.
    """
    total, offset = os.fstat(fd).st_size, 0
    while True:
        block = os.pread(fd, BLOCK, offset)
        if len(block) < BLOCK:
            raise TarDamageError(offset, "truncated: the end mark is missing")
        if not any(block):
            rest = os.pread(fd, 64 * BLOCK, offset)
            if any(rest) or len(rest) < len(END):
                raise TarDamageError(offset, "a header was zeroed, or something stands after the end mark")
            return
        if _octal(block[148:156], offset, "the header's checksum") != _checksum(block):
            raise TarDamageError(offset, "the header's checksum is wrong")
        if block[257:262] != b"ustar" or block[156:157] not in (b"0", b"\0"):
            raise TarDamageError(
                offset, f"not a plain file (type {block[156:157]!r}); links and extensions are refused"
            )
        name = block[:100].rstrip(b"\0").decode("ascii", "replace")
        if not name or name.startswith("/") or "\0" in name or any(part in ("", "..") for part in name.split("/")):
            raise TarDamageError(offset, f"name {name!r} is refused")
        size = _octal(block[124:136], offset, f"the size of {name}")
        start = offset + BLOCK
        if start + size > total:
            raise TarDamageError(
                offset, f"truncated inside {name}: {size} bytes announced, {max(total - start, 0)} there"
            )
        yield Entry(name, start, size)
        offset = start + size + (-size % BLOCK)
