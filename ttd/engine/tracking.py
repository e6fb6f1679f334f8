"""What a run tells: JSON lines always, Weights & Biases when asked, progress bars and plain lines on rank 0.

``log.jsonl`` is appended to. A resumed run goes back to its last state, so steps may occur twice; ``read_log`` drops
what was superseded.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ttd.config import Config, fingerprint, is_main_process

T = TypeVar("T")
LINE_EVERY_S = 10.0


class TrackingConfig(Config):
    wandb: bool = False
    """Send the log to Weights & Biases as well; without an API key it is kept offline in the run folder."""
    project: str = "ttd"
    """The project's name there."""


class _Console(logging.Handler):
    """Messages of the package on standard error, from rank 0 only, without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_main_process():
            tqdm.write(self.format(record), file=sys.stderr)
            sys.stderr.flush()


def talk() -> None:
    """Let the package's messages (``logging.getLogger("ttd...")``) reach the terminal."""
    logger = logging.getLogger("ttd")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
        logger.setLevel(logging.INFO)


def progress(iterable: Iterable[T], *, total: int | None = None, desc: str = "", initial: int = 0) -> Iterator[T]:
    """Iterate with a progress bar on rank 0's terminal; where there is none, with a plain line every ten seconds."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable) + initial  # type: ignore[arg-type]
    if not is_main_process():
        yield from iterable
    elif sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=desc, initial=initial, dynamic_ncols=True, leave=False)
    else:
        talk()
        start = last = time.monotonic()
        done = initial
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - last >= LINE_EVERY_S:
                last = now
                left = f", {(now - start) / (done - initial) * (total - done):.0f} s left" if total else ""
                logging.getLogger(__name__).info("%s %d%s%s", desc, done, f"/{total}" if total else "", left)


class Meter:
    """Means of named losses since the last look. Sums stay on the device until ``reduce`` reads them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._n += 1

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over micro-batches and ranks by name; every rank must call it. Starts over."""
        if not self._sums:
            return {}
        sums = accelerator.reduce(torch.stack([*self._sums.values()]) / self._n, "mean")
        means = dict(zip(self._sums, sums.tolist(), strict=True))
        self.__init__()  # type: ignore[misc]
        return means


def _has_wandb_key() -> bool:
    try:
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc().hosts.get("api.wandb.ai"))
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """One call, ``log(event, ...)``, for every sink. Does nothing except on rank 0."""

    def __init__(self, output_dir: Path, config: TrackingConfig, resolved: Config, *, active: bool | None = None):
        self.active = is_main_process() if active is None else active
        self._file, self._wandb = None, None
        if not self.active:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        path = output_dir / "log.jsonl"
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a")
        if torn:  # killed in the middle of a line
            self._file.write("\n")
        if config.wandb:
            import wandb

            mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
            self._wandb = wandb.init(
                project=config.project,
                dir=output_dir,
                id=fingerprint([str(output_dir.resolve())]),  # the same run when it resumes
                name=output_dir.name,
                resume="allow",
                mode=mode,  # type: ignore[arg-type]
                config=resolved.model_dump(mode="json"),
                # Neither arguments nor environment nor output: a secret in them would be sent.
                settings=wandb.Settings(console="off", x_disable_meta=True, save_code=False, disable_git=True),
            )

    def log(self, event: str, *, step: int, **values: Any) -> None:
        """One line: ``event`` says of what kind, ``step`` where the run stands, numbers or text by name."""
        if self._file is None:
            return
        self._file.write(json.dumps({"event": event, "step": step, **values}, default=str) + "\n")
        self._file.flush()
        if self._wandb is not None:
            numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
            self._wandb.log(numbers, step=step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of ``log.jsonl`` that count: without a torn one, and without steps that a resumed run did again."""
    records: list[dict[str, Any]] = []
    path = output_dir / "log.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["event"] == "resumed":
            records = [r for r in records if r["step"] <= record["step"]]
        records.append(record)
    return records
