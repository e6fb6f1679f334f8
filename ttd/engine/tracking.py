"""What a run tells: JSON lines always, other trackers when asked, progress bars and plain lines on rank 0.

``log.jsonl`` is appended to. A resumed run goes back to its last state, so steps may occur twice; ``read_log`` drops
what was superseded. A tracker that fails never stops training and never passes unnoticed. docs/tracking.md has the rest.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import netrc
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ttd.config import Config, UserError, fingerprint, is_main_process
from ttd.engine.trackers import SINKS, About, JSONLines, Place, Sink
from ttd.redaction import redact

log = logging.getLogger(__name__)
T = TypeVar("T")
LINE_EVERY_S = 10.0


class TrackingConfig(Config):
    to: tuple[Literal["wandb", "tensorboard", "trackio"], ...] = ()
    """Where the log goes besides log.jsonl."""
    project: str = "ttd"
    """The project's name there."""
    wandb_mode: Literal["auto", "online", "offline", "shared"] = "auto"
    """How W&B keeps it; auto takes WANDB_MODE, else online with an API key and offline, in the run folder, without."""


class _Console(logging.Handler):
    """Messages of the package on standard error, without secrets, beside a progress bar: from rank 0, and from any rank those
    that are marked ``any_rank``, because no other knows of them."""

    def emit(self, record: logging.LogRecord) -> None:
        alone = not is_main_process()
        if alone and not getattr(record, "any_rank", False):
            return
        try:
            text = f"rank {os.environ['RANK']}: {self.format(record)}" if alone else self.format(record)
            tqdm.write(redact(text), file=sys.stderr)
            sys.stderr.flush()
        except OSError:  # standard error goes to a full disk, say: a message must not stop the work
            self.handleError(record)


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
                log.info("%s %d%s%s", desc, done, f"/{total}" if total else "", left)


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
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc(os.environ.get("NETRC")).hosts.get(host))
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(config: TrackingConfig) -> str:
    """As asked; "auto" takes WANDB_MODE, else online with an API key and offline without."""
    if config.wandb_mode != "auto":
        return config.wandb_mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")


def check_tracking(config: TrackingConfig) -> list[str]:
    """Why ``config`` cannot be followed here, in sentences; entries add them to their plan. Imports no tracker."""
    problems = [
        f"train.tracking.to: {name} is not installed; pip install {name}, or leave it out"
        for name in config.to
        if importlib.util.find_spec(name) is None
    ]
    if "wandb" in config.to and wandb_mode(config) in ("online", "shared") and not _has_wandb_key():
        problems.append(
            f"train.tracking.wandb_mode={wandb_mode(config)}: there is no API key in WANDB_API_KEY or ~/.netrc; "
            "set it (wandb login), or take 'offline' and send the folders later (wandb sync)"
        )
    return problems


