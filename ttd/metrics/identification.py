"""Identification: does a reconstruction point at its own stimulus, by a network's features or by a judge's words?

Shapes: N reconstructions, M candidate stimuli, F features; ``own`` [N] is the candidate each reconstruction belongs to.
"""

from __future__ import annotations

import numpy as np

TWO_WAY_CHANCE = 0.5


def correlation_matrix(reconstructed: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Pearson correlation of every row of [N, F] with every row of [M, F]: [N, M]; a constant row correlates 0."""
    if reconstructed.ndim != 2 or candidates.ndim != 2 or reconstructed.shape[1] != candidates.shape[1]:
        raise ValueError(f"features must be [N, F] and [M, F], got {reconstructed.shape} and {candidates.shape}")
    return _standardised(reconstructed) @ _standardised(candidates).T


def two_way_identification(similarity: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """Fraction of distractors that each reconstruction resembles less than its own stimulus, [N]; higher is better.

    ``similarity`` [N, M] is the correlation of reconstructions with candidate stimuli; ``own`` [N] defaults to the
    diagonal. Every other candidate serves once as the distractor, ties count against, the mean over reconstructions is
    the figure of Ozcelik & VanRullen (2023, Scientific Reports 13:15666). Chance is 0.5.

    Raises:
        ValueError: fewer than 2 candidates leave no distractor, or ``own`` points outside.
    """
    n, m = similarity.shape
    own = np.arange(n) if own is None else np.asarray(own)
    if m < 2:
        raise ValueError(f"need at least 2 candidates, got {m}")
    if len(own) != n or own.min(initial=0) < 0 or own.max(initial=0) >= m:
        raise ValueError(f"own must name one of {m} candidates for each of {n} reconstructions")
    mine = similarity[np.arange(n), own][:, None]
    return (mine > similarity).sum(1) / (m - 1)


def correlation_distance(reconstructed: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation of row i of [N, F] with row i of [N, F]: [N] in [0, 2]; lower is better, 0 is perfect.

    The mean over pictures is what the MindEye family prints for EfficientNet-B1 and SwAV (Scotti et al., 2024,
    arXiv:2403.11207; the same as scipy's ``correlation``). Unrelated features stand at 1, but features of pictures
    resemble each other, so chance is the shuffled control. A constant row correlates 0: its distance is 1.

    Raises:
        ValueError: the shapes differ.
    """
    if reconstructed.ndim != 2 or reconstructed.shape != shown.shape:
        raise ValueError(f"features must both be [N, F], got {reconstructed.shape} and {shown.shape}")
    return 1 - (_standardised(reconstructed) * _standardised(shown)).sum(1)


def named_right(named: np.ndarray, true: np.ndarray) -> np.ndarray:
    """1 where the judge's word for a reconstruction is the true word of the stimulus shown, else 0, [N].

    Chance for K equally frequent words is 1 / K; the shuffled control also holds what guessing the frequent word wins.
    """
    named, true = np.asarray(named), np.asarray(true)
    if named.shape != true.shape:
        raise ValueError(f"shapes differ: {named.shape} vs {true.shape}")
    return (named == true).astype(np.float64)


def _standardised(x: np.ndarray) -> np.ndarray:
    """Rows of [N, F] less their mean, of length 1; a constant row becomes zeros."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(1, keepdims=True)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 1e-12)
