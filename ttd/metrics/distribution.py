"""How near a set of pictures is to another set, whoever belongs to whom: FID and KID of network features.

FID: Heusel et al., 2017, arXiv:1706.08500. KID: Binkowski et al., 2018, arXiv:1801.01401. Both are published on the 2048
features of the Inception network of the original TensorFlow release (``networks``: ``fid_inception``); on other features they
are other figures and the features belong to their labels.

Neither says whether a reconstruction shows what was seen: a model that ignores the EEG may score best. There is no chance
level: the control is the same figure for wrong EEG, and the floor is that of two halves of the real pictures.

Shapes: N and M pictures, F features.
"""

from __future__ import annotations

import numpy as np

from ttd.seeding import numpy_rng

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""Of Binkowski et al., 2018, section 4, and of torchmetrics and torch-fidelity."""


def frechet_distance(mean: np.ndarray, cov: np.ndarray, other_mean: np.ndarray, other_cov: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians, |m - m'|² + tr(C + C' - 2 (C C')^½), squared feature units; 0 is best.

    Dowson & Landau, 1982. The trace of the root is summed over the eigenvalues of C^½ C' C^½, which are those of C C' and
    stay real and not negative however few the pictures.

    Raises:
        ValueError: means [F] and covariances [F, F] of different widths.
    """
    f = len(mean)
    if other_mean.shape != (f,) or cov.shape != (f, f) or other_cov.shape != (f, f):
        raise ValueError(f"shapes do not fit: {mean.shape}, {cov.shape}, {other_mean.shape}, {other_cov.shape}")
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other_cov @ root).clip(0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * shared)


def fid(features: np.ndarray, other: np.ndarray) -> float:
    """Fréchet Inception distance of features [N, F] and [M, F]; squared feature units, lower is better, 0 is equality.

    It is biased upwards, the more the fewer the pictures (Binkowski et al., 2018; Chong & Forsyth, 2020,
    arXiv:1911.07023): of a few hundred pictures with 2048 features it is mostly bias, the covariances are singular, and it
    compares only with an FID of as many pictures of both kinds. Published figures take 10,000 to 50,000. Use KID for less.

    Raises:
        ValueError: fewer than 2 pictures on a side, other widths, values that are not finite.
    """
    a, b = _checked(features, other)
    return frechet_distance(a.mean(0), np.atleast_2d(np.cov(a.T)), b.mean(0), np.atleast_2d(np.cov(b.T)))


def squared_mmd(features: np.ndarray, other: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of features [N, F] and [M, F] for the kernel (x·y / F + 1)³.

    Gretton et al., 2012, JMLR 13:723, lemma 6. Lower is better; 0 is expected of equal distributions, and a single figure may
    be negative.

    Raises:
        ValueError: as ``fid``.
    """
    a, b = _checked(features, other)
    within = _mean_off_diagonal(_kernel(a, a)) + _mean_off_diagonal(_kernel(b, b))
    return float(within - 2 * _kernel(a, b).mean())


def kid(
    features: np.ndarray,
    other: np.ndarray,
    *,
    seed: int,
    n_subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
) -> tuple[float, float]:
    """Kernel Inception distance: mean and sd over random subsets of both sides; lower is better, 0 is equality.

    Unbiased at any number of pictures, so figures of a few hundred pictures compare; often printed times 1000. The sd
    is that of one subset, not the uncertainty of the mean: subsets share pictures.

    Args:
        features, other: [N, F] and [M, F].
        seed: of the subsets.
        subset_size: pictures drawn from each side without replacement; at most min(N, M).

    Raises:
        ValueError: as ``fid``, or a subset larger than a side.
    """
    a, b = _checked(features, other)
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise ValueError(
            f"subset_size={subset_size} must be between 2 and the {min(len(a), len(b))} pictures of a side"
        )
    values = []
    for i in range(n_subsets):
        rng = numpy_rng(seed, "kid", i)
        drawn = (x[rng.choice(len(x), subset_size, replace=False)] for x in (a, b))
        values.append(squared_mmd(*drawn))
    return float(np.mean(values)), float(np.std(values))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_off_diagonal(square: np.ndarray) -> float:
    n = len(square)
    return float((square.sum() - np.trace(square)) / (n * (n - 1)))


def _checked(features: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(features, np.float64), np.asarray(other, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be [N, F] and [M, F] of at least 2 pictures, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features are not all finite")
    return a, b
