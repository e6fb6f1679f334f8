"""Scores of generated pictures against the pictures shown, subject by subject, with intervals and controls.

The input is the manifest of a generation run. An item with ``control: "shuffled"`` was generated from the EEG of another
picture and is scored against the picture it names.

Letters: R generated pictures, M distinct shown pictures, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ttd.metrics.distribution import KID_SUBSET_SIZE, fid, kid
from ttd.metrics.picture_scores import Compare, Described, Seen, scores
from ttd.metrics.row import MEAN, Row
from ttd.metrics.rows import Score, over_seeds, rows_of


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
    concept: np.ndarray
    """Of each item [R], empty where it has none."""
    pictures: list[str]
    """sha256 of the M shown pictures."""
    table: dict[str, tuple[list[Score], float | None]]
    """Metrics as functions of a pairing, one of each training seed, with their chance levels."""
    labels: dict[str, dict[str, Any]]
    """Of each metric's rows."""
    described: Described
    """What the networks see in the items, of the first seed."""
    truth: Described
    """And in the shown pictures."""


def scored_run(
    model: str,
    items: list[dict[str, Any]],
    drawn: Seen,
    pictures: list[str],
    real: Seen,
    *,
    clip_centre: np.ndarray,
    pixel_size: int,
    ways: int,
    labels: dict[str, Any],
    seed: int = 0,
    lpips: Compare | None = None,
    pairwise: bool = False,
) -> ScoredRun:
    """What a generation run's manifest, pictures and descriptions say.

    Args:
        items: the manifest; row i belongs to row i of ``drawn``.
        pictures: sha256 of the M shown pictures, in the order of ``real``.

    Raises:
        ValueError: fewer than 2 pictures were shown, or no item is free of a control mark.
    """
    number = {sha: i for i, sha in enumerate(pictures)}
    own = np.array([number[item["image_sha256"]] for item in items])
    wrong = np.array([item["control"] is not None for item in items])
    if wrong.all():
        raise ValueError(f"{model}: every item is a control; nothing to score")
    if len(set(own[~wrong])) < 2:
        raise ValueError(f"{model}: one picture alone has no distractor and no interval; generate at least 2")
    ways = min(ways, len(pictures))
    repetitions = sorted({int(item["n_repetitions"]) for item in items})
    noises = sorted({int(item["seed"]) for item in items})
    common = {
        **labels,
        "repetitions": repetitions[-1],
        "candidates": max(int(item["candidates"]) for item in items),
        "samples": max(int(item["samples"]) for item in items),
        "pictures": len(pictures),
        "noise_seed": noises[0] if len(noises) == 1 else "per item",
    }
    identified = ("clip", "judge", "alexnet_2", "alexnet_5", "inception", "clip_l")
    extra: dict[str, dict[str, Any]] = {
        "pixcorr": {"size": pixel_size}, "ssim": {"size": pixel_size}, "lpips": {"size": drawn.pictures.shape[1]},
        "image_retrieval_top1": {"gallery": ways},
        **{f"two_way_{name}": {"gallery": len(pictures)} for name in identified},
        **{f"pairwise_{name}": {"gallery": len(pictures)} for name in ("mse", "pcc", "ssim", "psm")},
    }  # fmt: skip
    table = scores(
        drawn,
        real,
        clip_centre=clip_centre,
        pixel_size=pixel_size,
        ways=ways,
        seed=seed,
        lpips=lpips,
        pairwise=pairwise,
    )
    return ScoredRun(
        model, np.array([str(item["subject"]) for item in items]), own, wrong,
        np.array([item.get("concept") or "" for item in items]), pictures,
        {metric: ([score], chance) for metric, (score, chance) in table.items()},
        {metric: {**common, **extra.get(metric, {})} for metric in [*table, "fid", "kid"]},
        drawn.described, real.described,
    )  # fmt: skip


def joined_seeds(runs: Sequence[ScoredRun]) -> ScoredRun:
    """One run of several that differ in their training seed; their items must come in the same order.

    Raises:
        ValueError: they drew other pictures or for other subjects.
    """
    first, *others = runs
    for other in others:
        same = [np.array_equal(getattr(first, name), getattr(other, name)) for name in ("subject", "own", "wrong")]
        if not (all(same) and first.pictures == other.pictures):
            raise ValueError(f"{first.model}: its runs drew other pictures or for other subjects")
    table = {
        m: ([score for run in runs for score in run.table[m][0]], chance) for m, (_, chance) in first.table.items()
    }
    return replace(first, table=table)


