"""Read-only arrays over a mapped file, and the one kind of error that its damage gives."""

from __future__ import annotations

import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


class RefusedError(ValueError):
    """The file is damaged, or asks for something that is not data. The message names the file."""


class Span(NamedTuple):
    """Bytes that lie in the file."""

    start: int
    stop: int


def guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Damaged bytes make parsers raise anything; outside there is one kind of error."""
    try:
        return read()
    except RefusedError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error) as error:
        raise RefusedError(f"{path}: damaged: {type(error).__name__}: {str(error)[:200]}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, SyntaxError, zlib.error, EOFError) as error:
        raise RefusedError(f"{path}: damaged: {str(error)[:200]}") from error


def plain_dtype(text: str) -> np.dtype:
    """A NumPy type of numbers, truth values or text.

    Raises:
        ValueError: it is anything else (structures, objects, dates).
    """
    if not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,6})", text):
        raise ValueError(f"arrays of type {text[:40]!r} are not read")
    return np.dtype(text)


def view(
    data: mmap.mmap, held: Span | bytes, dtype: np.dtype, shape: Any, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """A read-only array over bytes of the file that must be exactly as many as the shape says."""
    if not natural(shape) or len(shape) > 32:
        raise ValueError(f"impossible shape {str(shape)[:80]}")
    buffer = memoryview(data)[held.start : held.stop] if isinstance(held, Span) else memoryview(held)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != len(buffer):
        raise ValueError(f"shape {shape} of {dtype} takes {claimed:,} bytes, {len(buffer):,} are there")
    return np.ndarray(shape, dtype, buffer=buffer, order=order)


def natural(numbers: Any) -> bool:
    """Whether this is a tuple of integers from 0 up."""
    return type(numbers) is tuple and all(type(n) is int and n >= 0 for n in numbers)
