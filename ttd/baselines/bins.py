"""Time bins: the few numbers per electrode that the linear baselines look at."""

from __future__ import annotations

import numpy as np


def time_bins(
    epochs: np.ndarray, *, sfreq: float, tmin: float, start: float, stop: float, width_s: float
) -> np.ndarray:
    """Means over successive bins of ``width_s`` seconds between ``start`` and ``stop``: [..., C, T] → [..., C, K].

    ``tmin`` is the time of the first sample. A bin holds a whole number of samples (24 ms at 125 Hz are 3); a last bin
    that would be incomplete is left out.

    Raises:
        ValueError: a bin is shorter than a sample, or the epoch does not reach from ``start`` to the end of one bin.
    """
    width = round(width_s * sfreq)
    if width < 1:
        raise ValueError(f"bins of {width_s} s are shorter than a sample at {sfreq} Hz")
    first = round((start - tmin) * sfreq)
    last = min(epochs.shape[-1], round((stop - tmin) * sfreq))
    n = (last - first) // width
    if first < 0 or n < 1:
        raise ValueError(
            f"epoch from {tmin} s with {epochs.shape[-1]} samples at {sfreq} Hz does not hold {start} to {stop} s"
        )
    return epochs[..., first : first + n * width].reshape(*epochs.shape[:-1], n, width).mean(axis=-1)
