"""What all ranks must agree on after each step: whether to stop, and whether everything was finite.

A signal (SIGTERM, SIGUSR1, Ctrl-C), the file named by ``TTD_STOP_FILE`` or the time ``TTD_STOP_AT`` only sets a flag; one
all-reduce of two numbers per step makes every rank see it at the same step, because a rank that stops alone hangs the others. A
second Ctrl-C ends without another state; one that is being written is finished.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ttd.config import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LOOK_EVERY_S = 1.0  # at most one look per second at a file on a shared disk


class StopRequest:
    """Whether somebody asked this process to stop. Signals are caught while it is entered as a context."""

    def __init__(self) -> None:
        self.signalled, self.interrupted = False, False
        self._seen_file = False
        self._next_look = 0.0
        self._stop_at = float(
            os.environ.get("TTD_STOP_AT", "inf")
        )  # seconds since 1970: shortly before a job's time is up
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                s: signal.signal(s, self._handle) for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN
            }  # a job in the background ignores Ctrl-C
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled, self.interrupted = True, self.interrupted or number == signal.SIGINT

    @property
    def requested(self) -> bool:
        path = os.environ.get("TTD_STOP_FILE")
        if path and not self._seen_file and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_EVERY_S
            self._seen_file = os.path.exists(path)
        return self.signalled or self._seen_file or time.time() >= self._stop_at


@dataclass
class _Step:
    number: int
    flags: Tensor  # [2]: stop, something not finite; the same on all ranks
    bad: Tensor  # [M] per micro-batch of this rank
    positions: Tensor  # [M, b]


class Agreement:
    """Collects what happened in a step on the device, and lets all ranks decide alike.

    On a GPU the answer is read one step late, when it is there already, so that the host never waits for the device;
    ``now=True`` (before anything is saved) reads it at once.
    """

    def __init__(self, accelerator: Accelerator, stop: StopRequest):
        self.accelerator, self.stop = accelerator, stop
        self._bad: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._pending: deque[_Step] = deque()

    def note(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Remember whether the loss of this micro-batch was finite, and which samples were in it."""
        self._bad.append(~torch.isfinite(loss.detach()))
        self._positions.append(batch["position"])

    def decide(self, step: int, grad_norm: Tensor | float | None, *, now: bool) -> bool:
        """Whether to stop after this step.

        Raises:
            UserError: on all ranks, when a loss or the gradient of any rank was not finite.
        """
        device = self.accelerator.device
        bad = torch.stack(self._bad)  # [M]
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, device=device)
        anything = bad.any() | ~torch.isfinite(norm) | (norm < 0)  # DeepSpeed reports an overflow as -1
        flags = torch.stack([torch.tensor(self.stop.requested, device=device), anything]).to(torch.int32)
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        self._pending.append(_Step(step, flags, bad, torch.stack(self._positions)))
        self._bad, self._positions = [], []

        late = 0 if now or device.type == "cpu" else 1
        stopping = False
        while len(self._pending) > late:
            due = self._pending.popleft()
            asked, not_finite = due.flags.tolist()
            if not_finite:
                self._refuse(due)
            stopping = stopping or bool(asked)
        return stopping

    def _refuse(self, due: _Step) -> None:
        device = self.accelerator.device
        marked = torch.where(due.bad[:, None], due.positions.to(device), torch.tensor(-1, device=device))
        positions = sorted(p for p in self.accelerator.gather(marked.flatten()).tolist() if p >= 0)
        what = f"the loss of the samples at positions {positions}" if positions else "the gradient (of finite losses)"
        raise UserError(
            f"step {due.number}: {what} is not finite; all ranks stopped and nothing of it was saved. Look at these "
            "samples, or lower optim.lr; the same command resumes from the last state"
        )
