"""The UNet's own cross-attention in training, the original's way beside adapters.

DreamDiffusion (Bai et al., 2023, arXiv:2306.16934; ``code/dc_ldm/ldm_for_eeg.py``) trains the UNet's parameters whose names
contain ``attn2`` or ``norm2``: in each transformer block the attention to the condition and the norm before it. (In Stable
Diffusion's own code only those have a ``norm2``; in diffusers the convolution blocks have one too, which is not meant.)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttd.config import UserError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

FILE = "model.safetensors"
TRAINED = re.compile(r"\.transformer_blocks\.\d+\.(attn2|norm2)\.")


def cross_attention(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The parameters of the UNet's cross-attention and of the norms before it, by name."""
    return {name: p for name, p in unet.named_parameters() if TRAINED.search(name)}


def train_cross_attention(unet: UNet2DConditionModel) -> int:
    """Let gradients reach them, and return how many numbers they are."""
    trained = cross_attention(unet)
    for p in trained.values():
        p.requires_grad_(True)
    return sum(p.numel() for p in trained.values())


def save_cross_attention(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write them as ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in cross_attention(unet).items()}, folder / FILE)


def load_cross_attention(unet: UNet2DConditionModel, folder: Path) -> None:
    """Put trained ones into the UNet.

    Raises:
        UserError: the file cannot be read, or it belongs to another UNet.
    """
    try:
        weights: dict[str, Tensor] = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / FILE}: cannot be read ({error}); export the run again") from error
    own = cross_attention(unet)
    odd = sorted(
        {*own} ^ {*weights} | {name for name in own if name in weights and own[name].shape != weights[name].shape}
    )
    if odd:
        raise UserError(
            f"{folder / FILE}: {odd[0]} and {len(odd) - 1} more do not fit the base's UNet; give the base it was trained on"
        )
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
