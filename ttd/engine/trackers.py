"""Where a run's numbers go: one small class per sink, each with ``log``, ``images`` and ``finish``.

Sinks may raise whatever they like; ``ttd.engine.tracking.Tracker`` drops a sink that does. What they get is free of secrets
already. docs/tracking.md says who writes what when a run spans several nodes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ONLINE_WAIT_S = 60
"""How long the start and the end of a run may wait for W&B's server: a dead one must not hold a job until its time limit."""
FLUSH_S = 1.0
"""What of W&B's offline file a crash of the node may lose; its own value, 15 s, left an empty file of a short attempt."""
READ_BACK_S = 20
"""W&B's service, a process of its own, may write for a moment after ``finish`` has returned."""


@dataclass(frozen=True)
class Place:
    """Which process this is, and in which attempt of which job."""

    rank: int = 0
    local_rank: int = 0
    node: int = 0
    nodes: int = 1
    host: str = "localhost"
    job: str | None = None
    """Slurm's job, or the array it belongs to."""
    array_task: str | None = None
    attempt: str | None = None
    """``job.restarts`` under Slurm; None elsewhere, where attempts are counted."""

    @classmethod
    def here(cls) -> Place:
        """This process, from the variables of its launcher and of Slurm."""
        env, rank = os.environ, int(os.environ.get("RANK", "0"))
        job = env.get("SLURM_JOB_ID")
        return cls(
            rank=rank,
            local_rank=int(env.get("LOCAL_RANK", rank)),
            node=int(env.get("SLURM_NODEID") or env.get("GROUP_RANK") or 0),
            nodes=max(1, int(env.get("WORLD_SIZE", "1")) // int(env.get("LOCAL_WORLD_SIZE", "1"))),
            host=env.get("SLURMD_NODENAME") or platform.node() or "localhost",
            job=env.get("SLURM_ARRAY_JOB_ID") or job,
            array_task=env.get("SLURM_ARRAY_TASK_ID"),
            attempt=f"{job}.{env.get('SLURM_RESTART_COUNT', '0')}" if job else None,
        )

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Rank 0 of the run writes the log, the first rank of every other node that node's own numbers."""
        return self.main or self.local_rank == 0

    @property
    def label(self) -> str:
        """The node's name in W&B and in the log; the same when a later attempt runs on other hosts."""
        return f"node{self.node}"


@dataclass(frozen=True)
class About:
    """What a sink is told of the run, all without secrets."""

    output_dir: Path
    project: str
    run_id: str
    """The same on every node and when the run resumes."""
    config: dict[str, Any]
    place: Place
    wandb_mode: str = "offline"
    step: int = 0
    """Where the run stands; what an earlier attempt told of later steps is superseded."""

    @property
    def name(self) -> str:
        return self.output_dir.resolve().name

    @property
    def group(self) -> str:
        return f"slurm-{self.place.job}" if self.place.job else self.name


class Sink(Protocol):
    """Opened with an ``About``; numbers and pictures come by name."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None: ...

    def finish(self, *, ok: bool) -> None: ...


class JSONLines:
    """A file with one JSON object per line, appended to. A line that was cut off, by a kill or a full disk, spoils no other."""

    def __init__(self, path: Path):
        self._torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line, at once in the hands of the operating system.

        Raises:
            OSError: it could not be written whole.
        """
        line = b"\n" * self._torn + json.dumps(record).encode() + b"\n"
        self._torn = True
        written = self._file.write(line)
        if written < len(line):
            raise OSError(f"{self._file.name}: only {written} of {len(line)} bytes were written")
        self._torn = False

    def close(self) -> None:
        self._file.close()


def try_to_write(folder: Path) -> None:
    """Write and remove a small file. W&B and trackio write elsewhere (a process, a thread) and go on when they cannot: on a
    full disk both ended well, with half of the numbers (seen with wandb 0.31 and trackio 0.43).

    Raises:
        OSError: what they do not tell.
    """
    probe = folder / ".probe"
    probe.write_bytes(bytes(4096))
    probe.unlink()


class WandbSink:
    """Weights & Biases (wandb 0.31): online, offline, or one run that every node writes to (``shared``)."""

    def __init__(self, about: About):
        import wandb

        self._mode, place = about.wandb_mode, about.place
        folder, attempt = _attempt_folder(about.output_dir / "wandb", place)
        launch: dict[str, Any] = {"node": place.label, "host": place.host, "attempt": attempt}
        launch |= {"slurm_job": place.job, "slurm_array_task": place.array_task} if place.job else {}
        primary = place.main or self._mode != "shared"
        self._run = wandb.init(
            project=about.project,
            dir=folder,
            id=about.run_id,
            name=about.name,
            group=about.group,
            resume=None if self._mode == "shared" else "allow",
            mode=self._mode,  # type: ignore[arg-type]
            config=about.config | {"launch": launch},
            # Neither arguments nor environment nor output: a secret in them would be sent.
            settings=wandb.Settings(
                reinit="create_new",  # a run that failed before must not be handed out again
                console="off",
                x_disable_meta=True,
                save_code=False,
                disable_git=True,
                x_label=place.label,
                x_transaction_log_flush_interval=FLUSH_S,
                init_timeout=ONLINE_WAIT_S,
                finish_timeout=ONLINE_WAIT_S,
                finish_timeout_raises=True,
                x_primary=primary,
                x_update_finish_state=primary,
            ),
        )
        if self._mode == "shared":  # steps of several writers cannot be told apart; the server wants an axis of our own
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        self._folder = Path(self._run.dir).parent
        if self._mode != "disabled" and not self._folder.resolve().is_relative_to(folder.resolve()):
            raise OSError(f"{folder}: W&B cannot write there and took {self._folder} instead")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._mode == "shared":
            self._run.log({**numbers, "step": step})
        else:
            self._run.log(dict(numbers), step=step)
        if self._mode != "disabled":
            try_to_write(self._folder)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        import wandb

        content: dict[str, Any] = {name: wandb.Image(picture) for name, picture in pictures.items()}
        if self._mode == "shared":
            self._run.log(content | {"step": step})
        else:
            self._run.log(content, step=step)

    def finish(self, *, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)
        if self._mode == "offline":
            try_to_write(self._folder)
            _read_back(self._folder)


def _attempt_folder(base: Path, place: Place) -> tuple[Path, str]:
    """A folder below ``base`` that only this node writes to in this attempt, and the attempt's name."""
    node = f"{place.label}-{place.host}"
    if place.attempt:
        folder = base / f"{node}-{place.attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder, place.attempt
    attempt = 0
    while True:
        try:
            folder = base / f"{node}-{attempt}"
            folder.mkdir(parents=True)
            return folder, str(attempt)
        except FileExistsError:
            attempt += 1


def inspect_wandb(folder: Path) -> dict[str, Any]:
    """What ``wandb leet inspect`` says of an offline run's folder: id, state, configuration, latest numbers.

    Raises:
        OSError: it cannot be read.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise OSError(f"{folder}: W&B cannot read what it wrote: {(done.stderr or done.stdout).strip()}") from error


def _read_back(folder: Path) -> None:
    end = time.monotonic() + READ_BACK_S
    while (state := inspect_wandb(folder).get("state")) not in ("finished", "failed"):
        if time.monotonic() > end:
            raise OSError(f"{folder}: W&B's file breaks off (it reads as {state}), the last lines are missing in it")
        time.sleep(1)


class TensorBoardSink:
    """TensorBoard's event files below ``tensorboard/``, through ``torch.utils.tensorboard``."""

    def __init__(self, about: About):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(about.output_dir / "tensorboard"), purge_step=about.step + 1)
        self._writer.add_text("config", f"```\n{json.dumps(about.config, indent=1)}\n```", about.step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a thread writes; what went wrong there is raised here

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def finish(self, *, ok: bool) -> None:
        self._writer.close()


class TrackioSink:
    """trackio's database below ``trackio/``, or in TRACKIO_DIR where that is set; ``trackio show`` draws it."""

    def __init__(self, about: About):
        os.environ.setdefault("TRACKIO_DIR", str((about.output_dir / "trackio").resolve()))  # read when it is imported
        import trackio

        self._folder = Path(trackio.TRACKIO_DIR)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = trackio.init(
            project=about.project,
            name=f"{about.name}-{about.run_id}",
            group=about.group,
            config=about.config,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)
        try_to_write(self._folder)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        import trackio

        self._run.log({name: trackio.Image(picture) for name, picture in pictures.items()}, step=step)

    def finish(self, *, ok: bool) -> None:
        self._run.finish()
        try_to_write(self._folder)


SINKS: dict[str, Callable[[About], Sink]] = {"wandb": WandbSink, "tensorboard": TensorBoardSink, "trackio": TrackioSink}
