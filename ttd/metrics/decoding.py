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
    reciprocal_rank,
    top_k_in_random_galleries,
)
from ttd.metrics.rows import Score, rows_of
from ttd.metrics.table import Row

TOPS = (1, 5)


def retrieval_rows(
    model: str,
    predicted: np.ndarray,
    gallery: np.ndarray,
    subject: np.ndarray,
    own: np.ndarray,
    *,
    ways: Sequence[int],
    labels: dict[str, Any],
    seed: int,
    n_resamples: int,
    n_draws: int,
) -> list[Row]:
    """Top-1 and top-5 in random galleries of each size in ``ways`` (sizes beyond M become M), and the mean reciprocal rank in
    the whole gallery.

    Args:
        predicted, gallery: embeddings [R, D] and [M, D] in the space where cosines count.
        subject: of each prediction [R].
        own: row of ``gallery`` [R] that was seen.
    """
    similarity = cosine_similarity(predicted, gallery)

    def top_k(k: int, ways: int) -> Score:
        return lambda r, paired: top_k_in_random_galleries(similarity[r], paired, ways=ways, k=k)

    common: dict[str, Any] = {"seed": seed, "n_resamples": n_resamples, "n_draws": n_draws, "permute": True}
    rows = rows_of(
        "mean_reciprocal_rank", model, lambda r, paired: reciprocal_rank(similarity[r], paired), subject, own,
        chance=chance_reciprocal_rank(len(gallery)), labels={"gallery": len(gallery), **labels}, **common,
    )  # fmt: skip
    for size in sorted({min(k, len(gallery)) for k in ways}):
        for k in (k for k in TOPS if k < size):
            rows += rows_of(
                f"retrieval_top{k}", model, top_k(k, size), subject, own,
                chance=chance(ways=size, k=k), labels={"gallery": size, **labels}, **common,
            )  # fmt: skip
    return rows
