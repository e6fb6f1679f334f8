"""The attention switch of SDXL's UNet: ``auto | sdpa | math | xformers``.

``unet.set_attention_backend`` changes nothing on a ``UNet2DConditionModel`` (diffusers 0.42), so the processors
themselves are exchanged, and what is live afterwards is asserted. ``math`` is unfused: product, softmax, product.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

import torch

from ttd.config import UserError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Attention = Literal["auto", "sdpa", "math", "xformers"]

PROCESSORS = {"AttnProcessor2_0": "sdpa", "AttnProcessor": "math", "XFormersAttnProcessor": "xformers"}


def attention_problem(choice: Attention) -> str | None:
    """One sentence if ``choice`` cannot run on this machine, else None."""
    if choice != "xformers":
        return None
    if not torch.cuda.is_available():
        return "attention: xformers needs a CUDA device and there is none; use attention: sdpa"
    if importlib.util.find_spec("xformers") is None:
        return "attention: xformers is not installed; pip install 'ttd[xformers]', or use attention: sdpa"
    return None


def live_attention(unet: UNet2DConditionModel) -> str:
    """Which attention the UNet's processors compute: sdpa, math or xformers.

    Raises:
        AssertionError: the processors are mixed or unknown.
    """
    classes = {type(processor).__name__ for processor in unet.attn_processors.values()}
    live = {PROCESSORS.get(name, name) for name in classes}
    assert len(live) == 1, f"attention processors are mixed: {sorted(classes)}"
    return live.pop()


def set_attention(unet: UNet2DConditionModel, choice: Attention) -> str:
    """Switch every attention of the UNet and return what is live.

    Raises:
        UserError: the choice cannot run on this machine.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    problem = attention_problem(choice)
    if problem:
        raise UserError(problem)
    if choice == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    else:
        unet.set_attn_processor(AttnProcessor() if choice == "math" else AttnProcessor2_0())
    wanted = "sdpa" if choice == "auto" else choice
    live = live_attention(unet)
    assert live == wanted, f"attention: asked for {wanted}, but {live} is live"
    return live
