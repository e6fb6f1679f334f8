"""From scores of single items to rows: per subject and over subjects, each with interval, chance and control.

Letters: R items (one prediction of one subject for one picture), S subjects, M pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ttd.metrics.row import MEAN, Row
from ttd.metrics.uncertainty import bootstrap_interval, grand_mean, shuffled_control
from ttd.seeding import key, numpy_rng

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(items [r], the pictures they are paired with [r]) → scores [r]"""


def by_subject_and_picture(values: np.ndarray, subject: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Scores [R] as a table [S, M] (subjects and pictures sorted), repeats averaged, NaN where there is none."""
    _, s = np.unique(subject, return_inverse=True)
    _, m = np.unique(picture, return_inverse=True)
    total, count = np.zeros((s.max() + 1, m.max() + 1)), np.zeros((s.max() + 1, m.max() + 1))
    np.add.at(total, (s, m), values)
    np.add.at(count, (s, m), 1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def mispaired_scores(score: Score, subject: np.ndarray, picture: np.ndarray, *, seed: int, n_draws: int) -> np.ndarray:
    """Score [R] of each item against other pictures of its subject, mean over ``n_draws`` re-pairings."""
    out = np.empty(len(subject))
    for name in np.unique(subject):
        (mine,) = np.nonzero(subject == name)
        draw = key(seed, "control", str(name))
        out[mine] = shuffled_control(partial(score, mine), picture[mine], seed=draw, n_draws=n_draws)
    return out


@dataclass(frozen=True)
class Permutation:
    """What a metric does when pictures trade their names, which nothing in the predictions can know."""

    low: float
    high: float
    """95 % of the permutations lie between these."""
    p: float
    """Share of permutations that score at least as well as the true names, the true ones counted (one-sided)."""


def permutation_test(
    score: Score, subject: np.ndarray, picture: np.ndarray, *, seed: int, n_permutations: int = 4999
) -> Permutation:
    """Permute the pictures' names, alike for all subjects, and score the mean over subjects each time; higher is better.

    Alike, because subjects who saw the same pictures are not independent (Good, 2005, "Permutation, Parametric and Bootstrap
    Tests", chapter 3). A permutation may leave some names in place.
    """
    names, m = np.unique(picture, return_inverse=True)
    values = np.stack([score(np.arange(len(m)), np.full(len(m), name)) for name in names], axis=1)  # [R, M]
    total = np.zeros((len(names), len(names)))  # what picture m adds to the figure under the name of another
    subjects = np.unique(subject)
    for name in subjects:
        (mine,) = np.nonzero(subject == name)
        seen, repeats = np.unique(m[mine], return_counts=True)
        weight = dict(zip(seen, 1 / (len(subjects) * len(seen) * repeats), strict=True))
        np.add.at(total, m[mine], values[mine] * np.array([weight[i] for i in m[mine]])[:, None])
    rng, rows = numpy_rng(seed, "permutation", len(names)), np.arange(len(names))
    null = np.array([total[rows, rng.permutation(len(names))].sum() for _ in range(n_permutations)])
    reached = int((null >= np.trace(total) - 1e-12).sum())
    low, high = np.quantile(null, [0.025, 0.975])
    return Permutation(float(low), float(high), (1 + reached) / (1 + n_permutations))


def rows_of(
    metric: str,
    model: str,
    score: Score | Sequence[Score],
    subject: np.ndarray,
    picture: np.ndarray,
    *,
    chance: float | None,
    labels: dict[str, Any],
    seed: int,
    n_resamples: int = 2000,
    n_draws: int = 5,
    wrong_eeg: np.ndarray | None = None,
    concept: np.ndarray | None = None,
    permute: bool = False,
) -> list[Row]:
    """Rows of one metric: one per subject, and their mean.

    Args:
        score: the metric as a function of a pairing; several, one per training seed, are averaged item by item, and the spread of
            their figures stands beside the mean.
        subject, picture: of each item [R].
        chance: analytic chance level, None where only the control tells.
        labels: what must agree before two figures are compared; ``subjects`` is filled in here.
        wrong_eeg: marks items [R] that were made from the EEG of another picture. They are no part of the value.
        concept: of each item [R]; where concepts have several pictures, a second interval draws whole concepts.
        permute: test the mean over subjects by permutation; each picture is scored under each other's name.
    """
    seeds = [score] if callable(score) else list(score)
    both = over_seeds(seeds)
    wrong_eeg = np.zeros(len(subject), bool) if wrong_eeg is None else wrong_eeg
    (real,) = np.nonzero(~wrong_eeg)
    (wrong,) = np.nonzero(wrong_eeg)
    subjects, pictures = subject[real], picture[real]
    values = [one(real, pictures) for one in seeds]
    control = mispaired_scores(lambda r, own: both(real[r], own), subjects, pictures, seed=seed, n_draws=n_draws)
    wrong_values = both(wrong, picture[wrong]) if len(wrong) else np.empty(0)
    drawn = partial(bootstrap_interval, seed=seed, n_resamples=n_resamples)

    rows = []
    names = [str(s) for s in np.unique(subjects)]
    for name in [MEAN, *names]:
        mine = np.ones(len(real), bool) if name == MEAN else subjects == name
        theirs = np.ones(len(wrong), bool) if name == MEAN else subject[wrong] == name
        tables = [by_subject_and_picture(v[mine], subjects[mine], pictures[mine]) for v in values]
        table = np.mean(tables, axis=0)
        shuffled = by_subject_and_picture(control[mine], subjects[mine], pictures[mine])
        low, high = drawn(table)
        control_low, control_high = drawn(shuffled)
        more: dict[str, float] = {}
        if concept is not None:
            _, first = np.unique(pictures[mine], return_index=True)
            groups = concept[real][mine][first]
            if 1 < len(np.unique(groups)) < len(groups):
                more["concept_low"], more["concept_high"] = drawn(table, groups=groups)
        if len(seeds) > 1:
            more["sd"] = float(np.std([grand_mean(t) for t in tables], ddof=1))
        if permute and name == MEAN:
            test = permutation_test(lambda r, own: both(real[r], own), subjects, pictures, seed=seed)
            more |= {"chance_low": test.low, "chance_high": test.high, "p": test.p}
        if len(np.unique(picture[wrong][theirs])) > 1:
            made = by_subject_and_picture(wrong_values[theirs], subject[wrong][theirs], picture[wrong][theirs])
            more["control_generated"] = grand_mean(made)
            more["control_generated_low"], more["control_generated_high"] = drawn(made)
        rows.append(
            Row(
                metric, model, name, value=grand_mean(table), low=low, high=high, chance=chance,
                control=grand_mean(shuffled), control_low=control_low, control_high=control_high, n=table.shape[1],
                labels={**labels, "subjects": names if name == MEAN else [name]}, **more,
            )
        )  # fmt: skip
    return rows


def over_seeds(scores: Sequence[Score]) -> Score:
    """The mean of the same metric over models of several training seeds, item by item."""
    return scores[0] if len(scores) == 1 else lambda r, own: np.mean([score(r, own) for score in scores], axis=0)
