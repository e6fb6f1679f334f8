"""The accelerator every entry starts: processes, precision, accumulation, and the refusals that keep a launch honest.

``launch/*.yaml`` owns the machine (processes, ZeRO stage, precision), the experiment owns ``global_batch_size``;
accumulation = global / (micro × world) is derived here and written into DeepSpeed's configuration with the clipping.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from pydantic import Field, field_validator
from torch import Tensor

from ttd.config import Config, UserError
from ttd.engine.watchdog import PATIENCE


class EngineConfig(Config):
    mixed_precision: Literal["no", "bf16"] | None = None
    """Arithmetic of the forward pass; weights stay float32. None: what launch/*.yaml says."""
    gradient_clipping: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the gradient of all trainable weights."""
    compare_ranks_every: int = Field(default=100, ge=1)
    """Steps between two comparisons of the weights of all ranks, bit by bit."""
    watchdog_s: float = Field(default=120.0, gt=0)
    """Seconds without a finished step after which a rank writes its stacks into ``stacks/`` and ends, and all ranks with it.
    The first step, validation and saving have ten times as long."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads an unquoted no as false


@dataclass(frozen=True)
class Batches:
    """How one global batch is cut: ``micro`` samples on each of ``world`` ranks, ``accumulation`` times."""

    world: int
    micro: int
    accumulation: int

    @property
    def global_size(self) -> int:
        return self.world * self.micro * self.accumulation

    def __str__(self) -> str:
        product = f"{self.micro} micro × {self.world} ranks × {self.accumulation} accumulation"
        return f"global batch {self.global_size} = {product}"


class TTDAccelerator(Accelerator):
    """An ``Accelerator`` that knows how its batches are cut and how gradients are clipped."""

    ttd: Batches
    engine: EngineConfig
    _collects: bool = False

    @contextmanager
    def one_reduction(self) -> Iterator[None]:
        """All backward passes of one update: whatever the engine, gradients travel between ranks once, at its end.

        DDP and ZeRO-1 do so by themselves; ZeRO-2 and ZeRO-3 would send them after every micro-batch. The price is one whole
        gradient of the trainable weights on every rank (SDXL's LoRA of rank 16: 93 MB; with bridge and CLIP head 611 MB).
        """
        if self.distributed_type != DistributedType.DEEPSPEED or self.ttd.accumulation == 1:
            yield
            return
        engine = self.deepspeed_engine_wrapped.engine
        if engine.zero_optimization_stage() < 2:
            yield
            return
        self._collects = True
        try:
            with engine.coalesce_grad_reduction():
                yield
        finally:
            self._collects = False
        engine.set_gradient_accumulation_boundary(True)
        engine.step()

    def backward(self, loss: Tensor, **more: Any) -> None:
        """Gradients of one micro-batch; see ``one_reduction``."""
        if not self._collects:
            super().backward(loss, **more)
            return
        engine = self.deepspeed_engine_wrapped.engine
        engine.set_gradient_accumulation_boundary(False)
        engine.backward(loss, **more)


def asked_for_deepspeed() -> bool:
    """Whether the launcher asked for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def deepspeed_json() -> dict:
    """The DeepSpeed configuration the launcher points at; without a file, the stage it named."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return {"zero_optimization": {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}}
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: DeepSpeed configuration cannot be read: {error}") from error


def deepspeed_stage() -> int:
    """The ZeRO stage of DeepSpeed's configuration."""
    return int(deepspeed_json().get("zero_optimization", {}).get("stage", 0))


def world_size() -> int:
    """Processes of this launch, known before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def memory_of_rank() -> int:
    """Bytes that one rank of this launch may fill: its GPU, or its part of the node's memory."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0"))).total_memory
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks


def fixed_micro_batch(micro_batch_size: int | None) -> int | None:
    """Samples per rank and forward pass as asked, else as fixed in DeepSpeed's file; None where neither says."""
    if micro_batch_size is None and asked_for_deepspeed():
        fixed = deepspeed_json().get("train_micro_batch_size_per_gpu", "auto")
        micro_batch_size = None if fixed == "auto" else int(fixed)
    return micro_batch_size


def micro_batch(global_batch_size: int, micro_batch_size: int | None, world: int) -> int:
    """Samples per rank and forward pass: as asked, else as fixed in DeepSpeed's file, else a rank's whole share."""
    return fixed_micro_batch(micro_batch_size) or max(1, global_batch_size // world)


def check_launch(
    config: EngineConfig, global_batch_size: int, micro_batch_size: int | None = None, *, averages: bool = False
) -> list[str]:
    """Everything that contradicts this launch, in sentences; reads the environment, starts no process group.

    ``averages`` says that an average of the weights is kept (``optim.ema_decay``).
    """
    problems = []
    world = world_size()
    meant = os.environ.get("TTD_WORLD")
    if meant is not None and int(meant) != world:
        problems.append(
            f"the job has {meant} processes, but the launcher started a world of {world}: each node would train alone; with "
            "DeepSpeed start with --deepspeed_multinode_launcher standard"
        )
    try:
        micro = micro_batch(global_batch_size, micro_batch_size, world)
    except UserError as error:
        return [str(error)]
    if global_batch_size % (micro * world):
        problems.append(
            f"global_batch_size={global_batch_size} is not a multiple of {micro} (micro batch) × {world} (ranks); "
            f"choose a multiple of {micro * world}, or another micro_batch_size or number of processes"
        )
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        problems.append(f"mixed_precision={precision} of the launch file is not supported; use 'bf16' or 'no'")
    elsewhere = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    derived = global_batch_size // (micro * world)
    if elsewhere not in ("1", "auto", str(derived)):
        problems.append(
            f"gradient_accumulation_steps={elsewhere} of the launch file contradicts "
            f"global_batch_size={global_batch_size}, which gives {derived}; remove it there: accumulation is derived"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        problems.append("FSDP is not supported; use launch/ddp.yaml, launch/zero2.yaml or launch/zero3.yaml")
    if averages and asked_for_deepspeed() and deepspeed_stage() == 3:
        problems.append("optim.ema_decay: under ZeRO-3 no rank has whole weights to average; use launch/zero2.yaml")
    return problems


def _no_compiled_shm_op() -> None:
    """On a CPU DeepSpeed would compile ``deepspeed_shm_comm`` first (minutes, needs g++); gloo does without it."""
    import deepspeed.ops

    if "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__:  # a private name: without it the op is built, slowly
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _deepspeed_plugin(config: EngineConfig, batches: Batches, precision: str) -> DeepSpeedPlugin:
    content = deepspeed_json() | {
        "train_batch_size": batches.global_size,
        "train_micro_batch_size_per_gpu": batches.micro,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_clipping": config.gradient_clipping,
        "zero_allow_untested_optimizer": True,  # torch's AdamW: nothing to compile, the same bits as under DDP
    }
    # DeepSpeed's own bf16 casts the module but not its inputs; its autocast keeps float32 weights as accelerate's does.
    content["torch_autocast"] = {"enabled": precision == "bf16", "dtype": "bfloat16"}
    return DeepSpeedPlugin(hf_ds_config=content)


def make_accelerator(
    config: EngineConfig | None = None, *, global_batch_size: int | None = None, micro_batch_size: int | None = None,
    timeout: timedelta | None = None,
) -> TTDAccelerator:  # fmt: skip
    """Start (or join) the processes of this launch.

    ``global_batch_size`` is the experiment's, in samples per update; work by item (generation, lifting) gives none.
    ``micro_batch_size`` samples go through one rank at once; without it, the share of a rank. ``timeout`` is how long ranks
    wait for each other at most; None: a little longer than the watchdog of training, which knows more to say.

    Raises:
        UserError: the launch contradicts the experiment (see ``check_launch``), or processes did not find each other.
    """
    config = config or EngineConfig()
    timeout = timeout or timedelta(seconds=PATIENCE * config.watchdog_s + 60)
    world = world_size()
    global_batch_size = global_batch_size if global_batch_size is not None else world
    problems = check_launch(config, global_batch_size, micro_batch_size)
    if problems:
        raise UserError("\n".join(problems))
    micro = micro_batch(global_batch_size, micro_batch_size, world)
    batches = Batches(world, micro, global_batch_size // (micro * world))
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")

    # find_unused_parameters: else DDP rebuilds its buckets after the first step, which changes the order of summation
    # from then on, and a resumed run would differ from an uninterrupted one in the last bits (seen with four ranks).
    reducing = DistributedDataParallelKwargs(find_unused_parameters=True)
    backend: dict[str, str] = {}
    plugin, cpu = None, not torch.cuda.is_available()
    if asked_for_deepspeed():
        warnings.filterwarnings(
            "ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning
        )  # its own
        plugin = _deepspeed_plugin(config, batches, precision)
        precision = "no"  # DeepSpeed's autocast does it
        if cpu:
            # Without a named backend accelerate believes in one process, and ranks would train on the same samples.
            _no_compiled_shm_op()
            backend, cpu = {"backend": "gloo"}, False
    accelerator = TTDAccelerator(
        cpu=cpu,
        mixed_precision=precision,
        deepspeed_plugin=plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=batches.accumulation, adjust_scheduler=False, sync_with_dataloader=False
        ),
        kwargs_handlers=[reducing, InitProcessGroupKwargs(**backend, timeout=timeout)],
    )
    accelerator.ttd, accelerator.engine = batches, config
    if accelerator.num_processes != world or (world > 1 and accelerator.distributed_type == DistributedType.NO):
        raise UserError(
            f"the launcher started {world} processes, but accelerate sees {accelerator.num_processes} "
            f"({accelerator.distributed_type}); start with one of launch/*.yaml"
        )
    return accelerator
