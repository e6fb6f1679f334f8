"""A training step that never ends: every rank says where it stands, and ends.

When one rank deadlocks, is stopped, or loses its machine in silence, the others wait for it in a collective, with NCCL for ten
minutes and with gloo for thirty, and nobody learns where. Here a thread of each rank counts the seconds without a finished
step. When they are too many, it writes the stacks of its process, looks which ranks wrote none, and ends the process; the
launcher, then, ends what is left, and the run is started again from its last state.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)

TICK_S = 1.0
GRACE_S = 2.0  # for the other ranks, whose last step ended at the same moment, to write theirs
PATIENCE = 10
"""Times longer that the first step (kernels are compiled, caches filled), validation and saving may take."""


class Watchdog:
    """Ends this process when ``limit_s`` pass without ``step()``, while it is entered as a context.

    ``folder/stacks/rank-R.txt`` is where the stacks of rank R of ``world`` go. Exit status 1, without an outcome: as after a
    crash, the same command resumes.
    """

    def __init__(self, folder: Path, rank: int, world: int, limit_s: float):
        self.folder, self.rank, self.world, self.limit_s = folder / "stacks", rank, world, limit_s
        self._allowed_s = PATIENCE * limit_s
        self._waited_s = 0.0
        self._ended = threading.Event()

    def step(self) -> None:
        """A step has ended; the next has ``limit_s``."""
        self._waited_s, self._allowed_s = 0.0, self.limit_s

    @contextmanager
    def patient(self) -> Iterator[None]:
        """What is done within may take ``PATIENCE`` times as long."""
        self._waited_s, self._allowed_s = 0.0, PATIENCE * self.limit_s
        yield
        self.step()

    def __enter__(self) -> Watchdog:
        self._path(self.rank).unlink(missing_ok=True)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.txt"

    def _watch(self) -> None:
        tick_s = min(TICK_S, self.limit_s / 10)
        while not self._ended.wait(tick_s):
            self._waited_s += tick_s  # not by the clock: a suspended job has not waited
            if self._waited_s > self._allowed_s:
                self._end()

    def _end(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path(self.rank).open("w") as file:
                print(f"rank {self.rank} on {socket.gethostname()}: {self._waited_s:.0f} s without a step", file=file)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            time.sleep(GRACE_S)
            silent = [rank for rank in range(self.world) if not self._path(rank).is_file()]
            if self.rank != min({*range(self.world)} - {*silent}):
                return  # one says it for all
            log.critical(
                "rank %d: no step for %.0f s; the stacks of all ranks are in %s%s",
                self.rank, self._waited_s, self.folder,
                f"; ranks {silent} wrote none: stopped, or their machine is gone" if silent else "",
                extra={"any_rank": True},
            )  # fmt: skip
        finally:  # whatever happens to the file
            os._exit(1)
