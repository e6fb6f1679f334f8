"""Encoded pictures to one batch of equal size, decoded by a few threads straight into it.

simplejpeg releases the interpreter lock while it decodes: two threads halve the time (benchmarks/loader_cpu_2026-11-20.md),
and no batch is copied between processes.

Shapes: B pictures, S pixels along a side.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from ttd.config import UserError
from ttd.untrusted.pictures import decode_picture


def decode_into(content: bytes, out: np.ndarray) -> None:
    """Fill ``out`` uint8 [S, S, 3] with an encoded jpg or png: shorter side to S (bicubic), centre crop.

    Raises:
        ValueError: not a jpg or png, damaged, or too large.
    """
    size, pixels = len(out), decode_picture(content, out)
    if pixels is out:
        return
    picture = Image.fromarray(pixels)
    shorter = min(picture.size)
    if shorter != size:
        width, height = (max(size, round(side * size / shorter)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    out[:] = np.asarray(picture.crop((left, top, left + size, top + size)))


class PictureDecoder:
    """Decodes batches with ``threads`` threads, or in the caller's when that is 1."""

    def __init__(self, size: int, threads: int):
        self.size = size
        self.pool = ThreadPoolExecutor(threads, "ttd-decode") if threads > 1 else None

    def batch(self, files: Iterable[tuple[str, bytes]], out: np.ndarray) -> None:
        """Fill ``out`` uint8 [B, S, S, 3] with the pictures of (name, content); each is decoded while the next are read.

        Raises:
            UserError: one cannot be decoded; see ``decode_into``.
        """
        if self.pool is None:
            for row, (name, content) in enumerate(files):
                _decode(name, content, out[row])
            return
        tasks: list[Future] = [self.pool.submit(_decode, *file, out[row]) for row, file in enumerate(files)]
        for task in tasks:
            task.result()


def _decode(name: str, content: bytes, out: np.ndarray) -> None:
    try:
        decode_into(content, out)
    except ValueError as error:
        raise UserError(f"{name}: the picture cannot be decoded: {error}; build the shards again without it") from error