class Tracker:
    """One call, ``log(event, ...)``, for every sink; every rank may make it.

    Rank 0 writes ``log.jsonl`` and feeds all sinks. The first rank of every other node writes that node's own numbers into
    ``log.node1.jsonl`` and, offline or shared, into W&B. Other ranks write nothing. A sink that fails is told of and dropped.

    Raises:
        UserError: a tracker that is not installed, or W&B online without a key; on every rank alike.
    """

    def __init__(self, output_dir: Path, config: TrackingConfig, resolved: Config, place: Place | None = None):
        problems = check_tracking(config)
        if problems:
            raise UserError("\n".join(problems))
        self.place = place or Place.here()
        self._output_dir, self._config, self._resolved = output_dir, config, resolved
        self._sinks: dict[str, Sink] | None = None
        self._file: JSONLines | None = None
        self._file_failed, self._step = False, 0
        if self.place.writes:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._file = JSONLines(output_dir / ("log.jsonl" if self.place.main else f"log.{self.place.label}.jsonl"))

    def log(self, event: str, *, step: int, **values: Any) -> None:
        """One line: ``event`` says of what kind, ``step`` where the run stands, numbers or text by name; rank 0's count."""
        if self._file is None:
            return
        self._step = step
        if self.place.main or event == "resumed":  # which says what is superseded
            self._write({"event": event, "step": step, **values})
        numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        for name, sink in self._open(step):
            if self.place.main and numbers:
                self._try(name, step, partial(sink.log, step, numbers))

    def log_node(self, *, step: int, **numbers: float) -> None:
        """The calling rank's own numbers; those of each node's first rank count, where a run spans several nodes."""
        if self._file is None or self.place.nodes == 1:
            return
        self._write({"event": "node", "step": step, "host": self.place.host, **numbers})
        for name, sink in self._open(step):
            self._try(name, step, partial(sink.log, step, {f"{self.place.label}/{k}": v for k, v in numbers.items()}))

    def images(self, event: str, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Keep pictures by name, uint8 [H, W, 3], as ``samples/step-0000100/<event>-<name>.png`` and in the sinks.

        Raises:
            ValueError: a picture has another shape or type.
        """
        for name, picture in pictures.items():
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(f"{name}: a picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}")
        if self._file is None or not self.place.main:
            return
        folder = self._output_dir / "samples" / f"step-{step:07d}"
        files = {folder / f"{event}-{re.sub(r'[^0-9A-Za-z_.-]', '-', name)}.png": p for name, p in pictures.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, picture in files.items():
                aside = path.with_name(f".{path.name}")
                Image.fromarray(picture).save(aside, "PNG")
                aside.replace(path)
            self._write({"event": "samples", "step": step, "files": [p.relative_to(self._output_dir) for p in files]})
        except OSError as error:
            self._failed("samples", step, error)
        for name, sink in self._open(step):
            self._try(name, step, partial(sink.images, step, {f"{event}/{k}": v for k, v in pictures.items()}))

    def _open(self, step: int) -> list[tuple[str, Sink]]:
        """The sinks that work, opened when the first line says where the run stands."""
        if self._sinks is None:
            self._sinks = {}
            mode = wandb_mode(self._config)
            about = About(
                output_dir=self._output_dir,
                project=redact(self._config.project),
                run_id=fingerprint([str(self._output_dir.resolve())]),  # the same run when it resumes
                config=redact(self._resolved.model_dump(mode="json")),
                place=self.place,
                wandb_mode=mode,
                step=step,
            )
            for name in dict.fromkeys(self._config.to):
                # Online one process feeds a run. Two at once need the shared mode, or a folder of their own.
                if self.place.main or (name == "wandb" and mode in ("offline", "shared")):
                    sink = self._try(name, step, partial(SINKS[name], about))
                    if sink is not None:
                        self._sinks[name] = sink
        return [*self._sinks.items()]

    def _try(self, name: str, step: int, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:
            if self._sinks is not None:
                self._sinks.pop(name, None)
            self._failed(name, step, error)
            return None

    def _failed(self, name: str, step: int, error: Exception) -> None:
        said = redact(f"{type(error).__name__}: {error}")
        self._tell(f"tracker {name} failed at step {step} and gets no more ({said}); training goes on")
        self._write({"event": "tracker_failed", "step": step, "tracker": name, "error": said})

    def _tell(self, text: str) -> None:
        """A warning; from other nodes straight to standard error, for only rank 0's messages are shown."""
        if self.place.main:
            log.warning("%s", text)
        else:
            tqdm.write(f"{self.place.label} ({self.place.host}): {text}", file=sys.stderr)

    def _write(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(redact(record))
        except OSError as error:
            if not self._file_failed:
                self._tell(f"the log cannot be written ({error}); training goes on, and later lines are tried again")
            self._file_failed = True

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name, sink in [*(self._sinks or {}).items()]:
            self._try(name, self._step, partial(sink.finish, ok=kind is None))
        if self._file is not None:
            self._file.close()


def read_log(output_dir: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's log that count: without a torn one, and without steps that a resumed run did again."""
    records: list[dict[str, Any]] = []
    path = output_dir / name
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["event"] == "resumed":
            records = [r for r in records if r["step"] <= record["step"]]
        records.append(record)
    return records
