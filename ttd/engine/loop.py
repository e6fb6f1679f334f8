"""The one training loop: the same for every stage and every engine.

One module is prepared; its ``forward(batch)`` returns losses by name; the learning rate is a function of the step; the
data come from a stream whose whole state is ``samples_seen``. Running the same command again resumes, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate.utils import broadcast, send_to_device
from pydantic import Field
from torch import Tensor, nn

from ttd.config import Config, StoppedError, UserError
from ttd.engine.accelerator import TTDAccelerator
from ttd.engine.averaging import WeightAverage
from ttd.engine.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    share_buffers,
    trainable,
    whole_again,
)
from ttd.engine.comparing import compare_data, compare_ranks
from ttd.engine.run_folder import open_run_folder
from ttd.engine.schedules import OptimConfig, lr_at, make_optimizer
from ttd.engine.state_files import TrainState, read_state
from ttd.engine.stopping import Agreement, StopRequest
from ttd.engine.timing import Timing
from ttd.engine.tracking import Meter, Tracker, TrackingConfig, progress, talk
from ttd.engine.watchdog import Watchdog
from ttd.engine.writing import StateWriter
from ttd.seeding import key

log = logging.getLogger(__name__)
Validate = Callable[[nn.Module], dict[str, float]]
Draw = Callable[[Any], Mapping[str, np.ndarray]]


class TrainConfig(Config):
    max_steps: int = Field(default=1000, ge=1)
    """Updates of the weights in all; a finished run goes on when this is raised."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two states; the last two and the best are kept."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between two looks at the validation part; the last step is always looked at."""
    select: str | None = None
    """Validation metric by which the best state is chosen; None takes the last."""
    select_mode: Literal["max", "min"] = "max"
    """Whether a higher or a lower value of ``select`` is better."""
    tracking: TrackingConfig = TrackingConfig()


class Stream(Protocol):
    """What the loop needs of its data: an endless iterator of this rank's micro-batches, from any position. Each names its
    samples' global positions in ``"position"`` [B]."""

    def batches(self, samples_seen: int) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True)
class TrainResult:
    """Where training ended. ``metrics`` are those of ``best_step``, the state to export."""

    step: int
    samples_seen: int
    metrics: dict[str, float]
    best_step: int


