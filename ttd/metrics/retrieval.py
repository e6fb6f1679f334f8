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
    m = similarity.shape[1]
    if not 2 <= ways <= m:
        raise ValueError(f"ways={ways} must be between 2 and the gallery's {m} pictures")
    if not 1 <= k < ways:
        raise ValueError(f"k={k} must be at least 1 and below ways={ways}")
    closer, ties = _places(similarity, own)
    by_rank = hypergeom.cdf(k - 1, m - 1, np.arange(m), ways - 1)  # [M], by the number of closer pictures
    return _over_ties(by_rank, closer, ties)


def reciprocal_rank(similarity: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """1 / rank of the true picture in the whole gallery, [N] in (0, 1]; higher is better, 1 is first of all.

    The mean over predictions is the mean reciprocal rank (Voorhees, 1999, TREC-8). With one relevant picture it is the
    mean average precision too, under which name UBP reports it (Wu et al., 2025, arXiv:2503.04207). Chance is
    ``chance_reciprocal_rank(M)``. Ties are taken in random order.

    Args:
        similarity: closeness [N, M] of each prediction to each picture of the gallery.
        own: column [N] of the true picture; row i belongs to column i when not given.
    """
    closer, ties = _places(similarity, own)
    return _over_ties(1 / np.arange(1, similarity.shape[1] + 1), closer, ties)


def chance_reciprocal_rank(ways: int) -> float:
    """Expected reciprocal rank of a prediction that knows nothing: the mean of 1 / rank over all ranks."""
    return float((1 / np.arange(1, ways + 1)).mean())


def prototypes(embeddings: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A gallery of classes: the mean embedding of each, as in the code of NICE (Song et al., 2024, arXiv:2308.13234).

    Retrieval from prototypes names a class, retrieval from pictures one picture: the two are different figures, and
    ``gallery`` is a label of both. Chance of top-k is ``chance(ways=K, k=k)``.

    Args:
        embeddings: of the pictures [P, D].
        classes: of each picture [P].

    Returns:
        Names of the classes [K] (sorted), their prototypes [K, D], and the row of each picture's class [P] among them,
        which is what ``own`` of a prediction is taken from.

    Raises:
        ValueError: the lengths differ.
    """
    if len(embeddings) != len(classes):
        raise ValueError(f"{len(embeddings)} embeddings but {len(classes)} classes")
    names, row = np.unique(classes, return_inverse=True)
    total = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(total, row, embeddings)
    return names, total / np.bincount(row)[:, None], row


def _places(similarity: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """How many pictures are closer than the true one [N], and how many others exactly as close [N]."""
    n, m = similarity.shape
    if own is None:
        if n != m:
            raise ValueError(f"own must be given: {n} predictions, {m} pictures")
        own = np.arange(n)
    true = similarity[np.arange(n), own][:, None]
    return (similarity > true).sum(axis=1), (similarity == true).sum(axis=1) - 1


def _over_ties(by_closer: np.ndarray, closer: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """The mean [N] of a score by the number of closer pictures [M], over all orders of the tied ones."""
    total = np.concatenate([[0.0], np.cumsum(by_closer)])
    return (total[closer + ties + 1] - total[closer]) / (ties + 1)
