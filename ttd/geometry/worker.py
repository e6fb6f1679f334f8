"""A worker process in an environment of its own: JSON lines over stdin and stdout, one answer per question.

The protocol is docs/external_lifters.md. Whatever a worker does (end, hang, talk nonsense), the question fails with a
``WorkerError`` that says why, the process is killed with all it started, and the next question starts another one after a
pause that doubles from failure to failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from typing import IO, Any

import torch

LONGEST_LINE = 1 << 20  # bytes; an answer names files and holds none, so more is no answer
LOG_BYTES = 20_000  # of the error stream kept per question, from its end
LONGEST_PAUSE_S = 60.0
QUOTED = 80  # characters of a wrong answer that the reason quotes


class WorkerError(Exception):
    """A question that got no answer: why, in one sentence. The process is gone by then."""


class Worker:
    """One persistent process; ``ask`` starts it when it is not running."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        start_timeout_s: float,
        timeout_s: float,
        backoff_s: float,
        device: torch.device | str = "cpu",
    ):
        self.command, self.start_timeout_s, self.timeout_s = list(command), start_timeout_s, timeout_s
        self.backoff_s, self.environment = backoff_s, environment(torch.device(device))
        self.failures = 0  # in a row
        self.failed_starts = 0  # in a row
        self._process: subprocess.Popen | None = None
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the worker
        self._read = 0
        self._kill: weakref.finalize | None = None

    def start(self) -> dict[str, Any]:
        """Start the process and return what it says first, a JSON object.

        Raises:
            WorkerError: it does not start, ends, is silent for too long or says something else.
        """
        if self.failures:
            time.sleep(min(LONGEST_PAUSE_S, self.backoff_s * 2 ** (self.failures - 1)))
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=self.environment,
                start_new_session=True,  # so that it is killed with all that it started
            )
        except OSError as error:
            self.failures, self.failed_starts = self.failures + 1, self.failed_starts + 1
            raise WorkerError(f"the worker cannot be started: {error}") from error
        self._process, self._lines = process, queue.Queue()
        self._kill = weakref.finalize(self, kill, process)  # also when this process ends in the ordinary way
        threading.Thread(target=read_lines, args=(process.stdout, self._lines), daemon=True).start()
        try:
            hello = self._answer(self.start_timeout_s)
        except WorkerError:
            self.failed_starts += 1
            raise
        self.failed_starts = 0
        return hello

    @property
    def running(self) -> bool:
        """Whether there is a process to ask."""
        return self._process is not None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question that carries an ``id``, which the answer must repeat.

        Raises:
            WorkerError: there is none.
        """
        process = self._process
        assert process is not None, "start() comes first"
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended; what it said last and its status are read below
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        answer = self._answer(self.timeout_s)
        if answer.get("id") != question["id"]:
            raise self._failed(f"the worker answered question {answer.get('id')!r} instead of {question['id']!r}")
        self.failures = 0
        return answer

    def log(self) -> str:
        """What the error stream holds since this was last called, its end if that is much."""
        end = os.fstat(
            self._errors.fileno()
        ).st_size  # the process writes at the file's end, and moves the shared place
        start = max(self._read, end - LOG_BYTES)
        self._read = end
        return os.pread(self._errors.fileno(), end - start, start).decode(errors="replace")

    def stop(self) -> None:
        """Kill the process, if there is one."""
        if self._kill is not None:
            self._kill()
        self._process = self._kill = None

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """The next line as a JSON object."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise self._failed(f"the worker said nothing for {timeout_s:g} s and was stopped") from None
        if not line:
            assert self._process is not None
            try:
                status: int | str = self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                status = "unknown: it closed its output and ran on"
            raise self._failed(f"the worker ended with status {status}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            said = line[:QUOTED].decode(errors="replace").strip()
            raise self._failed(f"the worker answered with something that is no JSON object: {said!r}")
        return answer

    def _failed(self, reason: str) -> WorkerError:
        self.failures += 1
        self.stop()
        return WorkerError(reason)


def kill(process: subprocess.Popen) -> None:
    """End a process and all that it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its process group bears its number: start_new_session
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was still to be written has no reader
            process.stdin.close()


def read_lines(stream: IO[bytes], lines: queue.Queue[bytes]) -> None:
    """Put every line into the queue, an empty one at the end."""
    with stream:
        while line := stream.readline(LONGEST_LINE):
            lines.put(line)
    lines.put(b"")


def environment(device: torch.device) -> dict[str, str]:
    """Ours without what would lead the worker's Python to our packages, and with one visible GPU: that of ``device``."""
    named = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    if device.type == "cuda":
        visible = [name for name in named.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        number = device.index or 0
        named["CUDA_VISIBLE_DEVICES"] = visible[number] if visible else str(number)
    return named
