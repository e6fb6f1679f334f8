"""The covariance of what is not the response: the background over channels, estimated from the training part.

Guggenmos, Sterzer & Cichy, 2018, NeuroImage 173:434 (multivariate noise normalisation).

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

import numpy as np

from ttd.config import UserError
from ttd.data.reader import ShardReader

ENOUGH = 2000
"""Samples that determine a covariance; more of them, evenly spaced over the index, are not read."""


def noise_covariance(reader: ShardReader, kept: np.ndarray | None = None) -> np.ndarray:
    """Background covariance [C, C] of a part's scaled EEG (units: the channels' standard deviations).

    Where samples hold repetitions, from what differs between them; else (windows, single presentations) from all of the
    signal, in which the response is a small part. ``kept`` are the samples [n] to look at, all where None.

    Raises:
        UserError: the index has no channel statistics, or its shards are whitened per subject when they are read.
    """
    index = reader.index
    statistics = index.facts.statistics.get(index.cap)
    if statistics is None:
        raise UserError(f"{index.folder}: the index has no channel statistics; build the shards again")
    std = np.asarray(statistics.std)
    mean = np.asarray(statistics.mean, np.float32)[:, None]
    if index.facts.normalise == "subject":
        raise UserError(
            f"{index.folder}: these shards are whitened per subject already; set whiten of the encoder to false"
        )
    repeated = bool((index.n_repetitions > 1).any())
    total, n = np.zeros((len(std), len(std))), 0
    kept = np.arange(len(reader)) if kept is None else kept
    for i in kept[np.unique(np.linspace(0, len(kept) - 1, min(ENOUGH, len(kept))).astype(int))]:
        eeg = reader.eeg(int(i))  # [R, C, T]
        if repeated:
            if len(eeg) < 2:
                continue
            eeg = eeg - eeg.mean(0)
        else:
            eeg = eeg - mean
        flat = eeg.transpose(1, 0, 2).reshape(len(std), -1)  # [C, R T]
        total += flat @ flat.T
        n += (len(eeg) - repeated) * eeg.shape[2]
    return total / n / np.outer(std, std)
