"""A fine-tuned run as a folder: ``encoder/``, ``clip_head/``, ``bridge/`` and what was trained of the UNet:
``unet_lora/`` or ``cross_attention/``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ttd.bridge.conditioner import EEGConditioner, load_bridge
from ttd.config import UserError
from ttd.diffusion.base import Base
from ttd.diffusion.cross_attention import load_cross_attention
from ttd.diffusion.lora import load_lora
from ttd.objectives.contrastive import Aligned, load_aligned
from ttd.untrusted.weights import find_tampered


class Finetuned(NamedTuple):
    """What a fine-tuning run trained, all but the UNet's part, which lies in the base."""

    conditioner: EEGConditioner
    aligned: Aligned
    """The alignment it holds; encoder and head are the conditioner's own."""


def load_finetuned(export: Path, base: Base) -> Finetuned:
    """Read an ``export`` folder in evaluation mode; adapters or cross-attention go into the base's UNet.

    Raises:
        UserError: something of the export is missing or not what was exported, or it was trained for a base of other widths.
    """
    tampered = find_tampered(export)
    if tampered:
        raise UserError(tampered)
    aligned, bridge = load_aligned(export), load_bridge(export / "bridge")
    for name in ("context_dim", "pooled_dim"):
        if bridge.dims[name] != getattr(base, name):
            raise UserError(
                f"base.path: its {name} is {getattr(base, name)}, but {export} was trained for {bridge.dims[name]}; "
                "give the base it was fine-tuned on"
            )
    if (export / "unet_lora").is_dir():
        load_lora(base.unet, export / "unet_lora")
    if (export / "cross_attention").is_dir():
        load_cross_attention(base.unet, export / "cross_attention")
    conditioner = EEGConditioner(aligned.encoder, aligned.head, bridge, freeze=("encoder", "clip_head")).eval()
    return Finetuned(conditioner, aligned)
