"""States are written beside training: by one thread of rank 0, one state at a time, and no failure is lost.

The training thread only copies the state into memory. The thread here hashes, writes, verifies and removes older states
while training goes on; the next state, the end of training and every error wait for it.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError

from ttd.config import UserError
from ttd.engine.state_files import Snapshot, write_state

log = logging.getLogger(__name__)

MESSAGE_BYTES = 2000  # of a failure, sent to all ranks as numbers: nothing pickled travels between processes


class StateWriter:
    """The context in which a run saves its states; leaving it waits for the one that is being written."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.snapshot = Snapshot()
        """The last one. Its memory serves again: fresh memory makes the copy three times as long (measured,
        benchmarks/checkpoint_cpu_2026-11-20.md)."""
        self._thread: threading.Thread | None = None
        self._failure: str | None = None

    def start(self, folder: Path) -> None:
        """Begin to write the snapshot into ``folder`` on rank 0; ``wait()`` must have come before it was taken."""
        assert self._thread is None
        if self.accelerator.is_main_process:
            self._thread = threading.Thread(target=self._write, args=(folder,), name="states")
            self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written. Every rank must call it.

        Raises:
            UserError: the same on every rank, when the last state was not saved; older states are untouched.
        """
        self._join()
        failed = torch.tensor([float(self._failure is not None)], device=self.accelerator.device)
        if self.accelerator.reduce(failed, "sum").item():
            said = (self._failure or "").encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES)
            heard = broadcast(torch.frombuffer(bytearray(said), dtype=torch.uint8).to(self.accelerator.device))
            self._failure = None
            raise UserError(bytes(heard.tolist()).decode(errors="ignore").rstrip())

    def _write(self, folder: Path) -> None:
        try:
            write_state(folder, self.snapshot)
        except BaseException as error:  # nobody is above this thread: it is told where the ranks meet
            expected = isinstance(error, OSError | ValueError | SafetensorError)
            reason = str(error) if expected else repr(error)
            self._failure = f"{folder}: not saved: {reason}; earlier states are untouched"

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:  # ranks may not meet any more
            self._join()
            if self._failure is not None:
                log.error("%s", self._failure)
