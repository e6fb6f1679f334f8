"""Scores of generated pictures against the pictures shown, subject by subject, with intervals and two controls.

The input is the manifest of a generation run: one JSON line per picture, naming what was shown. An item with
``control: "shuffled"`` was generated from the EEG of another picture and is scored against the picture it names.

Letters: R generated pictures, M distinct shown pictures, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ttd.config import UserError
from ttd.metrics import pixel
from ttd.metrics.identification import (
    TWO_WAY_CHANCE,
    correlation_distance,
    correlation_matrix,
    named_right,
    two_way_identification,
)
from ttd.metrics.network_table import NETWORKS
from ttd.metrics.pairwise import n_way_top_k
from ttd.metrics.retrieval import chance, cosine_similarity, top_k_in_random_galleries
from ttd.metrics.rows import Score, rows_of
from ttd.metrics.table import Row

FIELDS = (
    "key", "subject", "image_id", "image_sha256", "path", "seed", "n_repetitions", "candidates", "control", "shown_path",
)  # fmt: skip


def read_manifest(folder: Path, *, all_samples: bool = False) -> list[dict[str, Any]]:
    """The items of a generation run, ``path`` and ``shown_path`` made absolute.

    With ``all_samples`` an item for which several pictures were kept occurs once for each of them.

    Raises:
        UserError: no manifest, a line that is not an item, a picture that is not there.
    """
    manifest = Path(folder) / "manifest.jsonl"
    if not manifest.is_file():
        raise UserError(f"{manifest}: not there; run ttd/generate.py first")
    items = []
    for number, line in enumerate(manifest.read_text().splitlines(), start=1):
        try:
            item = json.loads(line)
            missing = [name for name in FIELDS if name not in item]
        except (ValueError, TypeError) as error:
            raise UserError(f"{manifest}, line {number}: not JSON ({error}); generate again") from error
        if missing:
            raise UserError(f"{manifest}, line {number}: lacks {', '.join(missing)}; generate again with this version")
        paths = [item["path"], *(item.get("more_paths", []) if all_samples else [])]
        for path in paths:
            sample = item | {
                "path": Path(folder) / path,
                "shown_path": Path(folder) / item["shown_path"],
                "samples": len(paths),
            }
            for name in ("path", "shown_path"):
                if not sample[name].is_file():
                    raise UserError(f"{manifest}, line {number}: {name} {sample[name]} is not there")
            items.append(sample)
    if not items:
        raise UserError(f"{manifest}: holds no item; generate again")
    return items


def read_pictures(paths: list[Path]) -> np.ndarray:
    """RGB pictures of one size, float32 [N, H, W, 3] in [0, 1].

    Raises:
        UserError: a file that is no picture, or sizes that differ.
    """
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pictures.append(np.asarray(image.convert("RGB"), np.float32) / 255)
        except OSError as error:
            raise UserError(f"{path}: cannot be read as a picture ({error})") from error
        if pictures[-1].shape != pictures[0].shape:
            raise UserError(f"{path}: size {pictures[-1].shape[:2]} differs from {pictures[0].shape[:2]} of {paths[0]}")
    return np.stack(pictures)


@dataclass(frozen=True)
class Described:
    """What networks see in pictures: CLIP [., F]; with a judge its features [., F] and its words as numbers [.].

    Of shown pictures ``kind`` and ``colour`` are the true words instead, None where nobody knows them.
    """

    clip: np.ndarray
    judge: np.ndarray | None = None
    kind: np.ndarray | None = None
    colour: np.ndarray | None = None
    networks: dict[str, np.ndarray] = field(default_factory=dict)
    """Features [., F] of networks of the published tables, by their name in ``network_table.NETWORKS``."""


def scores(
    generated: np.ndarray,
    shown: np.ndarray,
    seen: Described,
    truth: Described,
    *,
    clip_centre: np.ndarray,
    pixel_size: int,
    ways: int,
    seed: int = 0,
    lpips: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> dict[str, tuple[Score, float | None]]:
    """Every metric as a function of a pairing, with its chance level.

    Args:
        generated, shown: pictures [R, H, W, 3] and [M, H, W, 3] in [0, 1].
        seen, truth: what the networks see in them.
        clip_centre: mean CLIP embedding [F] of the training pictures; uncentred, a few hub pictures are nearest to all.
        pixel_size: side to which both are brought for PixCorr and SSIM.
        ways: gallery of the retrieval of pictures (the true one among ways - 1 others).
        seed: of the distractors of the n-way score.
        lpips: distance [N] of pairs of pictures.
    """

    def in_pieces(metric: Callable[[np.ndarray, np.ndarray], np.ndarray], size: int) -> Score:
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
    for name, named, true in (("kind", seen.kind, truth.kind), ("colour", seen.colour, truth.colour)):
        if named is not None and true is not None:
            table[f"named_{name}"] = naming(named, true), 1 / len(np.unique(true))
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
    if network.score == "distance":
        return {f"distance_{name}": (lambda r, own: correlation_distance(seen[r], truth[own]), network.chance)}
    right = truth.argmax(1)  # the class that the network names on what was shown
    return {"n_way_top1": (lambda r, own: n_way_top_k(seen[r], right[own], seed=seed), network.chance)}


@dataclass(frozen=True)
class ScoredRun:
    """The pictures of one generation run, ready to be scored under any pairing."""

    model: str
    """Its name in the table."""
    subject: np.ndarray
    """Of each item [R]."""
    own: np.ndarray
    """Number of the picture that each item is to be held beside [R]."""
    wrong: np.ndarray
    """Which items were made from another picture's EEG [R]."""
    pictures: list[str]
    """sha256 of the M shown pictures."""
    table: dict[str, tuple[Score, float | None]]
    """Metrics as functions of a pairing, with their chance levels."""
    labels: dict[str, dict[str, Any]]
    """Of each metric's rows."""


