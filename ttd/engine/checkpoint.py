"""Checkpoints that belong to no engine: the same state under one process, DDP and DeepSpeed ZeRO.

Whole float32 tensors by parameter name are gathered on every rank and put back on every rank; what a state consists of
on disk is said in ``state_files``, when it is written in ``writing``.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ttd.config import UserError
from ttd.engine.averaging import WeightAverage
from ttd.engine.state_files import Snapshot, TrainState, damage, step_folder, step_folders
from ttd.engine.writing import StateWriter

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")


# What of a module is saved


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that training may change (running statistics of a batch norm), by name."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name not in parameters}


def share_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Give every rank the buffers of rank 0; DDP does so at each forward pass, DeepSpeed never."""
    if accelerator.num_processes > 1:
        for value in persistent_buffers(module).values():
            torch.distributed.broadcast(value, 0)


# Full tensors, whatever the engine holds


def _zero_optimizer(accelerator: Accelerator, optimizer: Any) -> Any | None:
    return optimizer.optimizer if accelerator.distributed_type == DistributedType.DEEPSPEED else None


def _link_moments(zero: Any) -> None:
    """Tell ZeRO-1/2 where each parameter's moments lie; by itself it looks once, before the second group has any."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _collect(
    accelerator: Accelerator, module: nn.Module, optimizer: Any, average: WeightAverage | None, *, into: Snapshot
) -> Snapshot:
    """Weights, moments and averages as whole float32 tensors; every rank must call it, only rank 0 keeps them.

    The copy is complete on return, also from a GPU: the next update may change the weights.
    """
    snapshot = Snapshot()
    zero = _zero_optimizer(accelerator, optimizer)

    def put(part: str, name: str, value: Tensor) -> None:
        if accelerator.is_main_process:
            memory = getattr(into, part).get(name)
            copy = value.detach().to("cpu", copy=True).contiguous() if memory is None else memory.copy_(value.detach())
            getattr(snapshot, part)[name] = copy

    if zero is not None:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        steps = [s["step"] for s in zero.optimizer.state.values() if "step" in s]
        _link_moments(zero)
        for name, parameter in trainable(module).items():
            put("weights", name, safe_get_full_fp32_param(parameter))
            for key in MOMENTS if steps else ():
                put("moments", f"{key}.{name}", safe_get_full_optimizer_state(parameter, key))
            if steps:
                put("moments", f"step.{name}", torch.as_tensor(max(float(s) for s in steps)))
    else:
        for name, parameter in trainable(module).items():
            put("weights", name, parameter)
            for key, value in optimizer.optimizer.state.get(parameter, {}).items():
                put("moments", f"{key}.{name}", torch.as_tensor(value))
    for name, value in average.values.items() if average else ():
        put("moments", f"ema.{name}", value)
    share_buffers(accelerator, module)
    for name, value in persistent_buffers(module).items():
        put("weights", name, value)
    return snapshot


def _share_of_rank(accelerator: Accelerator, parameter: Any, value: Tensor) -> Tensor:
    """This rank's piece of a tensor under ZeRO-3: equal pieces of the flattened tensor, the last one padded."""
    n = parameter.ds_tensor.ds_numel
    padded = torch.zeros(n * accelerator.num_processes, dtype=value.dtype, device=value.device)
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, n * accelerator.process_index, n)


def whole_again(accelerator: Accelerator, module: nn.Module) -> None:
    """After training under ZeRO-3, give every rank the whole module back, free of DeepSpeed. Every rank must call it."""
    parameters = [p for p in module.parameters() if hasattr(p, "ds_id")]
    for parameter in parameters:
        parameter.all_gather()  # type: ignore[attr-defined]
    if parameters:
        accelerator.deepspeed_engine_wrapped.engine.optimizer.destroy()  # takes its hooks off the module


def _restore_moments(accelerator: Accelerator, module: nn.Module, optimizer: Any, moments: dict[str, Tensor]) -> None:
    zero = _zero_optimizer(accelerator, optimizer)
    if zero is None:
        for name, parameter in trainable(module).items():
            if f"step.{name}" in moments:
                optimizer.optimizer.state[parameter] = {
                    key: moments[f"{key}.{name}"].to(parameter.device, copy=True) for key in ("step", *MOMENTS)
                }
        return
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    # ZeRO flattens parameters; its inner AdamW has one state per flat group, made at the first update. Make it here.
    step = max((float(v) for k, v in moments.items() if k.startswith("step.")), default=0.0)
    if step == 0:
        return
    flats = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    for flat in flats:
        zero.optimizer.state[flat] = {
            "step": torch.tensor(step, dtype=torch.float32, device=flat.device),
            **{key: torch.zeros_like(flat) for key in MOMENTS},
        }
    _link_moments(zero)
    for name, parameter in trainable(module).items():
        for key in MOMENTS:
            value = moments[f"{key}.{name}"].to(accelerator.device)
            if hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, _share_of_rank(accelerator, parameter, value), key)
            else:
                safe_set_full_optimizer_state(parameter, value, key)


