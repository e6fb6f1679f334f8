"""The optimizer, and the learning rate as a function of the step.

AdamW: Loshchilov & Hutter, 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101. A scheduler object would
have a state of its own (and step once per process when prepared by accelerate); a function of the step has none.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from ttd.config import Config


class OptimConfig(Config):
    lr: float = Field(default=3e-4, gt=0)
    """Highest learning rate, reached after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running first and second moment of the gradient."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay, on matrices and convolutions only (parameters with at least two axes)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly to ``lr``."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: half a cosine down to ``min_lr_ratio`` × ``lr`` at the last step, or a constant."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The cosine's floor as a fraction of ``lr``."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Validate and export an exponential moving average of the weights with this decay (0.999: over about 1,000 updates). Running
    statistics of batch norms are not averaged: take a decay that is short beside theirs."""


def lr_at(config: OptimConfig, step: int, max_steps: int) -> float:
    """Learning rate of update ``step`` (0-based) of ``max_steps``.

    Warm-up: lr (step+1) / warmup_steps. Then, with t from 0 to 1 over the remaining steps and r = ``min_lr_ratio``:
    lr (r + (1-r) (1 + cos πt) / 2).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    t = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * t)))


def make_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``module``, with decay on those of at least two axes.

    Raises:
        ValueError: nothing in ``module`` is trainable.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameter")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
