"""Encoded jpg and png pictures to pixels: nothing is decoded that announces more pixels than anyone stores.

Shapes: H, W height and width of a picture.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image

MAX_PIXELS = 64_000_000
"""A picture that announces more is refused before it is decoded."""


def decode_picture(content: bytes, out: np.ndarray | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an encoded jpg or png: ``out`` itself where that has the picture's size, else a new array.

    Raises:
        ValueError: not a jpg or png, damaged, or larger than ``MAX_PIXELS``.
    """
    if content[:3] == b"\xff\xd8\xff":
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        _check_pixels(height, width)
        fits = out is not None and out.shape == (height, width, 3)
        return simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=out if fits else None)
    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as file:
            _check_pixels(file.height, file.width)
            return np.array(file.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a jpg or png that can be decoded: {error}") from error


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels are more than {MAX_PIXELS}")
