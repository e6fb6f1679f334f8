"""The object of a picture, cut out, centred and on a plain ground: what object generators expect.

No weights. In this order: the picture's own transparency; a mask that was handed in; a plain background, known from
the picture's border; a depth map, of which the nearer part is the object. Where none of them finds an object, the
whole picture is handed on, and the result says so.

Letters: H, W pixels of the picture, S of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from ttd.geometry.lifter import LiftRequest

Method = Literal["alpha", "mask", "plain", "depth", "none"]
FILL = 0.85  # share of the frame that the object's longer side takes; what TripoSR, TRELLIS and SF3D crop to
BORDER = 0.05  # width of the border that is taken for background, as a share of the picture's side
PLAIN = 0.06  # border pixels further than this from a smooth ground (root mean square, of 1) are no plain background
KEY = 4.0  # an object's pixel differs from the ground by this many times the border's own spread ...
LEAST_KEY = 0.1  # ... and by at least this much, so that noise and soft shadows stay ground
SMALLEST, LARGEST = 0.005, 0.95  # share of the picture; less is a speck, more is no object on a ground


@dataclass(frozen=True)
class Isolated:
    """A cut-out: ``rgba`` uint8 [S, S, 4] with the object in alpha, and how it was found."""

    rgba: np.ndarray
    method: Method

    def on(self, ground: int = 255) -> np.ndarray:
        """The object on a grey of ``ground``, uint8 [S, S, 3]."""
        alpha = self.rgba[..., 3:].astype(np.float32) / 255
        return (self.rgba[..., :3] * alpha + ground * (1 - alpha)).round().astype(np.uint8)


def isolate(request: LiftRequest, *, size: int = 256) -> Isolated:
    """Cut the object out and bring it to ``FILL`` of a square of ``size`` pixels."""
    rgb = request.image[..., :3]
    mask, method = object_mask(request)
    if mask is None:
        return Isolated(_square(rgb, np.full(rgb.shape[:2], 255, np.uint8), (0, 0, *rgb.shape[:2]), size, 1.0), method)
    alpha = request.image[..., 3] if method == "alpha" else mask.astype(np.uint8) * 255
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return Isolated(_square(rgb, alpha, box, size, FILL), method)


def object_mask(request: LiftRequest) -> tuple[np.ndarray | None, Method]:
    """The object's pixels, bool [H, W], and how they were found; None and ``none`` where nothing finds any."""
    image = request.image
    if image.shape[2] == 4 and (alpha := image[..., 3] > 127).any() and not alpha.all():
        return alpha, "alpha"
    if request.mask is not None and request.mask.any():
        return request.mask.astype(bool), "mask"
    mask = plain_background(image[..., :3])
    if mask is not None:
        return mask, "plain"
    if request.depth is not None:
        mask = nearer_part(request.depth)
        if mask is not None:
            return mask, "depth"
    return None, "none"


def plain_background(image: np.ndarray) -> np.ndarray | None:
    """What stands out from a smooth ground, bool [H, W]; None where the border is not smooth or nothing stands out.

    The ground's colour is a smooth function of place fitted to the border, so a table that darkens with distance is
    plain. The dark part of a cast shadow stays with its object: a grey object on white is no different to see.
    """
    h, w = image.shape[:2]
    width = max(1, round(BORDER * min(h, w)))
    border = np.ones((h, w), bool)
    border[width:-width, width:-width] = False
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    design = np.stack([np.ones_like(x), x, y, y * y], axis=-1)  # [H, W, 4]
    rgb = image.astype(np.float64) / 255
    keep = border.copy()
    for _ in range(2):  # an object that touches the border is left out of the second fit
        fit, *_ = np.linalg.lstsq(design[keep], rgb[keep], rcond=None)
        off = np.linalg.norm(rgb - design @ fit, axis=-1) / np.sqrt(3)
        keep = border & (off <= np.quantile(off[border], 0.8))
    spread = float(np.sqrt((off[keep] ** 2).mean()))
    if spread > PLAIN:
        return None
    return _tidy(off > max(LEAST_KEY, KEY * spread))


def nearer_part(depth: np.ndarray) -> np.ndarray | None:
    """The nearer of two classes of depth, bool [H, W] (Otsu, 1979), where there are two."""
    finite = np.isfinite(depth)
    if not finite.any():
        return None
    low, high = float(depth[finite].min()), float(depth[finite].max())
    if high - low < 0.02 * high:  # a flat wall
        return _tidy(finite) if not finite.all() else None
    if not finite.all():  # a renderer's "nothing is here"
        return _tidy(finite)
    return _tidy(depth < threshold_otsu(depth))


def _tidy(mask: np.ndarray) -> np.ndarray | None:
    """Without specks and holes; None where too little or nearly everything is left."""
    mask = ndimage.binary_opening(mask, iterations=max(1, min(mask.shape) // 128))
    labels, n = ndimage.label(mask)
    if n == 0:
        return None
    sizes = ndimage.sum_labels(mask, labels, np.arange(1, n + 1))
    mask = np.isin(labels, 1 + np.nonzero(sizes >= 0.1 * sizes.max())[0])  # several objects stay together
    mask = ndimage.binary_fill_holes(mask)
    return mask if SMALLEST <= mask.mean() <= LARGEST else None


def _square(rgb: np.ndarray, alpha: np.ndarray, box: tuple[int, int, int, int], size: int, fill: float) -> np.ndarray:
    """The part of a picture in ``box`` (top, left, bottom, right), its longer side ``fill`` of a square, uint8 [S, S, 4]."""
    top, left, bottom, right = box
    cut = Image.fromarray(np.dstack([rgb, alpha])[top:bottom, left:right], "RGBA")
    scale = fill * size / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(cut.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    return np.asarray(canvas)
