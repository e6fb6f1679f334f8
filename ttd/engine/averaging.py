"""An exponential moving average of the trainable weights: what is validated, selected and exported where it is kept.

After each update the average a of a weight w becomes d a + (1 - d) w, with d = min(``decay``, (1 + n) / (10 + n)) after n
updates more than one, so that the start is forgotten (Polyak & Juditsky, 1992; the form of ``diffusers.EMAModel``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of ``parameters`` by name; every rank keeps the same one."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        from diffusers.training_utils import EMAModel

        self.parameters = parameters
        self._model = EMAModel(parameters.values(), decay=decay, foreach=True)

    @property
    def values(self) -> dict[str, Tensor]:
        """The averages, by the names of their parameters."""
        return dict(zip(self.parameters, self._model.shadow_params, strict=True))

    def update(self, step: int) -> None:
        """Take in the weights after update ``step`` (1 is the first)."""
        self._model.optimization_step = step - 1  # the model counts by itself, and a resumed run does not begin at 0
        self._model.step(self.parameters.values())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in place of the weights; afterwards the weights are back, bit for bit."""
        weights = [p.detach().clone() for p in self.parameters.values()]
        self._model.copy_to(self.parameters.values())
        try:
            yield
        finally:
            torch._foreach_copy_([p.data for p in self.parameters.values()], weights)
