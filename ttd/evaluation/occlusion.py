"""Which times and electrodes retrieval depends on: what its score loses when they are hidden from the encoder.

Occlusion (Zeiler & Fergus, 2014, arXiv:1311.2901, section 2.2) on EEG. Hidden means set to the training mean. A drop says that
the model uses what was hidden, not where in the brain it arises; no drop may mean that other electrodes carry the same. Windows
before the onset are the control: there is nothing of the picture to lose.

Letters: R test epochs, M pictures of the gallery, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ttd.data.controls import hide_channels, hide_times
from ttd.eeg.montage import is_electrode, positions
from ttd.engine.tracking import progress
from ttd.evaluation.retrieval import TestPart
from ttd.experiments.eval import EvalConfig
from ttd.metrics.retrieval import chance_reciprocal_rank, cosine_similarity, reciprocal_rank
from ttd.metrics.rows import by_subject_and_picture
from ttd.metrics.uncertainty import bootstrap_interval, grand_mean

WINDOW_S = 0.05
"""As long as the components of the visual response (P1, N1) are wide; Luck, 2014, chapter 3."""
RADIUS_M = 0.04
"""Neighbours of an electrode are hidden with it: on caps of 63 they stand 3 to 4 cm apart and carry nearly the same signal,
so that one of them alone is hardly missed."""


def occlude(config: EvalConfig, part: TestPart) -> dict[str, Any]:
    """The mean reciprocal rank with nothing hidden, and what it loses without each window and each neighbourhood.

    The drop is taken picture by picture, its 95 % interval is a bootstrap over pictures. Of several training seeds the mean.
    """
    eeg, subject = part.epochs(part.most)
    decoders = [part.decoder(run) for run in config.retrieval.runs]

    def score(epochs: Tensor) -> np.ndarray:
        """Reciprocal ranks [S, M]."""
        of_seeds = [
            reciprocal_rank(cosine_similarity(d.predict(epochs, subject, config.batch_size), d.gallery), part.own)
            for d in decoders
        ]
        return by_subject_and_picture(np.mean(of_seeds, axis=0), part.subject, part.own)

    intact = score(eeg)

    def without(hide: Callable[[Tensor], Tensor]) -> dict[str, float]:
        hidden = score(hide(eeg))
        low, high = _interval(config, intact - hidden)
        return {"value": grand_mean(hidden), "drop": grand_mean(intact - hidden), "low": low, "high": high}

    index = part.index
    low, high = _interval(config, intact)
    return {
        "model": "encoder", "metric": "mean_reciprocal_rank", "repetitions": part.most, "study": index.facts.study,
        "chance": chance_reciprocal_rank(len(part.pictures)), "ch_names": list(index.ch_names),
        "intact": {"value": grand_mean(intact), "low": low, "high": high},
        "time": [
            {"start_s": start, "stop_s": stop}
            | without(partial(hide_times, start_s=start, stop_s=stop, tmin=index.tmin, sfreq=index.sfreq))
            for start, stop in progress(windows(index.tmin, index.n_times / index.sfreq), desc="hide times")
        ],
        "electrodes": [
            {"ch_name": index.ch_names[c], "with": [index.ch_names[i] for i in near if i != c]}
            | without(partial(hide_channels, channels=near))
            for c, near in progress(list(enumerate(neighbourhoods(index.ch_names))), desc="hide electrodes")
        ],
    }  # fmt: skip


def _interval(config: EvalConfig, table: np.ndarray) -> tuple[float, float]:
    return bootstrap_interval(table, seed=config.seed, n_resamples=config.n_resamples)


def windows(tmin: float, duration: float) -> list[tuple[float, float]]:
    """Successive windows of ``WINDOW_S`` in seconds, of which one starts at the onset; what is left over at the ends is hidden
    with the last one on its side."""
    after = int((tmin + duration) / WINDOW_S + 1e-6)
    before = int(-tmin / WINDOW_S + 1e-6)
    limits = [round(i * WINDOW_S, 6) for i in range(-before, after + 1)]
    if len(limits) < 2:
        return [(round(tmin, 6), round(tmin + duration, 6))]
    limits[0], limits[-1] = round(min(tmin, limits[0]), 6), round(max(tmin + duration, limits[-1]), 6)
    return list(itertools.pairwise(limits))


def neighbourhoods(ch_names: list[str]) -> list[list[int]]:
    """For each electrode itself and those within ``RADIUS_M``; alone where a name has no standard place."""
    known = [i for i, name in enumerate(ch_names) if is_electrode(name)]
    places = positions([ch_names[i] for i in known]) if known else np.zeros((0, 3))
    out = [[c] for c in range(len(ch_names))]
    for row, c in enumerate(known):
        distance = np.linalg.norm(places - places[row], axis=1)
        out[c] = [c, *(known[i] for i in np.flatnonzero(distance < RADIUS_M) if known[i] != c)]
    return out
