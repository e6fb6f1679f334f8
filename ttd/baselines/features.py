"""What the linear baselines see of an epoch: means of time bins, or the power of frequency bands.

Both are transformers of scikit-learn, so that they stand in a Pipeline with a classifier.

Shapes: n epochs, C channels, T samples, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.signal import welch
from sklearn.base import BaseEstimator, TransformerMixin

from ttd.baselines.bins import time_bins


class TimeBins(TransformerMixin, BaseEstimator):
    """Means of successive bins: [n, C, T] → [n, F].

    Args:
        sfreq: sampling rate in Hz.
        tmin: seconds of the first sample.
        start, stop: the bins' span in seconds; all of the epoch where None.
        width_s: of one bin.
    """

    def __init__(
        self, *, sfreq: float, tmin: float, width_s: float, start: float | None = None, stop: float | None = None
    ):
        self.sfreq, self.tmin, self.width_s, self.start, self.stop = sfreq, tmin, width_s, start, stop

    def fit(self, epochs: np.ndarray, labels: Any = None) -> TimeBins:
        """Nothing is learnt."""
        return self

    def transform(self, epochs: np.ndarray) -> np.ndarray:
        """The bins of every channel, one after the other.

        Raises:
            ValueError: the epoch does not hold the span.
        """
        start = self.tmin if self.start is None else self.start
        stop = self.tmin + epochs.shape[-1] / self.sfreq if self.stop is None else self.stop
        facts: dict[str, Any] = {
            "sfreq": self.sfreq,
            "tmin": self.tmin,
            "start": start,
            "stop": stop,
            "width_s": self.width_s,
        }
        return time_bins(np.asarray(epochs, np.float64), **facts).reshape(len(epochs), -1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


class BandPower(TransformerMixin, BaseEstimator):
    """Logarithm of the mean power density of each band and channel: [n, C, T] → [n, F].

    Welch, 1967, IEEE Trans. Audio Electroacoust. 15:70, with segments of at most one second.
    """

    def __init__(self, *, sfreq: float, bands: Sequence[tuple[float, float]]):
        self.sfreq, self.bands = sfreq, bands

    def fit(self, epochs: np.ndarray, labels: Any = None) -> BandPower:
        """Nothing is learnt."""
        return self

    def transform(self, epochs: np.ndarray) -> np.ndarray:
        """Bands of every channel, one after the other.

        Raises:
            ValueError: a band holds no frequency of the spectrum.
        """
        n = min(epochs.shape[-1], round(self.sfreq))
        frequency, power = welch(np.asarray(epochs, np.float64), fs=self.sfreq, nperseg=n, axis=-1)  # [n, C, n/2 + 1]
        inside = [(frequency >= low) & (frequency < high) for low, high in self.bands]
        for (low, high), some in zip(self.bands, inside, strict=True):
            if not some.any():
                raise ValueError(
                    f"band {low:g} to {high:g} Hz holds no frequency; the spectrum has {frequency[1]:g} Hz steps"
                )
        density = np.stack([power[..., some].mean(-1) for some in inside], axis=-1)  # [n, C, bands]
        return np.log10(np.maximum(density, 1e-12)).reshape(len(epochs), -1)

    def __sklearn_is_fitted__(self) -> bool:
        return True