def scored_run(
    model: str,
    items: list[dict[str, Any]],
    generated: np.ndarray,
    seen: Described,
    pictures: list[str],
    shown: np.ndarray,
    truth: Described,
    *,
    clip_centre: np.ndarray,
    pixel_size: int,
    ways: int,
    labels: dict[str, Any],
    seed: int = 0,
    lpips: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> ScoredRun:
    """What a generation run's manifest, pictures and descriptions say.

    Args:
        items: the manifest; row i belongs to ``generated[i]`` and ``seen`` row i.
        pictures: sha256 of the M shown pictures, in the order of ``shown`` and ``truth``.

    Raises:
        ValueError: fewer than 2 pictures were shown, or no item is free of a control mark.
    """
    number = {sha: i for i, sha in enumerate(pictures)}
    own = np.array([number[item["image_sha256"]] for item in items])
    subject = np.array([str(item["subject"]) for item in items])
    wrong = np.array([item["control"] is not None for item in items])
    if wrong.all():
        raise ValueError(f"{model}: every item is a control; nothing to score")
    if len(set(own[~wrong])) < 2:
        raise ValueError(f"{model}: one picture alone has no distractor and no interval; generate at least 2")
    ways = min(ways, len(pictures))
    repetitions = sorted({int(item["n_repetitions"]) for item in items})
    common = {
        **labels,
        "repetitions": repetitions[0] if len(repetitions) == 1 else repetitions[-1],
        "candidates": max(int(item["candidates"]) for item in items),
        "samples": max(int(item["samples"]) for item in items),
        "seeds": sorted({int(item["seed"]) for item in items})
        if len({item["seed"] for item in items}) < 9
        else "per item",
    }
    extra = {
        "pixcorr": {"size": pixel_size}, "ssim": {"size": pixel_size},
        "two_way_clip": {"gallery": len(pictures)}, "two_way_judge": {"gallery": len(pictures)},
        "image_retrieval_top1": {"gallery": ways}, "lpips": {"size": generated.shape[1]},
    }  # fmt: skip
    extra |= {
        f"two_way_{name}": {"gallery": len(pictures)} for name in ("alexnet_2", "alexnet_5", "inception", "clip_l")
    }
    table = scores(
        generated, shown, seen, truth, clip_centre=clip_centre, pixel_size=pixel_size, ways=ways, seed=seed, lpips=lpips
    )
    described = {metric: {**common, **extra.get(metric, {})} for metric in table}
    return ScoredRun(model, subject, own, wrong, pictures, table, described)


def reconstruction_rows(run: ScoredRun, *, seed: int, n_resamples: int, n_draws: int) -> list[Row]:
    """All rows of one generation run."""
    rows = []
    for metric, (score, level) in run.table.items():
        rows += rows_of(
            metric, run.model, score, run.subject, run.own, chance=level, labels=run.labels[metric],
            seed=seed, n_resamples=n_resamples, n_draws=n_draws, wrong_eeg=run.wrong, permute=level is not None,
        )  # fmt: skip
    return rows


def difference_rows(first: ScoredRun, second: ScoredRun, *, seed: int, n_resamples: int, n_draws: int) -> list[Row]:
    """Rows of the first run minus the second, picture by picture and subject by subject.

    Where a metric has a chance level, that of the difference is 0; elsewhere runs that know nothing differ as well (in their
    look), and the control says by how much. Both are paired with the same wrong pictures for it. There is no permutation
    test: under permuted names neither run knows anything, which says nothing of one against the other.

    Raises:
        ValueError: the runs drew other pictures, or pictures for other subjects.
    """
    places = []
    for run in (first, second):
        real = np.flatnonzero(~run.wrong)
        places.append(real[np.lexsort((run.own[real], run.subject[real]))])
    a, b = places
    same = first.pictures == second.pictures and len(a) == len(b)
    if not (same and (first.own[a] == second.own[b]).all() and (first.subject[a] == second.subject[b]).all()):
        raise ValueError(
            f"{first.model} and {second.model} drew other pictures or for other subjects; generate both with the same "
            "seed, subjects and n_items"
        )

    def difference(metric: str) -> Score:
        score, other = first.table[metric][0], second.table[metric][0]
        return lambda r, own: score(a[r], own) - other(b[r], own)

    rows = []
    for metric in first.table:
        rows += rows_of(
            metric, f"{first.model} − {second.model}", difference(metric), first.subject[a], first.own[a],
            chance=None if first.table[metric][1] is None else 0.0, labels={**first.labels[metric], "minus": second.model},
            seed=seed, n_resamples=n_resamples, n_draws=n_draws,
        )  # fmt: skip
    return rows
