"""Where the time of a training step goes: waiting for data, and the step as a whole, by the clock of the host.

Nothing here waits for a GPU. Launches run ahead of the device, so a single step's time would mean little; over an interval
that ends with a look at numbers of the device the mean is right.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator

T = TypeVar("T")
GIB = 2**30


class Timing:
    """Seconds per step since the last look; validation and saving, done ``apart``, do not count."""

    def __init__(self) -> None:
        self.own: dict[str, float] = {}
        """This rank's numbers of the last interval, as ``reduce`` found them."""
        self._wait = self._apart = 0.0
        self._steps = 0
        self._since = time.monotonic()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """``batches``, while the time that each takes to arrive is noted."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._wait += time.monotonic() - start
            yield batch

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done within belongs to no step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._apart += time.monotonic() - start

    def step(self) -> None:
        """One step is done."""
        self._steps += 1

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Numbers of the interval over all ranks, in one exchange that every rank must join. Starts over.

        ``data_wait_s`` seconds a step waited for data, mean over steps and ranks; ``step_s`` seconds per step, mean over
        steps, of the slowest rank; with CUDA ``gpu_peak_gib`` the most memory of torch's tensors since the start, GiB, of the
        fullest rank.
        """
        if not self._steps:
            return {}
        seconds = time.monotonic() - self._since - self._apart
        self.own = {"data_wait_s": self._wait / self._steps, "step_s": seconds / self._steps}
        if accelerator.device.type == "cuda":
            self.own["gpu_peak_gib"] = torch.cuda.max_memory_allocated(accelerator.device) / GIB
        ranks = accelerator.gather(torch.tensor([[*self.own.values()]], device=accelerator.device)).tolist()
        by_name = dict(zip(self.own, zip(*ranks, strict=True), strict=True))
        self._wait, self._apart, self._steps, self._since = 0.0, 0.0, 0, time.monotonic()
        return {
            name: sum(values) / len(values) if name == "data_wait_s" else max(values)
            for name, values in by_name.items()
        }
