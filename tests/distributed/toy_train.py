"""A small module trained by the engine on keyed samples, for tests that start several processes.

It notes which sample positions each rank saw and which error it met, and can be asked to send itself a signal, to let no
file of rank 0 grow, as on a full disk, or to make the loss or a gradient of one rank infinite.
"""

import json
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ttd.config import Config, UserError, run
from ttd.engine.accelerator import EngineConfig, asked_for_deepspeed, check_launch, make_accelerator
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.loop import TrainConfig, train
from ttd.engine.schedules import OptimConfig
from ttd.seeding import randn


class ToyConfig(Config):
    output_dir: Path
    seed: int = 0
    global_batch_size: int = 8
    micro_batch_size: int | None = None
    stop_after: int | None = None
    """Rank 1 (or the only one) sends itself SIGUSR1 after this many forward passes."""
    full_after: int | None = None
    """No file of rank 0 grows beyond 3 kB after this many forward passes."""
    infinite: tuple[Literal["loss", "gradient"], int] | None = None
    """What is infinite on rank 1 alone, and in which forward pass."""
    lost: tuple[Literal["killed", "stopped", "deadlocked", "raised"], int] | None = None
    """What happens to rank 1 in the middle of a step, and in which forward pass."""
    train: TrainConfig = TrainConfig(max_steps=8, log_every=1, checkpoint_every=4)
    optim: OptimConfig = OptimConfig(lr=1e-2, warmup_steps=3)
    engine: EngineConfig = EngineConfig(compare_ranks_every=2)


class ToyObjective(nn.Module):
    """A frozen layer, two trained ones, and a running mean that training changes without a gradient."""

    running: torch.Tensor

    def __init__(self, config: ToyConfig):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.frozen = nn.Linear(16, 16).requires_grad_(False)
            self.body = nn.Sequential(nn.Linear(16, 33), nn.GELU(), nn.Linear(33, 4))
        self.register_buffer("running", torch.zeros(4))
        self.stop_after, self.full_after, self.calls = config.stop_after, config.full_after, 0
        self.infinite, self.spoils = config.infinite or ("nothing", 0), os.environ.get("RANK") == "1"
        self.lost = config.lost or ("nothing", 0)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.stop_after and os.environ.get("RANK", "1") == "1":
            os.kill(os.getpid(), signal.SIGUSR1)
        if self.calls == self.full_after and os.environ.get("RANK", "0") == "0":
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if self.spoils and self.calls == self.lost[1]:
            lose(self.lost[0])
        x = self.body(self.frozen(batch["eeg"]))
        if self.spoils and self.infinite == ("gradient", self.calls):
            x.register_hook(lambda gradient: gradient * torch.inf)
        loss = (x - batch["eeg"][:, :4] * 2).square().mean()
        if self.spoils and self.infinite == ("loss", self.calls):
            loss = loss * torch.inf
        with torch.no_grad():
            self.running.lerp_(x.mean(0), 0.1)
        return {"loss": loss, "double": 2 * loss.detach()}


def lose(how: str) -> None:
    print(f"lost at {time.time()}", flush=True)
    if how == "raised":
        raise RuntimeError("something in this rank alone")
    if how == "deadlocked":
        threading.Event().wait()
    os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how])


class ToyStream:
    """The order contract of ``ttd.data``: consecutive global batches, a rank takes its stride."""

    def __init__(self, config: ToyConfig, rank: int, world: int, micro: int, log: Path):
        self.config, self.rank, self.world, self.micro, self.log = config, rank, world, micro, log

    def batches(self, samples_seen):
        n = self.config.global_batch_size
        while True:
            mine = torch.arange(samples_seen, samples_seen + n)[self.rank :: self.world]
            for position in mine.split(self.micro):
                with self.log.open("a") as file:
                    file.write(json.dumps(position.tolist()) + "\n")
                yield {"position": position, "eeg": randn(self.config.seed, "toy", position, (16,))}
            samples_seen += n


def count_sent(step_of: ToyObjective) -> list[list[int]]:
    """From now on note (forward passes so far, numbers) of every tensor of more than 100 that DeepSpeed sums over ranks."""
    import deepspeed

    sent = []
    for name in ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter_fn"):
        original = getattr(deepspeed.comm, name)

        def counted(*arguments, original=original, **more):
            tensors = [x for x in (*arguments, *more.values()) if isinstance(x, torch.Tensor)]
            numbers = max((x.numel() for x in tensors), default=0)
            if numbers > 100:
                sent.append([step_of.calls, numbers])
            return original(*arguments, **more)

        setattr(deepspeed.comm, name, counted)
    return sent


def main(config: ToyConfig) -> None:
    accelerator = make_accelerator(
        config.engine, global_batch_size=config.global_batch_size, micro_batch_size=config.micro_batch_size
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    config.output_dir.mkdir(parents=True, exist_ok=True)
    stream = ToyStream(config, rank, world, accelerator.ttd.micro, config.output_dir / f"seen-{rank}.jsonl")
    objective = ToyObjective(config)
    sent = count_sent(objective) if asked_for_deepspeed() else []
    try:
        result = train(
            accelerator,
            objective,
            config.optim,
            stream,
            config.train,
            config.output_dir,
            resolved=config.model_copy(update={"stop_after": None, "full_after": None, "infinite": None, "lost": None}),
            seed=config.seed,
            fingerprint="toy",
        )
    except UserError as error:
        (config.output_dir / f"error-{rank}.txt").write_text(str(error))
        raise
    (config.output_dir / f"sent-{rank}.json").write_text(json.dumps(sent))
    load_weights(step_folder(config.output_dir, result.best_step), objective)
    if accelerator.is_main_process:
        kind = accelerator.distributed_type.value
        print(json.dumps({"world": world, "kind": kind, "step": result.step, "batches": str(accelerator.ttd)}))


def check(config: ToyConfig):
    from ttd.config import Plan

    return Plan(problems=check_launch(config.engine, config.global_batch_size, config.micro_batch_size))


if __name__ == "__main__":
    run(main, ToyConfig, doc=__doc__, check=check)
