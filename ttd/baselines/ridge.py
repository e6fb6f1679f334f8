"""The fair linear baseline: one ridge over all subjects, from whitened EEG to half-whitened image embeddings.

Whitening of channels by the residual covariance over repetitions (multivariate noise normalisation: Guggenmos,
Sterzer & Cichy, 2018, NeuroImage 173:434). The spectrum of an image embedding is uneven and cosine retrieval needs
its small directions, so targets and gallery are multiplied by U·diag(v^-1/4)·Uᵀ (U, v: eigenvectors and eigenvalues
of the training targets' covariance); plain ridge would be a straw man. λ is chosen by the mean cosine on the
validation part.

Shapes: n images, R repetitions, C channels, K time bins, D target numbers; one array per subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

SHRINKAGE = 0.01
LAMBDAS = tuple(10.0 ** (0.5 * i) for i in range(-3, 7))
"""Candidates, in units of the mean eigenvalue of XᵀX."""


@dataclass(frozen=True)
class Part:
    """One part of the split.

    Attributes:
        eeg: per subject, binned single trials [n, R, C, K].
        targets: per subject, embeddings [n, D] of the pictures that the rows saw.
    """

    eeg: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        if len(self.eeg) != len(self.targets) or not self.eeg:
            raise ValueError(
                f"need one target array per subject, got {len(self.eeg)} subjects, {len(self.targets)} arrays"
            )
        for eeg, targets in zip(self.eeg, self.targets, strict=True):
            if eeg.ndim != 4 or len(eeg) != len(targets):
                raise ValueError(f"need trials [n, R, C, K] and targets [n, D], got {eeg.shape} and {targets.shape}")


@dataclass(frozen=True)
class RidgeResult:
    """Predictions [n, D] and gallery [n, D] of the test part per subject, centred and half-whitened, and the λ used."""

    predictions: list[np.ndarray]
    gallery: list[np.ndarray]
    ridge_lambda: float
    validation_cosine: float


def channel_whitener(trials: np.ndarray) -> np.ndarray:
    """The inverse square root [C, C] of the residual covariance of trials [n, R, C, K] around each picture's mean.

    Raises:
        ValueError: R < 2, where residuals are exactly 0.
    """
    n, r, c, k = trials.shape
    if r < 2:
        raise ValueError(f"whitening needs at least 2 repetitions, got {r}")
    residual = (trials - trials.mean(axis=1, keepdims=True)).transpose(2, 0, 1, 3).reshape(c, -1)
    covariance = (residual @ residual.T).astype(np.float64) / (n * (r - 1) * k)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / c * np.eye(c)
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * values**-0.5) @ vectors.T


class HalfWhitening:
    """Bring embeddings to unit length, centre them by the training mean and multiply them by U·diag(v^-1/4)·Uᵀ."""

    def __init__(self, targets: np.ndarray):
        targets = _unit(targets)
        self.mean = targets.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(targets, rowvar=False))
        values = np.maximum(values, 1e-6 * values[-1])  # a direction without variance is no direction
        self.matrix = (vectors * values**-0.25) @ vectors.T

    def __call__(self, targets: np.ndarray) -> np.ndarray:
        """[n, D] → [n, D]."""
        return (_unit(targets) - self.mean) @ self.matrix


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


class Ridge:
    """Weights [F, D] for every λ of ``LAMBDAS``, from features [n, F] and targets [n, D], both centred already."""

    def __init__(self, features: np.ndarray, targets: np.ndarray):
        x = np.asarray(features, np.float32)
        gram = (x.T @ x).astype(np.float64)
        cross = x.T.astype(np.float32) @ np.asarray(targets, np.float32)
        unit = np.trace(gram) / len(gram)
        diagonal = np.diag_indices_from(gram)
        self.weights: dict[float, np.ndarray] = {}
        for relative in LAMBDAS:
            shifted = gram.copy()
            shifted[diagonal] += relative * unit
            self.weights[relative] = scipy.linalg.solve(shifted, cross, assume_a="pos", overwrite_a=True)

    def select(self, features: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """The λ with the highest mean cosine on a validation part, and that cosine.

        Not by top-1: on a small part that picks noise.
        """
        scores = {relative: _mean_cosine(features @ w, targets) for relative, w in self.weights.items()}
        best = max(scores, key=lambda relative: scores[relative])
        return best, scores[best]


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(norms, 1e-12)).mean())


def pooled_half_whitened_ridge(
    train: Part, validation: Part, test: Part, *, n_repetitions: int | None = None
) -> RidgeResult:
    """Fit one ridge on all subjects' training averages and predict every subject's test pictures.

    Per subject, channels are whitened and the mean of the training averages is removed, by training trials alone.

    Args:
        train: single trials, at least 2 repetitions.
        validation: chooses λ.
        test: what is predicted; its targets become the gallery.
        n_repetitions: how many test repetitions are averaged; all when not given.

    Raises:
        ValueError: shapes that do not belong together, or a single training repetition.
    """
    rows: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for s, trials in enumerate(train.eeg):
        whitener = channel_whitener(trials)
        mean: np.ndarray | None = None
        for name, eeg in (("train", trials), ("validation", validation.eeg[s]), ("test", test.eeg[s])):
            average = (eeg[:, :n_repetitions] if name == "test" else eeg).mean(axis=1)  # [n, C, K]
            features = np.einsum("cd,ndk->nck", whitener, average, optimize=True).reshape(len(average), -1)
            mean = features.mean(axis=0) if mean is None else mean
            rows[name].append((features - mean).astype(np.float32))
    half = HalfWhitening(np.concatenate(train.targets))
    ridge = Ridge(np.concatenate(rows["train"]), half(np.concatenate(train.targets)))
    chosen, cosine = ridge.select(np.concatenate(rows["validation"]), half(np.concatenate(validation.targets)))
    weights = ridge.weights[chosen]
    return RidgeResult(
        predictions=[features @ weights for features in rows["test"]],
        gallery=[half(targets) for targets in test.targets],
        ridge_lambda=chosen,
        validation_cosine=cosine,
    )