def train(
    accelerator: TTDAccelerator,
    objective: nn.Module,
    optim: OptimConfig,
    stream: Stream,
    config: TrainConfig,
    output_dir: Path,
    *,
    resolved: Config,
    seed: int,
    fingerprint: str,
    validate: Validate | None = None,
    draw: Draw | None = None,
) -> TrainResult:
    """Train ``objective`` for ``config.max_steps`` updates; its ``forward(batch)`` returns losses by name.

    ``"loss"`` is the one that is optimised, the mean over the micro-batch; others are detached, for the log.
    ``resolved`` is the whole experiment, ``seed`` keys its dropout, ``fingerprint`` is the data stream's. ``validate`` gets
    the bare module in evaluation mode on every rank; rank 0's numbers count. ``draw`` gets it as well, after each validation,
    and gives pictures, uint8 [H, W, 3] by name, for the trackers. Afterwards load the chosen state with
    ``load_weights(step_folder(output_dir, result.best_step), objective)``.

    Raises:
        UserError: another experiment or other data in ``output_dir``, no intact state, a loss that is not finite, a state
            that cannot be written.
        StoppedError: a signal or the stop file, after saving.
    """
    talk()
    _check_selection(config, validate)
    facts: dict[str, Any] = {"world_size": accelerator.num_processes, "engine": accelerator.distributed_type.value}
    open_run_folder(output_dir, resolved, main=accelerator.is_main_process, **facts, batches=str(accelerator.ttd))
    compare_data(accelerator, fingerprint)
    objective, optimizer = accelerator.prepare(objective, make_optimizer(optim, objective))
    module = accelerator.unwrap_model(objective)
    average = WeightAverage(trainable(module), optim.ema_decay) if optim.ema_decay else None
    state = _resume(output_dir, accelerator, module, optimizer, average, fingerprint)
    weights = [*trainable(module).values()]
    log.info("%s; %d trainable weights", accelerator.ttd, sum(getattr(p, "ds_numel", p.numel()) for p in weights))

    meter = Meter()
    with (
        StopRequest() as stop,
        Tracker(output_dir, config.tracking, resolved) as tracker,
        StateWriter(accelerator) as writer,
        Watchdog(
            output_dir, accelerator.process_index, accelerator.num_processes, accelerator.engine.watchdog_s
        ) as watchdog,
    ):
        agreement = Agreement(accelerator, stop)
        tracker.log("resumed" if state.step else "started", step=state.step, **facts)
        timing = Timing()
        batches = timing.waiting(stream.batches(state.samples_seen))
        steps = range(state.step, config.max_steps)
        for _ in progress(steps, total=config.max_steps, initial=state.step, desc="train"):
            # Update weights.
            lr = lr_at(optim, state.step, config.max_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with accelerator.one_reduction():
                for batch in islice(batches, accelerator.ttd.accumulation):
                    # Dropout layers know no other source of randomness.
                    torch.manual_seed(key(seed, "dropout", int(batch["position"][0])))
                    with accelerator.accumulate(objective):
                        losses: dict[str, Tensor] = objective(
                            send_to_device(batch, accelerator.device, non_blocking=True)
                        )
                        accelerator.backward(losses["loss"])
                    meter.add(losses)  # stays on the device; read only when reported
                    agreement.note(losses["loss"], batch)
            # DeepSpeed has clipped and stepped already and returns the norm.
            grad_norm = accelerator.clip_grad_norm_(weights, accelerator.engine.gradient_clipping)
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            state.samples_seen += accelerator.ttd.global_size
            timing.step()
            if average:
                average.update(state.step)

            # Agree: stop? was everything finite?
            last = state.step == config.max_steps
            look = validate is not None and (last or state.step % config.validate_every == 0)
            save = last or state.step % config.checkpoint_every == 0
            report = last or state.step % config.log_every == 0
            stopping = agreement.decide(state.step, grad_norm, now=look or save or report)
            watchdog.step()
            if last or state.step == 1 or state.step % accelerator.engine.compare_ranks_every == 0:
                compare_ranks(accelerator, weights, state.step)

            # Report.
            if report:
                means, norm = meter.reduce(accelerator), None if grad_norm is None else float(grad_norm)
                pace = timing.reduce(accelerator)  # after the means, whose reading waits for the device
                rate = accelerator.ttd.global_size / max(pace["step_s"], 1e-9)
                numbers = {"lr": lr, "grad_norm": norm, "samples_per_second": round(rate, 2), **pace, **means}
                tracker.log("train", step=state.step, samples_seen=state.samples_seen, **numbers)
                tracker.log_node(step=state.step, **timing.own)

            # Validate and select.
            if look and validate is not None:
                with (
                    timing.apart(),
                    watchdog.patient(),
                    evaluating(module),
                    average.in_place() if average else nullcontext(),
                ):
                    share_buffers(accelerator, module)
                    state.metrics = validate(module)
                    pictures = draw(module) if draw else {}
                tracker.log("validation", step=state.step, samples_seen=state.samples_seen, **state.metrics)
                if pictures:
                    tracker.images("validation", state.step, pictures)
                save = _select(config, state, accelerator) or save

            # Checkpoint.
            if save or stopping:
                with timing.apart(), watchdog.patient():
                    save_checkpoint(
                        output_dir,
                        accelerator,
                        module,
                        optimizer,
                        state,
                        writer,
                        fingerprint=fingerprint,
                        average=average,
                    )
            if stopping and not last:  # a signal, agreed between ranks
                writer.wait()
                tracker.log("stopped", step=state.step)
                raise StoppedError(f"stopped at step {state.step} of {config.max_steps}; the same command resumes")

    accelerator.unwrap_model(objective, keep_fp32_wrapper=False)
    whole_again(accelerator, module)
    chosen = state.best_step if config.select and state.best_step is not None else state.step
    return TrainResult(state.step, state.samples_seen, state.best_metrics or state.metrics, chosen)


def _check_selection(config: TrainConfig, validate: Validate | None) -> None:
    if config.select and validate is None:
        raise UserError(
            f"train.select={config.select!r}: there is no validation part to select on; give one or drop it"
        )


def _resume(
    output_dir: Path,
    accelerator: TTDAccelerator,
    module: nn.Module,
    optimizer: Any,
    average: WeightAverage | None,
    fingerprint: str,
) -> TrainState:
    """The newest intact state, loaded; a fresh one where there is none."""
    folder = newest_checkpoint(output_dir, accelerator)
    if folder is None:
        return TrainState()
    state, data = read_state(folder)
    if data != fingerprint:
        raise UserError(
            f"{folder}: was trained on other data (fingerprint {data}, now {fingerprint}): index, quarantine list, "
            "seed or global batch changed; choose another output_dir"
        )
    load_checkpoint(folder, accelerator, module, optimizer, average)
    log.info("resumed from %s", folder)
    return state


def _select(config: TrainConfig, state: TrainState, accelerator: TTDAccelerator) -> bool:
    """Whether this state is the best so far by rank 0's metrics; remembers it if so."""
    if config.select is None:
        return False
    if config.select not in state.metrics:
        raise UserError(f"train.select={config.select!r}: validation gives {', '.join(sorted(state.metrics))}")
    value = state.metrics[config.select]
    if accelerator.num_processes > 1:
        value = broadcast(torch.tensor([value], dtype=torch.float64, device=accelerator.device)).item()
    sign = 1 if config.select_mode == "max" else -1
    if state.best_value is not None and sign * value <= sign * state.best_value:
        return False
    state.best_step, state.best_value, state.best_metrics = state.step, value, dict(state.metrics)
    return True


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is back in the mode it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def mean_losses(module: nn.Module, batches: Iterable[dict[str, Any]], device: torch.device) -> dict[str, float]:
    """Means over all samples of the losses that ``module(batch)`` returns, by name."""
    sums: dict[str, float] = {}
    n = 0
    for batch in batches:
        size = len(batch["position"])
        n += size
        for name, value in module(send_to_device(batch, device)).items():
            sums[name] = sums.get(name, 0.0) + float(value) * size
    return {name: value / n for name, value in sums.items()}
