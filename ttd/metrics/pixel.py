"""Pixel metrics of reconstructed against shown pictures, one value per picture.

Definitions of the MindEye family (Scotti et al., 2024, "MindEye2", arXiv:2403.11207, final_evaluations.ipynb): RGB in
[0, 1], both sides brought to one size (425 there) before PixCorr and SSIM. SSIM is Wang et al., 2004, on grey pictures; the
project prints ``ssim``. Two other definitions that papers print under the same name have names of their own here, so that a
published figure can be met on its own ground.

Shapes: N pictures of height H and width W, channels last, [N, H, W, 3].
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

PUBLISHED_SIZE = 425  # MindEye2's notebook resizes both sides to 425 × 425
GAUSSIAN: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
"""The window of Wang et al., 2004, as MindEye2's notebook sets it."""


def _checked(reconstructed: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64 [N, H, W, 3]; a mistake of shape or range is an error here, not a strange score later."""
    a, b = np.asarray(reconstructed, np.float64), np.asarray(shown, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} vs {b.shape}")
    if a.ndim != 4 or a.shape[-1] != 3:
        raise ValueError(f"pictures must be [N, H, W, 3], got {a.shape}")
    for name, images in (("reconstructed", a), ("shown", b)):
        low, high = images.min(initial=0.0), images.max(initial=0.0)
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ValueError(f"{name} pictures must lie in [0, 1], found {low:.3g} to {high:.3g}")
    return a, b


def resize(images: np.ndarray, size: int, *, mode: Literal["bilinear", "bicubic"] = "bilinear") -> np.ndarray:
    """Pictures [N, H, W, 3] in [0, 1] as [N, size, size, 3], with anti-aliasing; untouched if of that size."""
    if images.shape[1:3] == (size, size):
        return images
    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(np.ascontiguousarray(images, np.float32)).permute(0, 3, 1, 2)
    planes = interpolate(planes, size=(size, size), mode=mode, antialias=True, align_corners=False)
    return planes.permute(0, 2, 3, 1).clamp(0, 1).numpy()


def mse(reconstructed: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Mean squared error over pixels and channels, [N]; unit: squared intensity, lower is better, 0 is perfect.

    It has no chance level of its own (a grey picture does well): read it beside its shuffled control.
    """
    a, b = _checked(reconstructed, shown)
    return ((a - b) ** 2).mean(axis=(1, 2, 3))


def pixcorr(reconstructed: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Pearson correlation of the flattened RGB values, [N] in [-1, 1]; higher is better.

    A picture of a single colour correlates with nothing: its value is 0 (the notebook would give NaN). Pictures of one
    study resemble each other, so chance is the shuffled control, not 0.
    """
    a, b = (x.reshape(len(x), -1) for x in _checked(reconstructed, shown))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), norm, out=np.zeros(len(a)), where=norm > 1e-12)


def ssim(reconstructed: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Structural similarity of the grey pictures, [N] in [-1, 1]; higher is better, 1 is perfect.

    Pinned to the plain two-dimensional definition: ``rgb2gray``, Gaussian window of σ 1.5, population covariance, data
    range 1. (The published scripts pass ``multichannel=True``; before scikit-image 0.20 that made channels of the
    columns and gives other numbers.) Chance is the shuffled control.
    """
    a, b = _checked(reconstructed, shown)
    return np.array([structural_similarity(x, y, **GAUSSIAN) for x, y in zip(rgb2gray(a), rgb2gray(b), strict=True)])


def ssim_columns_as_channels(reconstructed: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """What the MindEye scripts print under scikit-image <= 0.19.3, [N] in [-1, 1]; higher is better, 1 is perfect.

    As ``ssim``, but every *column* of the grey picture is a channel: structure is compared along the height only, in
    windows of one dimension, and averaged over columns. The scripts' ``multichannel=True`` did that to grey pictures up to
    0.19.3 and does nothing from 0.20 on. Only for comparison with figures printed so. Chance is the shuffled control.
    """
    grey = zip(*(rgb2gray(x) for x in _checked(reconstructed, shown)), strict=True)
    return np.array([structural_similarity(x, y, channel_axis=-1, **GAUSSIAN) for x, y in grey])


def ssim_rgb_uniform(reconstructed: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """What DreamDiffusion and MinD-Vis call SSIM, [N] in [-1, 1]; higher is better, 1 is perfect.

    ``ssim_metric`` of DreamDiffusion's code/eval_metrics.py (Bai et al., 2024, arXiv:2306.16934) leaves scikit-image's
    defaults: each of R, G and B by itself and averaged, uniform windows of 7 × 7, sample covariance, the full range of
    intensity. (The papers print its pair-wise score, ``pairwise.pairwise_score``.) Chance is the shuffled control.
    """
    pairs = zip(*_checked(reconstructed, shown), strict=True)
    return np.array([structural_similarity(x, y, channel_axis=-1, data_range=1.0) for x, y in pairs])
