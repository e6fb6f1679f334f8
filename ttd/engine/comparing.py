"""What must be the same on all ranks, and is compared: the data before training, the weights while it goes on."""

from __future__ import annotations

import torch
from torch import nn

from ttd.config import UserError
from ttd.engine.accelerator import TTDAccelerator
from ttd.seeding import key


def compare_data(accelerator: TTDAccelerator, fingerprint: str) -> None:
    """Refuse ranks that read different data: each has its own order then, and samples are seen twice or never.

    Raises:
        UserError: the same on every rank, naming those that differ from rank 0.
    """
    own = torch.tensor([key(0, fingerprint)], device=accelerator.device)
    prints = accelerator.gather(own).tolist()
    others = [rank for rank, value in enumerate(prints) if value != prints[0]]
    if others:
        raise UserError(
            f"ranks {others} read other data than rank 0: their shards, a target or quarantine.json differ; where nodes have "
            "copies of their own, copy the whole folder again"
        )


def compare_ranks(accelerator: TTDAccelerator, weights: list[nn.Parameter], step: int) -> None:
    """Stop when the weights of the ranks are no longer the same bits, which no loss curve would show.

    Raises:
        RuntimeError: naming the step and the ranks.
    """
    if accelerator.num_processes == 1 or hasattr(weights[0], "ds_id"):  # ZeRO-3 holds each weight once
        return
    total = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for i, p in enumerate(weights):
        bits = p.detach().view(torch.int32 if p.element_size() == 4 else torch.int16)
        total += bits.sum(dtype=torch.int64) * (2 * i + 1)  # wraps alike everywhere, in any order of summation
    sums = accelerator.gather(total[None]).tolist()
    if len(set(sums)) > 1:
        others = [rank for rank, value in enumerate(sums) if value != sums[0]]
        raise RuntimeError(
            f"step {step}: the weights of ranks {others} differ from rank 0's; this run cannot be trusted"
        )
