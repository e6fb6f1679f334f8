"""The run that ``kill_resume.py`` kills: tiny, with everything in it that a resumed run could get wrong.

Its writer announces through a pipe what it is doing, and stands still where the killer aims.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import deepspeed  # noqa: F401  (accelerate imports it in the first run: once for all victims)
import torch
import torch._dynamo
from torch import nn

from ttd.config import Config
from ttd.engine import state_files, writing
from ttd.engine.accelerator import make_accelerator
from ttd.engine.loop import TrainConfig, train
from ttd.engine.schedules import OptimConfig
from ttd.seeding import randn

STEPS, EVERY = 90, 6
PHASES = (
    "snapshot taken",
    "half of the weights written",
    "weights written, not synced",
    "not renamed",
    "renamed, not verified",
    "older states not removed",
    "half of an older state removed",
)
DONE = "done"


class Experiment(Config):
    output_dir: Path
    train: TrainConfig = TrainConfig(max_steps=STEPS, log_every=1, checkpoint_every=EVERY)
    optim: OptimConfig = OptimConfig(lr=1e-2, warmup_steps=2)


class Objective(nn.Module):
    """Dropout, running statistics and moments: everything that a resumed run could get wrong."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Linear(64, 2))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": (self.body(batch["eeg"]) - batch["eeg"][:, :2]).square().mean()}


class Positions:
    """Eight samples per batch, each drawn by its position alone."""

    def batches(self, samples_seen: int) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            position = torch.arange(samples_seen, samples_seen + 8)
            yield {"position": position, "eeg": randn(0, "kill", position, (6,))}
            samples_seen += 8


class Announcer:
    """Tells through the pipe what the writer is doing, and stands still at the ``nth`` time of the phase aimed at."""

    def __init__(self, pipe: int, aim: tuple[str, int] | None):
        self.pipe, self.aim, self.seen = pipe, aim, Counter[str]()
        write_state, save_file, fsync = state_files.write_state, state_files.save_file, state_files._fsync
        rmtree = shutil.rmtree

        def announced_write(folder, snapshot):
            self.step, self.first_fsync = int(folder.name.removeprefix("step-")), True
            self(PHASES[0])
            write_state(folder, snapshot)
            self(DONE)

        def announced_save_file(tensors, path):
            save_file(tensors, path)
            if path.name.startswith("weights"):
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) // 2])
                self(PHASES[1])
                path.write_bytes(whole)

        def announced_fsync(path):
            if self.first_fsync:
                self.first_fsync = False
                self(PHASES[2])
            fsync(path)

        def announced_rmtree(path, **how):
            if path.name.endswith(".removed") and path.exists():
                for file in sorted(path.iterdir())[:1]:
                    file.unlink()
                self(PHASES[6])
            rmtree(path, **how)

        writing.write_state = announced_write  # type: ignore[assignment]
        state_files.save_file, state_files._fsync = announced_save_file, announced_fsync
        for name, phase in (("_publish", PHASES[3]), ("damage", PHASES[4]), ("_remove_others", PHASES[5])):
            self.before(name, phase)
        shutil.rmtree = announced_rmtree  # type: ignore[assignment]

    def before(self, name: str, phase: str) -> None:
        real = getattr(state_files, name)

        def announced(*args, **kwargs):
            self(phase)
            return real(*args, **kwargs)

        setattr(state_files, name, announced)

    def __call__(self, phase: str) -> None:
        self.seen[phase] += 1
        os.write(self.pipe, f"{self.step} {phase}\n".encode())
        if self.aim == (phase, self.seen[phase]):
            time.sleep(60)  # training goes on; the killer comes


def victim(folder: Path, pipe: int, aim: tuple[str, int] | None) -> None:
    """Start or resume the run; never returns."""
    status = 1
    try:
        output = os.open(folder.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        Announcer(pipe, aim)
        experiment = Experiment(output_dir=folder)
        accelerator = make_accelerator(global_batch_size=8)
        about = {"resolved": experiment, "seed": 0, "fingerprint": "kill"}
        train(accelerator, Objective(), experiment.optim, Positions(), experiment.train, folder, **about)
        status = 0
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        os._exit(status)
