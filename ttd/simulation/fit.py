"""A small single-process training loop for the tiny base models: a fixed number of steps, exact resume, no pickle.

The engine's loop is for training on shards across ranks; here everything is in memory, and one file holds the whole state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ttd.config import UserError
from ttd.experiments.train_base import FitConfig

M = TypeVar("M", bound=nn.Module)


def lr_at(config: FitConfig, step: int) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def _save(path: Path, step: int, identity: str, tensors: dict[str, Tensor]) -> None:
    aside = path.with_suffix(".part")
    facts = {"step": str(step), "experiment": identity}
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(aside), metadata=facts)
    aside.replace(path)


def fit(
    name: str,
    module: M,
    loss_at: Callable[[int], tuple[Tensor, dict[str, float]]],
    config: FitConfig,
    folder: Path,
    *,
    log: Callable[[dict], None],
    save_every: int = 200,
    identity: str = "",
) -> M:
    """Minimise ``loss_at(step)`` over the parameters of ``module`` that require gradients; resume from ``folder``.

    ``loss_at`` draws its batch from the step alone, so a resumed run sees the same batches. Returns the module with its
    averaged (or last) weights loaded.

    ``identity`` is a fingerprint of what decides the result, where the caller has one.

    Raises:
        UserError: ``folder`` holds a state of another identity.
    """
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}
    decayed = [p for p in params.values() if p.ndim > 1]
    plain = [p for p in params.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99))
    average = {n: p.detach().clone() for n, p in module.state_dict().items()} if config.ema else {}
    state_file, start = folder / f"{name}.safetensors", 0
    folder.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        with safe_open(str(state_file), "pt") as f:
            if f.metadata().get("experiment", "") != identity:
                remedy = "give another output_dir or remove the file"
                raise UserError(f"{state_file}: belongs to another experiment, or to an older version's; {remedy}")
            start, stored = int(f.metadata()["step"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        module.load_state_dict({n: stored[f"model.{n}"] for n in module.state_dict()})
        for n, p in params.items():
            if f"exp_avg.{n}" not in stored:
                continue
            moments = {m: stored[f"{m}.{n}"].to(p.device) for m in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(float(start)), **moments}
        average = {n: stored[f"ema.{n}"] for n in average}
    bar = tqdm(total=config.steps, initial=start, desc=name, mininterval=10, dynamic_ncols=True)
    meter: dict[str, float] = {}
    began, module = time.monotonic(), module.train()
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(config, step)
        loss, parts = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(list(params.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema, (step + 1) / (step + 10))
        for n, v in module.state_dict().items() if average else ():
            average[n].lerp_(v.to(average[n]), 1 - decay) if v.is_floating_point() else average[n].copy_(v)
        for k, v in {"loss": loss.item(), **parts}.items():
            meter[k] = meter.get(k, v) * 0.98 + 0.02 * v
        bar.update()
        if (step + 1) % save_every == 0 or step + 1 == config.steps:
            tensors = {f"model.{n}": v for n, v in module.state_dict().items()}
            tensors |= {f"ema.{n}": v for n, v in average.items()}
            for n, p in params.items():
                if p not in optimizer.state:  # the last layer of a text encoder whose hidden_states[-2] is used
                    continue
                tensors |= {f"{m}.{n}": optimizer.state[p][m] for m in ("exp_avg", "exp_avg_sq")}
            _save(state_file, step + 1, identity, {k: v.detach().clone() for k, v in tensors.items()})
            log({"model": name, "step": step + 1, "seconds": round(time.monotonic() - began, 1), **meter})
            bar.set_postfix(loss=f"{meter['loss']:.4f}")
    bar.close()
    if average:
        module.load_state_dict(average)
    return module.eval()