def reconstruction_rows(run: ScoredRun, *, seed: int, n_resamples: int, n_draws: int) -> list[Row]:
    """All rows of one generation run whose figures are means over pictures."""
    rows = []
    for metric, (of_seeds, level) in run.table.items():
        rows += rows_of(
            metric, run.model, of_seeds, run.subject, run.own, chance=level, labels=run.labels[metric],
            seed=seed, n_resamples=n_resamples, n_draws=n_draws, wrong_eeg=run.wrong, permute=level is not None,
            concept=run.concept,
        )  # fmt: skip
    return rows


def distribution_rows(run: ScoredRun, *, seed: int) -> list[Row]:
    """FID and KID of all pictures of a run to those shown, of the first training seed; none without FID's network.

    They have no interval here: a bootstrap draws pictures twice, which moves both figures. The re-paired control does not exist,
    since nobody is paired; in its place stands the floor, two halves of the shown pictures to each other.
    """
    name = "fid_inception"
    if name not in run.described.networks or (~run.wrong).sum() < 4 or len(run.pictures) < 4:
        return []
    drawn, shown = run.described.networks[name], run.truth.networks[name]
    kinds: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "fid": fid,
        "kid": lambda a, b: kid(a, b, seed=seed, subset_size=min(KID_SUBSET_SIZE, len(a), len(b)))[0],
    }
    rows = []
    for metric, distance in kinds.items():
        wrong = distance(drawn[run.wrong], shown) if run.wrong.sum() > 1 else None
        floor = distance(shown[::2], shown[1::2])
        labels = {**run.labels[metric], "features": "Inception of FID", "control_is": "halves of the shown pictures"}
        rows.append(
            Row(
                metric, run.model, MEAN, value=distance(drawn[~run.wrong], shown), low=None, high=None, chance=None,
                control=floor, control_low=None, control_high=None, n=len(run.pictures), control_generated=wrong,
                labels={**labels, "subjects": sorted(set(run.subject[~run.wrong].tolist()))},
            )
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
        score, other = over_seeds(first.table[metric][0]), over_seeds(second.table[metric][0])
        return lambda r, own: score(a[r], own) - other(b[r], own)

    rows = []
    for metric in first.table:
        rows += rows_of(
            metric, f"{first.model} − {second.model}", difference(metric), first.subject[a], first.own[a],
            chance=None if first.table[metric][1] is None else 0.0, labels={**first.labels[metric], "minus": second.model},
            seed=seed, n_resamples=n_resamples, n_draws=n_draws, concept=first.concept[a],
        )  # fmt: skip
    return rows


def item_scores(
    run: ScoredRun, items: Sequence[dict[str, Any]], words: Callable[[int, int], dict[str, str]]
) -> list[dict[str, Any]]:
    """What the report says of each item: its scores beside its own picture, mean over kept samples and training seeds.

    Args:
        items: the manifest, in the order of the run.
        words: the judge's numbers of kind and colour as words.
    """
    every = np.arange(len(run.own))
    values = {metric: over_seeds(of_seeds)(every, run.own) for metric, (of_seeds, _) in run.table.items()}
    groups: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        groups.setdefault(item["key"], []).append(row)
    seen, true = run.described, run.truth
    return [
        {
            "run": run.model, "key": key, **{n: items[rows[0]].get(n) for n in FACTS}, "samples": len(rows),
            "scores": {metric: round(float(v[rows].mean()), 6) for metric, v in values.items()},
            "named": _words(seen, rows[0], words), "true": _words(true, run.own[rows[0]], words),
        }
        for key, rows in groups.items()
    ]  # fmt: skip


FACTS = ("subject", "image_id", "image_sha256", "concept", "control")
"""Of a manifest's line, what ``item_scores`` repeats."""


def _words(seen: Described, row: int, words: Callable[[int, int], dict[str, str]]) -> dict[str, str] | None:
    return None if seen.kind is None or seen.colour is None else words(int(seen.kind[row]), int(seen.colour[row]))
