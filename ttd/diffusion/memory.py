"""What a training step of the UNet takes in memory, counted before anything is allocated.

The UNet is built on the meta device and run once: every tensor that autograd would keep for the backward pass is seen and
its bytes are added up, with attention taken as fused (it keeps its inputs, its output and one number per row). For SDXL at 512
pixels in bfloat16 with LoRA that is 1.85 GiB per sample, or 0.12 GiB with gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttd.config import UserError
from ttd.diffusion.base import more_inputs, pooled_dim
from ttd.diffusion.cross_attention import train_cross_attention
from ttd.diffusion.lora import LoRAConfig, add_lora

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

GIB = 2**30
TRAINED_BYTES = 16
"""Per trainable weight: itself, its gradient and AdamW's two moments, float32 each."""
BESIDE = 4 * GIB
"""On a GPU: its context, cuDNN's workspaces, batch, frozen encoder, and a bridge of SDXL's widths (1.7 GiB); not counted."""
SLACK = 1.1
"""Activations come and go in blocks that do not fit together without gaps: an allowance as well."""
ENOUGH = 4
"""Samples per pass from which on a GPU is busy: with fewer, checkpointing (a third more arithmetic) is the lesser evil."""


class Fitted(NamedTuple):
    """How a rank goes through its share of a global batch."""

    micro: int
    """Samples per pass."""
    checkpointing: bool
    account: str
    """What that takes, in words."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one rank's training step."""

    weights: int
    """Frozen weights of the UNet."""
    trained: int
    """Trainable weights with gradients and moments."""
    per_sample: int
    """Activations kept for the backward pass."""
    per_sample_checkpointed: int
    """The same with gradient checkpointing, and the largest block made again."""
    beside: int = 0
    """Allowance for all else."""

    def needed(self, micro: int, *, checkpointing: bool) -> int:
        """Bytes with ``micro`` samples per pass."""
        each = self.per_sample_checkpointed if checkpointing else self.per_sample
        return int(self.weights + self.trained + self.beside + SLACK * micro * each)

    def choose(
        self, available: int, share: int, *, micro: int | None = None, checkpointing: bool | None = None
    ) -> tuple[int, bool] | None:
        """Samples per pass and whether to checkpoint: what is not given is chosen so that it fits into ``available`` bytes.

        Args:
            share: of one rank in the global batch; samples per pass divide it.

        Returns:
            The most samples without checkpointing if that are ``ENOUGH`` or all, else the most with it; None if nothing fits.
        """
        sizes = [micro] if micro else [n for n in range(share, 0, -1) if share % n == 0]
        for wanted in (False, True) if checkpointing is None else (checkpointing,):
            n = next((n for n in sizes if self.needed(n, checkpointing=wanted) <= available), 0)
            if n and (wanted or checkpointing is not None or micro or n >= min(ENOUGH, share)):
                return n, wanted
        return None

    def fit(self, available: int, *, share: int, micro: int | None, checkpointing: bool | None) -> Fitted:
        """``choose``, with an account; what is given in full is not refused.

        Raises:
            UserError: not one sample fits, and something was left to choose.
        """
        chosen = self.choose(available, share, micro=micro, checkpointing=checkpointing)
        if chosen is None and (micro is None or checkpointing is None):
            least = self.needed(micro or 1, checkpointing=checkpointing is not False)
            raise UserError(
                f"micro_batch_size: {micro or 1} samples per pass need about {least / GIB:.2g} GiB, this rank has "
                f"{available / GIB:.2g}; take a smaller base or picture, or try all the same with micro_batch_size=1 and "
                "objective.gradient_checkpointing=true"
            )
        micro, checkpointing = chosen or (micro or 1, bool(checkpointing))
        each = self.per_sample_checkpointed if checkpointing else self.per_sample
        needed = self.needed(micro, checkpointing=checkpointing)
        account = (
            f"memory per rank, counted: {self.weights / GIB:.2f} GiB base + {self.trained / GIB:.2f} in training + "
            f"{micro} samples per pass × {each / GIB:.3f}; with allowances {needed / GIB:.1f} of {available / GIB:.1f} GiB; "
            f"gradient checkpointing {'on' if checkpointing else 'off'}"
        )
        return Fitted(micro, checkpointing, account)


def count(
    config: dict[str, Any],
    lora: LoRAConfig,
    *,
    dtype: torch.dtype,
    size: int,
    n_tokens: int,
    beside: int = 0,
    cross_attention: bool = False,
) -> StepMemory:
    """The memory of a UNet of this configuration with adapters, or with its ``cross_attention`` in training, on latents [B, 4,
    size, size] and ``n_tokens`` of context.

    Trainable weights outside the UNet are not in it.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    # diffusers' own way warns of modules that it would keep in float32, of which there are none.
    nn.Module.to(unet, dtype)
    n_trained = add_lora(unet, lora) + (train_cross_attention(unet) if cross_attention else 0)
    frozen = sum(p.numel() * p.element_size() for p in unet.parameters() if not p.requires_grad)
    per_sample, largest = saved(unet.train(), size=size, n_tokens=n_tokens)
    unet.enable_gradient_checkpointing()
    checkpointed, _ = saved(unet, size=size, n_tokens=n_tokens)
    return StepMemory(frozen, TRAINED_BYTES * n_trained, per_sample, checkpointed + largest, beside)


def saved(unet: UNet2DConditionModel, *, size: int, n_tokens: int) -> tuple[int, int]:
    """Bytes that a forward pass of one sample keeps for the backward pass, in all and in the largest block that gradient
    checkpointing makes again; on the device and in the number format of ``unet``."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    facts: dict[str, Any] = {"device": unet.device, "dtype": unet.conv_in.weight.dtype}
    config = unet.config
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}
    kept: dict[int, Any] = {}  # storages, held so that none is counted as another
    blocks: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept.setdefault(storage._cdata, storage)
        return tensor

    def total() -> int:
        return sum(storage.nbytes() for storage in kept.values())

    hooks = []
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock | ResnetBlock2D):
            hooks.append(block.register_forward_pre_hook(lambda *_: blocks.append(-total())))
            hooks.append(block.register_forward_hook(lambda *_: blocks.append(blocks.pop() + total())))
    pooled, sizes = torch.zeros(1, pooled_dim(config), requires_grad=True, **facts), torch.zeros(1, 6, **facts)
    context = torch.zeros(1, n_tokens, config.cross_attention_dim, requires_grad=True, **facts)
    noisy, t = torch.zeros(1, config.in_channels, size, size, **facts), torch.zeros(1, device=unet.device)
    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(noisy, t, encoder_hidden_states=context, **more_inputs(config, pooled, sizes))
    for hook in hooks:
        hook.remove()
    return total(), max(blocks, default=0)


class _Fused(torch.autograd.Function):
    """Keeps what fused attention keeps; its values are never read, and nothing is differentiated."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.zeros_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_zeros(query.shape[:-1], dtype=torch.float32))
        return out


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device attention would be taken apart, and the whole matrix of its weights counted."""
    with mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, *_, **__: _Fused.apply(q, k, v)):
        yield
