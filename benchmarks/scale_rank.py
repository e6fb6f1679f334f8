"""The run whose traffic ``scale.py`` counts: one rank of a small training, told by how its gradients shall travel.

    accelerate launch --config_file launch/ddp.yaml benchmarks/scale_rank.py FOLDER engine|default ACCUMULATION

``engine`` is the loop as it is; ``default`` leaves DeepSpeed its own way, a reduction after every micro-batch. Counted are the
tensors that DDP's communication hook and DeepSpeed's collectives are given, and what passes through the loopback device of
this network namespace, between the same two steps.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ttd.config import Config
from ttd.engine.accelerator import TTDAccelerator, asked_for_deepspeed, make_accelerator, world_size
from ttd.engine.loop import TrainConfig, train
from ttd.engine.schedules import OptimConfig
from ttd.seeding import randn

WIDTH, WARM, COUNTED, MICRO = 512, 3, 8, 2
GRADIENTS = ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter_fn")
WEIGHTS = ("all_gather_into_tensor", "all_gather")


class Experiment(Config):
    output_dir: Path
    train: TrainConfig = TrainConfig(max_steps=WARM + COUNTED + 1, log_every=1000, checkpoint_every=1000)
    optim: OptimConfig = OptimConfig(lr=1e-3)


class Counter:
    """Bytes given to collectives, by what they hold; and the loopback's own counter where all ranks stand still."""

    def __init__(self) -> None:
        self.bytes = {"gradients": 0, "weights": 0}
        self.marks: list[dict[str, int]] = []

    def watch_ddp(self) -> None:
        original = nn.parallel.DistributedDataParallel.__init__

        def hook(state, bucket):  # what DDP does by itself, counted; torch refuses annotations that are text
            self.bytes["gradients"] += bucket.buffer().nbytes
            return allreduce_hook(state, bucket)

        def init(module: nn.parallel.DistributedDataParallel, *arguments: Any, **more: Any) -> None:
            original(module, *arguments, **more)
            module.register_comm_hook(None, hook)

        nn.parallel.DistributedDataParallel.__init__ = init  # type: ignore[method-assign]

    def watch_deepspeed(self) -> None:
        import deepspeed

        for what, names in (("gradients", GRADIENTS), ("weights", WEIGHTS)):
            for name in names:
                self._wrap(deepspeed.comm, name, what)

    def _wrap(self, module: Any, name: str, what: str) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            tensors = [x for x in (*arguments, *more.values()) if isinstance(x, torch.Tensor)]
            self.bytes[what] += max((x.nbytes for x in tensors), default=0)
            return original(*arguments, **more)

        setattr(module, name, counted)

    def mark(self) -> None:
        """Note all counters at a moment when nothing is on its way."""
        dist.barrier()
        self.marks.append({**self.bytes, "wire": loopback()})
        dist.barrier()


def loopback() -> int:
    """Bytes sent through ``lo`` of this network namespace, headers and acknowledgements among them."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


class Objective(nn.Module):
    """1,050,112 trained weights: 4.2 MB a gradient, far more than what else the ranks tell each other."""

    def __init__(self, counter: Counter, accumulation: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.counter, self.accumulation, self.calls = counter, accumulation, 0

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.calls in (WARM * self.accumulation, (WARM + COUNTED) * self.accumulation):
            self.counter.mark()
        self.calls += 1
        return {"loss": (self.body(batch["eeg"]) - batch["eeg"]).square().mean()}


class Positions:
    """Micro-batches of noise, keyed by position."""

    def __init__(self, rank: int, world: int, total: int):
        self.rank, self.world, self.total = rank, world, total

    def batches(self, samples_seen: int) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            for position in torch.arange(samples_seen, samples_seen + self.total)[self.rank :: self.world].split(MICRO):
                yield {"position": position, "eeg": randn(0, "scale", position, (WIDTH,))}
            samples_seen += self.total


def main(folder: Path, way: str, accumulation: int) -> None:
    counter = Counter()
    if asked_for_deepspeed():
        counter.watch_deepspeed()
    else:
        counter.watch_ddp()
    if way == "default":
        TTDAccelerator.one_reduction = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    total = MICRO * world_size() * accumulation
    accelerator = make_accelerator(global_batch_size=total, micro_batch_size=MICRO)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    experiment, objective = Experiment(output_dir=folder), Objective(counter, accumulation)
    stream = Positions(rank, ranks, accelerator.ttd.global_size)
    about = {"resolved": experiment, "seed": 0, "fingerprint": "scale"}
    train(accelerator, objective, experiment.optim, stream, experiment.train, folder, **about)
    first, second = counter.marks
    per_step = {name: (second[name] - first[name]) / COUNTED for name in first}
    n = sum(p.numel() for p in objective.parameters())
    (folder / f"rank-{rank}.json").write_text(json.dumps({"ranks": ranks, "trainable": n, **per_step}))
    accelerator.end_training()  # the process group goes before the interpreter does


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
