"""R12: 50,000 steps in one process, with everything that runs beside a step; nothing of it may grow.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/soak.py [steps, 50000]

The engine's loop on real indexed shards (mean of two repetitions, jitter, noise; a thread reads ahead), dropout, AdamW and an
average of the weights, a line of the log every 10 steps, validation over a whole part every 500 with the best state kept, a
state every 250: written, hashed, synced, verified, older ones removed. Looked at a hundred times: resident memory, open files,
threads, entries of /dev/shm, states on the disk. Memory after a tenth of the run is compared with that at its end, each the
median of five looks, because a write or a validation may be going on at any of them.

Exit status 1 when memory grew by more than 2 %, or anything else at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ttd.config import Config
from ttd.data.stream import DataConfig, Stream, evaluation_batches, open_reader
from ttd.data.writer import ShardWriter
from ttd.engine.accelerator import make_accelerator
from ttd.engine.loop import TrainConfig, mean_losses, train
from ttd.engine.schedules import OptimConfig
from ttd.engine.state_files import step_folders
from ttd.engine.tracking import read_log

B, C, T = 8, 8, 32
GOAL = 0.02
LOOKS, WARM = 100, 10
"""Looks in all, and the one after which memory may not grow any more."""


class Experiment(Config):
    output_dir: Path
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig = OptimConfig(lr=1e-3, ema_decay=0.99)


@dataclass
class Look:
    """What the process holds at a step."""

    step: int
    rss_mb: float
    files: int
    threads: int
    shm: int
    states: int
    states_mb: float


class Objective(nn.Module):
    """A small network that looks at its own process every so many steps of training."""

    def __init__(self, folder: Path, every: int):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(C * T, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, C))
        self.folder, self.every, self.steps = folder, every, 0
        self.looks: list[Look] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.training:
            self.steps += 1
            if self.steps % self.every == 0:
                self.looks.append(look(self.steps, self.folder))
        return {"loss": (self.body(batch["eeg"]) - batch["eeg"].mean(-1)).square().mean()}


def look(step: int, folder: Path) -> Look:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = [file for state in step_folders(folder) for file in state.iterdir()]
    return Look(
        step,
        rss_mb=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        files=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        shm=len(os.listdir("/dev/shm")),
        states=len(step_folders(folder)),
        states_mb=sum(file.stat().st_size for file in files if file.exists()) / 1e6,
    )


def write(root: Path, part: str, n: int) -> None:
    rng, names = np.random.default_rng(0), [f"E{i}" for i in range(C)]
    with ShardWriter(root / part, kind="paired", samples_per_shard=50) as writer:
        for i in range(n):
            meta = {"study": "Soak", "subject": "01", "cap": "cap", "image_id": f"{part}-{i}", "concept": f"{i % 7}"}
            meta["image_sha256"] = hashlib.sha256(f"{part} {i}".encode()).hexdigest()
            meta |= {"sessions": ["1"] * 2, "runs": [part] * 2, "onsets": [4.0 * i, 4.0 * i + 2]}
            writer.write(
                f"{part}-{i:05d}", {"eeg.npy": rng.standard_normal((2, C, T)).astype(np.float16), "meta.json": meta}
            )
        cap = {"caps": {"cap": names}, "statistics": {"cap": {"mean": [0.0] * C, "std": [1.0] * C}}}
        writer.finish({"study": "Soak", "part": part, "sfreq": 100.0, "tmin": 0.0, "n_times": T, **cap})


def soak(root: Path, steps: int) -> tuple[list[Look], Path]:
    """Train for ``steps`` in ``root``; what was seen, and the run's folder."""
    write(root, "train", 1003)
    write(root, "validation", 103)
    output = root / "run"
    intervals = {
        "log_every": 10,
        "checkpoint_every": 250,
        "validate_every": 500,
        "select": "loss",
        "select_mode": "min",
    }
    data = DataConfig(shards=root, repetitions="random_mean_k", time_jitter=2, noise=0.1)
    experiment = Experiment(output_dir=output, data=data, train=TrainConfig(max_steps=steps, **intervals))
    accelerator = make_accelerator(global_batch_size=B)
    stream = Stream(open_reader(data), data, seed=0, global_batch_size=B)
    held_out = open_reader(data, part="validation")
    objective = Objective(output, steps // LOOKS)

    def validate(module: nn.Module) -> dict[str, float]:
        return mean_losses(module, evaluation_batches(held_out, data, B), accelerator.device)

    about = {"resolved": experiment, "seed": 0, "fingerprint": stream.fingerprint, "validate": validate}
    train(accelerator, objective, experiment.optim, stream, experiment.train, output, **about)
    return objective.looks, output


def report(looks: list[Look]) -> bool:
    """Print a line per quantity; whether nothing grew."""
    early, late = looks[WARM : WARM + 5], looks[-5:]
    before, after = (statistics.median(seen.rss_mb for seen in some) for some in (early, late))
    growth, good = after / before - 1, True
    for seen in looks[:: len(looks) // 10]:
        print(f"  step {seen.step}: {seen}")
    print(
        f"R12 resident memory {before:.1f} MB after {early[0].step} steps, {after:.1f} MB at {late[-1].step}: "
        f"{100 * growth:+.2f} % (goal <= {100 * GOAL:g} %)"
    )
    good &= growth <= GOAL
    for name, what in (("files", "open files"), ("threads", "threads"), ("shm", "entries of /dev/shm")):
        first, last = (sorted(getattr(seen, name) for seen in some) for some in (early, late))
        print(f"R12 {what}: {first[0]} to {first[-1]} early, {last[0]} to {last[-1]} late (goal: the same)")
        good &= statistics.median(first) >= statistics.median(last)
    most, largest = max(seen.states for seen in looks), max(seen.states_mb for seen in looks)
    print(f"R12 states on the disk: at most {most}, {largest:.2f} MB (goal <= 4: two, the best, the one being written)")
    return good and most <= 4


def with_own_shm() -> None:
    """Go on in a mount namespace where /dev/shm holds what this process puts there, and nobody else."""
    if os.geteuid() == 0 and "SOAK_OWN_SHM" not in os.environ:
        command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$0" "$@"']
        own = [*command, sys.executable, *sys.argv]
        os.execvpe(own[0], own, os.environ | {"SOAK_OWN_SHM": "1"})  # noqa: S606  # noqa: S606  (fixed words and our own arguments)


def main(steps: int) -> None:
    with_own_shm()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="ttd-benchmark-") as folder:
        start = time.monotonic()
        looks, output = soak(Path(folder), steps)
        wall_s = time.monotonic() - start
        log = read_log(output)
        lines = {event: sum(record["event"] == event for record in log) for event in ("train", "validation")}
        size = (output / "log.jsonl").stat().st_size
    print(f"R12 {steps} steps in {wall_s:.0f} s, {lines['train']} lines of the log ({size / 1e6:.2f} MB), "
          f"{lines['validation']} validations, {steps // 250} states")  # fmt: skip
    sys.exit(not report(looks))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
