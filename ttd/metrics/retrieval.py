"""k-way retrieval: is the picture that was seen among the first of a gallery, ranked by likeness to the prediction?

Top-1 and top-5 by cosine as in NICE (Song et al., 2024, arXiv:2308.13234) and its successors. "50-way" puts the true
picture among 49 others; instead of drawing those at random, the expectation over all draws is computed from the rank
in the whole gallery (the number of drawn distractors that are closer is hypergeometric), so the figure has no
sampling noise.

Chance is ``k / ways``; the control pairs every prediction with a wrong picture (``uncertainty.shuffled_control``).
Prediction and gallery must be centred by the *training* mean embedding: uncentred, a few hub pictures are everybody's
nearest neighbour. Five labels belong to every figure: gallery, channels, repetitions averaged, inductive or not, how
the model was selected.

Shapes: N predictions, M pictures in the gallery, D numbers of an embedding.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import hypergeom


def chance(*, ways: int, k: int = 1) -> float:
    """Expected score of a prediction that knows nothing."""
    return k / ways


def cosine_similarity(predicted: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Cosines [N, M] between predictions [N, D] and gallery [M, D]."""
    a = predicted / np.maximum(np.linalg.norm(predicted, axis=1, keepdims=True), 1e-12)
    b = gallery / np.maximum(np.linalg.norm(gallery, axis=1, keepdims=True), 1e-12)
    return a @ b.T


def top_k_in_random_galleries(
    similarity: np.ndarray, own: np.ndarray | None = None, *, ways: int, k: int = 1
) -> np.ndarray:
    """Probability [N] that the true picture is among the ``k`` nearest of itself and ``ways - 1`` random others.

    Higher is better; the mean over predictions is the figure.

    Args:
        similarity: closeness [N, M] of each prediction to each picture of the gallery.
        own: column [N] of the true picture; row i belongs to column i when not given.
        ways: size of the sub-gallery; ``ways = M`` is retrieval in the whole gallery.
        k: how many places count.

    Pictures exactly as close as the true one are taken in random order, so a constant prediction sits at chance.

    Raises:
        ValueError: ``ways`` exceeds the gallery, or ``k`` is not below ``ways``.
    """
    n, m = similarity.shape
    if not 2 <= ways <= m:
        raise ValueError(f"ways={ways} must be between 2 and the gallery's {m} pictures")
    if not 1 <= k < ways:
        raise ValueError(f"k={k} must be at least 1 and below ways={ways}")
    if own is None:
        if n != m:
            raise ValueError(f"own must be given: {n} predictions, {m} pictures")
        own = np.arange(n)
    true = similarity[np.arange(n), own][:, None]
    closer = (similarity > true).sum(axis=1)
    ties = (similarity == true).sum(axis=1) - 1
    by_rank = hypergeom.cdf(k - 1, m - 1, np.arange(m), ways - 1)  # [M], by the number of closer pictures
    total = np.concatenate([[0.0], np.cumsum(by_rank)])
    return (total[closer + ties + 1] - total[closer]) / (ties + 1)
