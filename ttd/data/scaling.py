"""Mean and standard deviation of a training part, channel by channel, gathered while its samples are written.

Chan, Golub & LeVeque, 1979, "Updating formulae and a pairwise algorithm for computing sample variances", STAN-CS-79-773.

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttd.config import UserError

Moments = Mapping[str, Any]
"""``n`` values per channel, their ``mean`` [C] and sum of ``squares`` [C] of what they deviate by."""


class ChannelStatistics:
    """Mean and standard deviation per channel of one cap, gathered piece by piece (Chan et al., 1979).

    They are gathered per subject, and the subjects' then in their order: subjects that are built one by one and merged have
    the same to the last bit.
    """

    def __init__(self, n_chans: int):
        self.n, self.mean, self.squares = 0, np.zeros(n_chans), np.zeros(n_chans)

    def add(self, eeg: np.ndarray) -> None:
        """Take in samples [R, C, T]."""
        flat = eeg.astype(np.float64).swapaxes(0, 1).reshape(eeg.shape[1], -1)  # [C, R·T]
        mean = flat.mean(axis=1)
        self._join(flat.shape[1], mean, ((flat - mean[:, None]) ** 2).sum(axis=1))

    def _join(self, n: int, mean: np.ndarray, squares: np.ndarray) -> None:
        delta, total = mean - self.mean, self.n + n
        self.squares += squares + delta**2 * self.n * n / total
        self.mean += delta * n / total
        self.n = total

    def moments(self) -> dict[str, Any]:
        """Number of values per channel, their mean [C] and sum of squared deviations [C], for ``pooled``."""
        return {"n": self.n, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def pooled(cls, moments: Sequence[Moments]) -> ChannelStatistics:
        """Those of all values whose ``moments`` are given, one after the other."""
        found = cls(len(moments[0]["mean"]))
        for part in moments:
            found._join(part["n"], np.array(part["mean"]), np.array(part["squares"]))
        return found

    def result(self) -> dict[str, list[float]]:
        """Mean [C] and standard deviation [C]."""
        return {"mean": self.mean.tolist(), "std": np.sqrt(self.squares / max(self.n, 1)).tolist()}


def scaling(
    moments: Mapping[str, Mapping[str, Moments]], caps: Iterable[str], part: str, where: Path
) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation of each cap of ``part`` from the ``moments`` of training, by cap and subject.

    Raises:
        UserError: a cap does not occur in training.
    """
    unknown = sorted(set(caps) - set(moments))
    if unknown:
        raise UserError(f"{where}: caps {unknown} of part {part} do not occur in training")
    return {cap: ChannelStatistics.pooled(list(moments[cap].values())).result() for cap in caps}
