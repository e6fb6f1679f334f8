"""Every score of generated beside shown pictures, as a function of who is paired with whom.

Letters: R generated pictures, M distinct shown pictures, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ttd.metrics import pixel
from ttd.metrics.identification import (
    TWO_WAY_CHANCE,
    correlation_distance,
    correlation_matrix,
    named_right,
    two_way_identification,
)
from ttd.metrics.network_table import NETWORKS
from ttd.metrics.pairwise import PAIRWISE_CHANCE, every_pair, n_way_top_k, pairwise_score
from ttd.metrics.retrieval import chance, cosine_similarity, top_k_in_random_galleries
from ttd.metrics.rows import Score

Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Pictures [N, H, W, 3] and as many others → values [N]."""


@dataclass(frozen=True)
class Described:
    """What networks see in pictures: CLIP [., F]; with a judge its features [., F] and its words as numbers [.].

    Of shown pictures ``kind`` and ``colour`` are the true words instead, None where nobody knows them.
    """

    clip: np.ndarray
    judge: np.ndarray | None = None
    kind: np.ndarray | None = None
    colour: np.ndarray | None = None
    n_words: dict[str, int] = field(default_factory=dict)
    """Of shown pictures: among how many words the judge chooses a kind, a colour."""
    networks: dict[str, np.ndarray] = field(default_factory=dict)
    """Features [., F] of networks of the published tables, by their name in ``network_table.NETWORKS``."""


@dataclass(frozen=True)
class Seen:
    """Pictures [., H, W, 3] in [0, 1] and what the networks see in them."""

    pictures: np.ndarray
    described: Described


def scores(
    drawn: Seen,
    real: Seen,
    *,
    clip_centre: np.ndarray,
    pixel_size: int,
    ways: int,
    seed: int = 0,
    lpips: Compare | None = None,
    pairwise: bool = False,
) -> dict[str, tuple[Score, float | None]]:
    """Every metric as a function of a pairing, with its chance level.

    Args:
        drawn, real: the R generated and the M shown pictures, and what the networks see in them.
        clip_centre: mean CLIP embedding [F] of the training pictures; uncentred, a few hub pictures are nearest to all.
        pixel_size: side to which both are brought for PixCorr and SSIM.
        ways: gallery of the retrieval of pictures (the true one among ways - 1 others).
        seed: of the distractors of the n-way score.
        lpips: distance [N] of pairs of pictures.
        pairwise: DreamDiffusion's pair-wise scores as well, which need every drawn beside every shown picture.
    """
    generated, shown, seen, truth = drawn.pictures, real.pictures, drawn.described, real.described

    def in_pieces(metric: Compare, size: int) -> Score:
        def score(r: np.ndarray, own: np.ndarray) -> np.ndarray:
            pieces = [slice(i, i + 64) for i in range(0, len(r), 64)]  # bounds the memory of enlarged pictures
            return np.concatenate([
                metric(pixel.resize(generated[r[p]], size), pixel.resize(shown[own[p]], size)) for p in pieces
            ])  # fmt: skip

        return score

    def naming(named: np.ndarray, true: np.ndarray) -> Score:
        return lambda r, own: named_right(named[r], true[own])

    clip = correlation_matrix(seen.clip, truth.clip)
    cosine = cosine_similarity(seen.clip - clip_centre, truth.clip - clip_centre)
    table: dict[str, tuple[Score, float | None]] = {
        "mse": (in_pieces(pixel.mse, shown.shape[1]), None),
        "pixcorr": (in_pieces(pixel.pixcorr, pixel_size), None),
        "ssim": (in_pieces(pixel.ssim, pixel_size), None),
        "two_way_clip": (lambda r, own: two_way_identification(clip[r], own), TWO_WAY_CHANCE),
        "image_retrieval_top1": (
            lambda r, own: top_k_in_random_galleries(cosine[r], own, ways=ways),
            chance(ways=ways),
        ),
    }
    if seen.judge is not None and truth.judge is not None:
        judge = correlation_matrix(seen.judge, truth.judge)
        table["two_way_judge"] = (lambda r, own: two_way_identification(judge[r], own), TWO_WAY_CHANCE)
    for name, features in seen.networks.items():
        table |= network_score(name, features, truth.networks[name], seed=seed)
    if lpips is not None:
        table["lpips"] = in_pieces(lpips, generated.shape[1]), None
    if pairwise:
        table |= pairwise_scores(pixel.resize(generated, pixel_size), pixel.resize(shown, pixel_size), lpips)
    for name, named, true in (("kind", seen.kind, truth.kind), ("colour", seen.colour, truth.colour)):
        if named is not None and true is not None:
            table[f"named_{name}"] = naming(named, true), 1 / truth.n_words[name]
    return table


def network_score(
    name: str, seen: np.ndarray, truth: np.ndarray, *, seed: int
) -> dict[str, tuple[Score, float | None]]:
    """The score that a network of ``NETWORKS`` is used for, from features [R, F] and [M, F]."""
    network = NETWORKS[name]
    if network.score == "two-way":
        correlation = correlation_matrix(seen, truth)
        metric = "two_way_clip_l" if name == "clip" else f"two_way_{name}"  # two_way_clip is the CLIP of alignment
        return {metric: (lambda r, own: two_way_identification(correlation[r], own), network.chance)}
    if network.score == "distribution":
        return {}  # a figure of all pictures together: distribution_rows
    if network.score == "distance":
        return {f"distance_{name}": (lambda r, own: correlation_distance(seen[r], truth[own]), network.chance)}
    right = truth.argmax(1)  # the class that the network names on what was shown
    return {"n_way_top1": (lambda r, own: n_way_top_k(seen[r], right[own], seed=seed), network.chance)}


def pairwise_scores(
    generated: np.ndarray, shown: np.ndarray, lpips: Compare | None
) -> dict[str, tuple[Score, float | None]]:
    """Pair-wise scores of pictures [R, S, S, 3] and [M, S, S, 3] with DreamDiffusion's metrics; LPIPS where it is at hand."""
    metrics: dict[str, tuple[Compare, Literal["higher", "lower"]]] = {
        "pairwise_mse": (pixel.mse, "lower"),
        "pairwise_pcc": (pixel.pixcorr, "higher"),
        "pairwise_ssim": (pixel.ssim_rgb_uniform, "higher"),
        **({"pairwise_psm": (lpips, "lower")} if lpips is not None else {}),
    }

    def scored(values: np.ndarray, direction: Literal["higher", "lower"]) -> Score:
        return lambda r, own: pairwise_score(values[r], own, direction=direction)

    return {
        name: (scored(every_pair(metric, generated, shown), direction), PAIRWISE_CHANCE)
        for name, (metric, direction) in metrics.items()
    }
