"""The fair linear baseline: one ridge over all subjects, from whitened EEG to half-whitened image embeddings.

Whitening of channels by the residual covariance over repetitions (multivariate noise normalisation: Guggenmos,
Sterzer & Cichy, 2018, NeuroImage 173:434). The spectrum of an image embedding is uneven and cosine retrieval needs
its small directions, so targets and gallery are multiplied by U·diag(v^-1/4)·Uᵀ (U, v: eigenvectors and eigenvalues
of the training targets' covariance). Plain ridge, on targets that are centred alone, would be a straw man; it is here to
say how much of a network's lead over it the half-whitening is. λ is chosen by the mean cosine on the validation part.

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
    """Predictions [n, D] and gallery [n, D] of the test part per subject, in the space of the fit, and the λ used."""

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


class Centring:
    """Bring embeddings to unit length and centre them by the training mean."""

    def __init__(self, targets: np.ndarray):
        self.mean = _unit(targets).mean(axis=0)

    def __call__(self, targets: np.ndarray) -> np.ndarray:
        """[n, D] → [n, D]."""
        return _unit(targets) - self.mean


class HalfWhitening(Centring):
    """After that, multiply them by U·diag(v^-1/4)·Uᵀ."""

    def __init__(self, targets: np.ndarray):
        super().__init__(targets)
        values, vectors = np.linalg.eigh(np.cov(_unit(targets), rowvar=False))
        values = np.maximum(values, 1e-6 * values[-1])  # a direction without variance is no direction
        self.matrix = (vectors * values**-0.25) @ vectors.T

    def __call__(self, targets: np.ndarray) -> np.ndarray:
        """[n, D] → [n, D]."""
        return super().__call__(targets) @ self.matrix


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


class PooledRidge:
    """One ridge on the training averages of all subjects, or of all but one.

    Per subject, channels are whitened and the mean of the training averages is removed, by training trials alone. The
    subject that is left out is treated so as well, which asks nothing about its pictures but which trials repeat one.

    Args:
        train: single trials, at least 2 repetitions.
        validation: chooses λ.
        half_whitened: the fair baseline; plain ridge where False.
        left_out: place of the subject that neither the fit nor the choice of λ sees.

    Raises:
        ValueError: shapes that do not belong together, a single training repetition, or nobody to learn from.
    """

    def __init__(self, train: Part, validation: Part, *, half_whitened: bool = True, left_out: int | None = None):
        seen = [s for s in range(len(train.eeg)) if s != left_out]
        if not seen:
            raise ValueError("nobody to learn from: the only subject is left out")
        self.whiteners = [channel_whitener(trials) for trials in train.eeg]
        rows = [self._whitened(s, trials) for s, trials in enumerate(train.eeg)]
        self.means = [features.mean(axis=0) for features in rows]
        centred = [(rows[s] - self.means[s]).astype(np.float32) for s in seen]
        held_out = [(self._whitened(s, validation.eeg[s]) - self.means[s]).astype(np.float32) for s in seen]
        targets = np.concatenate([train.targets[s] for s in seen])
        self.space = HalfWhitening(targets) if half_whitened else Centring(targets)
        ridge = Ridge(np.concatenate(centred), self.space(targets))
        wanted = self.space(np.concatenate([validation.targets[s] for s in seen]))
        self.ridge_lambda, self.validation_cosine = ridge.select(np.concatenate(held_out), wanted)
        self.weights = ridge.weights[self.ridge_lambda]

    def _whitened(self, subject: int, trials: np.ndarray) -> np.ndarray:
        """Trials [n, R, C, K] → features of their averages [n, C · K]."""
        average = trials.mean(axis=1)
        return np.einsum("cd,ndk->nck", self.whiteners[subject], average, optimize=True).reshape(len(average), -1)

    def predict(self, test: Part, *, n_repetitions: int | None = None) -> RidgeResult:
        """Every subject's test pictures from the mean of the first ``n_repetitions`` (all when not given)."""
        features = [
            (self._whitened(s, eeg[:, :n_repetitions]) - self.means[s]).astype(np.float32)
            for s, eeg in enumerate(test.eeg)
        ]
        return RidgeResult(
            predictions=[rows @ self.weights for rows in features],
            gallery=[self.space(targets) for targets in test.targets],
            ridge_lambda=self.ridge_lambda,
            validation_cosine=self.validation_cosine,
        )


def pooled_half_whitened_ridge(
    train: Part, validation: Part, test: Part, *, n_repetitions: int | None = None
) -> RidgeResult:
    """The fair baseline in one call: see ``PooledRidge``."""
    return PooledRidge(train, validation).predict(test, n_repetitions=n_repetitions)