# Saving


def save_checkpoint(
    output_dir: Path,
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: Any,
    state: TrainState,
    writer: StateWriter,
    *,
    fingerprint: str,
    average: WeightAverage | None = None,
) -> None:
    """Copy the state into memory and let ``writer`` make ``step-XXXXXXX/`` of it. Every rank must call it.

    ``module`` is the unwrapped one, ``optimizer`` the prepared one, ``fingerprint`` that of the data stream.

    Raises:
        UserError: on every rank, when the state before this one could not be written.
    """
    writer.wait()  # its memory is used again
    facts = {**asdict(state), "fingerprint": fingerprint, "buffers": [*persistent_buffers(module)]}
    writer.snapshot = _collect(accelerator, module, optimizer, average, into=writer.snapshot)
    writer.snapshot.facts = facts
    writer.start(step_folder(output_dir, state.step))


# Loading


def newest_checkpoint(output_dir: Path, accelerator: Accelerator | None = None) -> Path | None:
    """The newest state that verifies; damaged ones are passed over with a message. All ranks get rank 0's answer.

    Raises:
        UserError: there are states, but none is intact.
    """
    found = -1
    if accelerator is None or accelerator.is_main_process:
        folders = step_folders(output_dir)
        for folder in reversed(folders):
            problem = damage(folder)
            if problem is None:
                found = int(folder.name.removeprefix("step-"))
                break
            log.warning("%s: damaged: %s; going back to the state before it", folder, problem)
        else:
            found = -2 if folders else -1
    if accelerator is not None and accelerator.num_processes > 1:
        found = int(broadcast(torch.tensor([found], device=accelerator.device)).item())
    if found == -2:
        raise UserError(f"{output_dir}: no state is intact; remove the step-* folders to start over")
    return None if found < 0 else step_folder(output_dir, found)


def _fitting_weights(folder: Path, module: nn.Module) -> dict[str, Tensor]:
    """Weights of a verified state, or an error that names what does not fit."""
    problem = damage(folder)
    if problem:
        raise UserError(f"{folder}: {problem}")
    weights = load_file(folder / "weights.safetensors")
    wanted = {**trainable(module), **persistent_buffers(module)}
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in wanted.items()}
    wrong = [f"{n} is missing" for n in wanted if n not in weights]
    wrong += [f"{n} is not in the model" for n in weights if n not in wanted]
    wrong += [
        f"{n} is {tuple(weights[n].shape)} but the model wants {shapes[n]}"
        for n in wanted
        if n in weights and tuple(weights[n].shape) != shapes[n]
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise UserError(f"{folder}: weights do not fit the model: {'; '.join(wrong[:8])}{more}")
    return weights


@torch.no_grad()
def load_weights(folder: Path, module: nn.Module) -> None:
    """Put the weights of one state, averaged ones where it has them, into ``module``; training cannot go on from there.

    Raises:
        UserError: the state is damaged or does not fit, naming the tensors.
    """
    weights = _fitting_weights(folder, module)
    with safe_open(folder / "moments.safetensors", framework="pt") as moments:  # the averages alone are read
        for name in {f"ema.{name}" for name in weights} & set(moments.keys()):
            weights[name.removeprefix("ema.")] = moments.get_tensor(name)
    for name, value in {**trainable(module), **persistent_buffers(module)}.items():
        value.data.copy_(weights[name])


@torch.no_grad()
def load_checkpoint(
    folder: Path, accelerator: Accelerator, module: nn.Module, optimizer: Any, average: WeightAverage | None = None
) -> None:
    """Put weights, buffers, moments and averages of one state back. Every rank must call it, before the first update.

    Raises:
        UserError: the state is damaged or does not fit, naming the tensors.
    """
    weights = _fitting_weights(folder, module)
    for name, value in {**trainable(module), **persistent_buffers(module)}.items():
        saved = weights[name].to(accelerator.device)
        if hasattr(value, "ds_id"):  # ZeRO-3: this rank's piece of the weight, and of the copy that updates are made on
            from deepspeed.utils import safe_set_local_fp32_param

            piece = _share_of_rank(accelerator, value, saved)
            safe_set_local_fp32_param(value, piece)
            value.ds_tensor.data.copy_(piece)  # type: ignore[attr-defined]
            continue
        if hasattr(value, "_hp_mapping"):  # ZeRO-1/2: the copy that updates are made on
            from deepspeed.utils import safe_set_full_fp32_param

            safe_set_full_fp32_param(value, saved)
        value.data.copy_(saved)
    moments = load_file(folder / "moments.safetensors")
    _restore_moments(accelerator, module, optimizer, moments)
    for name, value in average.values.items() if average else ():
        value.copy_(moments[f"ema.{name}"])
