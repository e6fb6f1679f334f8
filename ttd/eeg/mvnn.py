"""Multivariate noise normalisation as THINGS-EEG2 was published with it.

Guggenmos, Sterzer & Cichy, 2018, NeuroImage 173:434; Gifford et al., 2022, NeuroImage 264:119754; as Song et al., 2024,
ICLR ("NICE"), do it: one covariance over time per epoch, shrunk by Ledoit & Wolf (2004), averaged over the repetitions of
a picture and then over pictures, of the training part of one session.

``ttd.data.whitening`` is the other way, when shards are read: one matrix per subject, from what differs between repetitions.

Shapes: C channels, T time points.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterable

import numpy as np
from sklearn.covariance import ledoit_wolf


def covariance(eeg: np.ndarray) -> np.ndarray:
    """Covariance [C, C] over time of one epoch [C, T], shrunk on the scale of its channels' standard deviations.

    The same as scikit-learn's private ``_cov(eeg.T, shrinkage="auto")``.
    """
    scale = eeg.std(axis=1, keepdims=True)
    scale[scale == 0] = 1.0
    shrunk, _ = ledoit_wolf(((eeg - eeg.mean(axis=1, keepdims=True)) / scale).T)
    return shrunk * scale * scale.T


def whitener(found: Iterable[tuple[Hashable, np.ndarray]]) -> np.ndarray:
    """Σ^(-1/2) [C, C] from epochs [C, T], each with the picture it belongs to.

    Raises:
        ValueError: there is no epoch, or a channel never varies.
    """
    total: dict[Hashable, np.ndarray] = {}
    n: collections.Counter[Hashable] = collections.Counter()
    for picture, eeg in found:
        total[picture] = total.get(picture, 0.0) + covariance(np.asarray(eeg, np.float64))
        n[picture] += 1
    if not total:
        raise ValueError("no epoch to estimate the noise from")
    sigma = sum(total[picture] / n[picture] for picture in total) / len(total)
    values, vectors = np.linalg.eigh(np.asarray(sigma))
    if values[0] <= 0:
        raise ValueError("the noise covariance is singular; a channel does not vary")
    return (vectors * values**-0.5) @ vectors.T
