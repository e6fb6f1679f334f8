"""Encoded pictures to one batch of equal size, decoded by a few threads straight into it.

simplejpeg releases the interpreter lock while it decodes: two threads halve the time (benchmarks/loader_cpu_2026-11-20.md),
and no batch is copied between processes.

Shapes: B pictures, S pixels along a side.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image

from ttd.config import UserError

MAX_PIXELS = 64_000_000
"""A picture that announces more is refused before it is decoded."""


def decode_into(content: bytes, out: np.ndarray) -> None:
    """Fill ``out`` uint8 [S, S, 3] with an encoded jpg or png: shorter side to S (bicubic), centre crop.

    Raises:
        ValueError: not a jpg or png, damaged, or larger than ``MAX_PIXELS``.
    """
    size = len(out)
    if content[:3] == b"\xff\xd8\xff":
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        _check_pixels(height, width)
        if height == width == size:
            simplejpeg.decode_jpeg(content, buffer=out)
            return
        picture = Image.fromarray(simplejpeg.decode_jpeg(content))
    else:
        try:
            with Image.open(BytesIO(content), formats=("PNG",)) as file:
                _check_pixels(file.height, file.width)
                picture = file.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"not a jpg or png that can be decoded: {error}") from error
    shorter = min(picture.size)
    if shorter != size:
        width, height = (max(size, round(side * size / shorter)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    out[:] = np.asarray(picture.crop((left, top, left + size, top + size)))


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels are more than {MAX_PIXELS}")


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
