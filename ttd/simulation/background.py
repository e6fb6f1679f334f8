"""What an EEG records besides responses: 1/f background, alpha, mains hum, sensor noise, blinks.

Continuous over a whole recording (noise drawn per epoch would have no drift and no memory), at about 10 µV RMS.

Shapes: C channels, T samples, S sources.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from ttd.experiments.simulated import BackgroundConfig

ALPHA_HZ, LINE_HZ = 10.0, 50.0
N_ALPHA_SOURCES = 3
BLINK_S = 0.3


def pink_noise(rng: np.random.Generator, n_channels: int, n_times: int, sfreq: float) -> np.ndarray:
    """Independent noise [C, T] float32 of unit variance whose power is 1/f above 1 Hz and flat below."""
    n = scipy.fft.next_fast_len(n_times, real=True)
    frequency = np.fft.rfftfreq(n, 1 / sfreq)
    amplitude = np.maximum(frequency, 1.0) ** -0.5
    amplitude[0] = 0.0
    amplitude *= n / (2 * np.sqrt((amplitude**2).sum()))  # both parts of a coefficient have unit variance
    amplitude = amplitude.astype(np.float32)
    noise = np.empty((n_channels, n_times), np.float32)
    for row in noise:
        spectrum = rng.standard_normal((len(amplitude), 2), dtype=np.float32).view(np.complex64)[:, 0]
        row[:] = scipy.fft.irfft(spectrum * amplitude, n)[:n_times]
    return noise


def alpha_rhythm(rng: np.random.Generator, n_sources: int, n_times: int, sfreq: float) -> np.ndarray:
    """Rhythms [S, T] float32 of unit variance: 10 Hz, gamma-distributed slow strength, drifting phase."""
    seconds = np.arange(int(n_times / sfreq) + 2)
    t = np.arange(n_times) / sfreq
    rhythm = np.empty((n_sources, n_times), np.float32)
    for row in rhythm:
        strength = np.interp(t, seconds, rng.gamma(2.0, 0.5, len(seconds)))
        drift = np.interp(t, seconds, np.cumsum(rng.normal(0, 1.0, len(seconds))))
        row[:] = strength * np.sin(2 * np.pi * ALPHA_HZ * t + drift + rng.uniform(0, 2 * np.pi))
    return rhythm * np.float32(1.5**0.5)  # E[strength²] is 4/3 (3/2 at a knot, less between), and sine halves it


class Background:
    """The background of one subject.

    Args:
        spread: covariance [C, C] of the cortical background; only its form counts.
        alpha_topography: weights [C, S] of the alpha sources; only their form counts.
        blink_topography: weights [C], 1 nearest to the eyes.
        rng: draws what belongs to the subject (mains pick-up per channel).
    """

    def __init__(
        self,
        config: BackgroundConfig,
        *,
        spread: np.ndarray,
        alpha_topography: np.ndarray,
        blink_topography: np.ndarray,
        sfreq: float,
        rng: np.random.Generator,
    ):
        n = len(spread)
        values, vectors = np.linalg.eigh(spread * n / np.trace(spread))
        root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T  # the average reference leaves it without full rank
        strength = np.sqrt((alpha_topography**2).sum() / n)
        line = np.exp(0.5 * rng.standard_normal(n))
        self.config, self.sfreq, self.n_channels = config, sfreq, n
        self.pink_mixing = (config.pink_uv * root).astype(np.float32)
        self.alpha_topography = (config.alpha_uv * alpha_topography / strength).astype(np.float32)
        self.line = config.line_uv * line / np.sqrt((line**2).mean())
        self.blink_topography = (config.blink_uv * blink_topography).astype(np.float32)
        reference = np.eye(n) - 1 / n
        covariance = (
            self.pink_mixing @ self.pink_mixing.T
            + self.alpha_topography @ self.alpha_topography.T
            + np.outer(self.line, self.line)
            + config.white_uv**2 * np.eye(n)
        )
        self.rms = np.sqrt(np.diag(reference @ covariance @ reference))
        """Expected RMS [C] in µV of the average-referenced background, blinks aside."""

    def record(self, rng: np.random.Generator, n_times: int) -> np.ndarray:
        """One recording [C, T] float32 in µV, average reference."""
        n, t = self.n_channels, np.arange(n_times) / self.sfreq
        data = self.pink_mixing @ pink_noise(rng, n, n_times, self.sfreq)
        data += self.alpha_topography @ alpha_rhythm(rng, self.alpha_topography.shape[1], n_times, self.sfreq)
        hum = np.sqrt(2) * np.sin(2 * np.pi * LINE_HZ * t + rng.uniform(0, 2 * np.pi))
        hum = hum.astype(np.float32)
        for row, line in zip(data, self.line, strict=True):
            row += np.float32(line) * hum
            row += np.float32(self.config.white_uv) * rng.standard_normal(n_times, dtype=np.float32)
        shape = np.hanning(round(BLINK_S * self.sfreq)).astype(np.float32)
        for start in rng.integers(0, n_times, rng.poisson(self.config.blinks_per_minute * n_times / self.sfreq / 60)):
            piece = data[:, start : start + len(shape)]
            piece += np.outer(self.blink_topography, shape[: piece.shape[1]])
        data -= data.mean(axis=0)
        return data
