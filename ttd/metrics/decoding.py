"""Rows of EEG → image retrieval: an encoder and its linear baseline, subject by subject.

Letters: R test epochs (one prediction each), M pictures of the gallery, D numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ttd.metrics.retrieval import (
    chance,
    chance_reciprocal_rank,
    cosine_similarity,
    prototypes,
    reciprocal_rank,
    top_k_in_random_galleries,
)
from ttd.metrics.row import Row
from ttd.metrics.rows import Score, rows_of

TOPS = (1, 5)


def retrieval_rows(
    model: str,
    similarities: Sequence[np.ndarray],
    subject: np.ndarray,
    own: np.ndarray,
    *,
    ways: Sequence[int],
    labels: dict[str, Any],
    seed: int,
    n_resamples: int,
    n_draws: int,
    concept: np.ndarray | None = None,
) -> list[Row]:
    """Top-1 and top-5 in random galleries of each size in ``ways`` (sizes beyond M become M), and the mean reciprocal rank in
    the whole gallery.

    Args:
        similarities: closeness [R, M] of each prediction to each picture of the gallery; one of each training seed.
        subject: of each prediction [R].
        own: column [R] that was seen.
        concept: of each prediction [R], for the interval over concepts.
    """
    n_pictures = similarities[0].shape[1]

    def top_k(similarity: np.ndarray, k: int, ways: int) -> Score:
        return lambda r, paired: top_k_in_random_galleries(similarity[r], paired, ways=ways, k=k)

    def first_rank(similarity: np.ndarray) -> Score:
        return lambda r, paired: reciprocal_rank(similarity[r], paired)

    common: dict[str, Any] = {
        "seed": seed, "n_resamples": n_resamples, "n_draws": n_draws, "concept": concept, "permute": True
    }  # fmt: skip
    rows = rows_of(
        "mean_reciprocal_rank", model, [first_rank(s) for s in similarities], subject, own,
        chance=chance_reciprocal_rank(n_pictures), labels={"gallery": n_pictures, **labels}, **common,
    )  # fmt: skip
    for size in sorted({min(k, n_pictures) for k in ways}):
        for k in (k for k in TOPS if k < size):
            rows += rows_of(
                f"retrieval_top{k}", model, [top_k(s, k, size) for s in similarities], subject, own,
                chance=chance(ways=size, k=k), labels={"gallery": size, **labels}, **common,
            )  # fmt: skip
    return rows


def prototype_rows(
    model: str,
    predictions: Sequence[np.ndarray],
    galleries: Sequence[np.ndarray],
    subject: np.ndarray,
    own: np.ndarray,
    concepts: np.ndarray,
    *,
    labels: dict[str, Any],
    seed: int,
    n_resamples: int,
    n_draws: int,
) -> list[Row]:
    """Top-1 and top-5 in a gallery of concepts, each the mean embedding of its pictures: another figure than that of pictures.

    Args:
        predictions, galleries: [R, D] and [M, D] of each training seed, in the space where cosines count.
        subject, own: of each prediction [R].
        concepts: of each picture [M], of which some have several.
    """
    similarities = []
    for predicted, gallery in zip(predictions, galleries, strict=True):
        _, centres, row = prototypes(gallery, concepts)
        similarities.append(cosine_similarity(predicted, centres))
    n = similarities[0].shape[1]

    def top_k(similarity: np.ndarray, k: int) -> Score:
        return lambda r, paired: top_k_in_random_galleries(similarity[r], row[paired], ways=n, k=k)

    rows = []
    for k in (k for k in TOPS if k < n):
        rows += rows_of(
            f"prototype_top{k}", model, [top_k(s, k) for s in similarities], subject, own, chance=chance(ways=n, k=k),
            labels={"gallery": n, **labels}, seed=seed, n_resamples=n_resamples, n_draws=n_draws,
            concept=concepts[own], permute=True,
        )  # fmt: skip
    return rows
