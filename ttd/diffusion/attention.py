"""How the base's UNet is executed: its attention, ``auto | sdpa | math | xformers``, and compiled blocks.

``unet.set_attention_backend`` changes nothing on a ``UNet2DConditionModel`` (diffusers 0.42), so the processors
themselves are exchanged, and what is live afterwards is asserted. ``math`` is unfused: product, softmax, product.
"""

from __future__ import annotations

import importlib.util
import shutil
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


def compiler_problem(wanted: bool) -> str | None:
    """One sentence if compilation is wanted and this machine has no C compiler, else None."""
    if not wanted or any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return None
    return "base.compile: torch.compile needs a C compiler and finds none; install gcc, or give base.compile=false"


def compile_blocks(unet: UNet2DConditionModel) -> int:
    """Have each transformer block compiled at its first use, and return their number. Call it after adapters and attention
    are in place. Blocks of one width share what is compiled, and the names of weights stay as they are."""
    unet.compile_repeated_blocks()
    return sum(type(block).__name__ in unet._repeated_blocks for block in unet.modules())


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
