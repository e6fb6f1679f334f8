"""A small module trained by the engine on real shards, for tests of what reading does to several ranks.

It notes which samples each rank saw. Storage can go wrong on rank 1: at its n-th read it raises, kills the process as the
system does when memory runs out, or stalls.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ttd.config import Config, Plan, run
from ttd.data.quarantine import guards_data
from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.engine.accelerator import EngineConfig, check_launch, make_accelerator
from ttd.engine.loop import TrainConfig, train
from ttd.engine.schedules import OptimConfig


class ShardedConfig(Config):
    output_dir: Path
    data: DataConfig
    folder_of_rank: bool = False
    """Every rank reads a folder of its own, ``<shards>-<rank>``, as nodes do that copied the shards to a local disk."""
    global_batch_size: int = 6
    fault: tuple[Literal["raise", "kill", "stall"], int] | None = None
    """What happens on rank 1, and at which of its reads."""
    train: TrainConfig = TrainConfig(max_steps=8, log_every=1, checkpoint_every=4)
    optim: OptimConfig = OptimConfig(lr=1e-2, warmup_steps=3)
    engine: EngineConfig = EngineConfig(compare_ranks_every=2)


class Objective(nn.Module):
    def __init__(self, n_values: int):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(n_values, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self.body(batch["eeg"].flatten(1)).square().mean()}


class Noted:
    """A stream that writes down the (position, sample) pairs it hands out."""

    def __init__(self, stream: Stream, log: Path):
        self.stream, self.log = stream, log

    def batches(self, samples_seen):
        for batch in self.stream.batches(samples_seen):
            with self.log.open("a") as file:
                pairs = zip(batch["position"].tolist(), batch["index"].tolist(), strict=True)
                file.write(json.dumps(list(pairs)) + "\n")
            yield batch


def go_wrong(kind: str, at: int, note: Path) -> None:
    """From now on let ``os.preadv`` of this process do so at its ``at``-th call, and note when that was."""
    real, calls = os.preadv, 0

    def preadv(*arguments):
        nonlocal calls
        calls += 1
        if calls == at:
            note.write_text(repr(time.time()))
            if kind == "raise":
                raise RuntimeError("a fault in the thread that reads")
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2.0)
        return real(*arguments)

    os.preadv = preadv


@guards_data
def main(config: ShardedConfig) -> None:
    accelerator = make_accelerator(config.engine, global_batch_size=config.global_batch_size)
    rank, world = accelerator.process_index, accelerator.num_processes
    config.output_dir.mkdir(parents=True, exist_ok=True)
    data = config.data
    if config.folder_of_rank:
        data = data.model_copy(update={"shards": Path(f"{data.shards}-{rank}")})
    reader = open_reader(data)
    stream = Stream(reader, data, seed=0, global_batch_size=config.global_batch_size, rank=rank, world_size=world)
    if config.fault and rank == 1:
        go_wrong(*config.fault, config.output_dir / "fault-at.txt")
    result = train(
        accelerator,
        Objective(reader.index.n_chans * reader.index.n_times),
        config.optim,
        Noted(stream, config.output_dir / f"seen-{rank}.jsonl"),
        config.train,
        config.output_dir,
        resolved=config,
        seed=0,
        fingerprint=stream.fingerprint,
    )
    if accelerator.is_main_process:
        print(json.dumps({"world": world, "step": result.step}))


def check(config: ShardedConfig) -> Plan:
    return Plan(problems=check_launch(config.engine, config.global_batch_size))


if __name__ == "__main__":
    run(main, ShardedConfig, doc=__doc__, check=check)
