"""The adapters of TTD-net's ``latest.pth`` as the file that diffusers and ``ttd.diffusion.lora.load_lora`` read."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ttd.config import UserError

ALPHA = 16
"""Fixed in ``code/dc_ldm/sdxl_pipeline.py``; the rank is read off the tensors."""
PREFIX = "base_model.model."


def save_original_lora(weights: dict[str, Tensor], folder: Path) -> int:
    """Write adapters named as peft's ``get_peft_model_state_dict`` does; returns how many parameters they have.

    Raises:
        UserError: a tensor is none of an adapter.
    """
    from diffusers import StableDiffusionXLPipeline

    odd = [n for n in weights if not n.startswith(PREFIX) or not n.endswith((".lora_A.weight", ".lora_B.weight"))]
    if odd:
        raise UserError(f"checkpoint: unet_lora: {odd[0]!r} is no adapter of a linear layer ({len(odd)} such)")
    layers = {name.removeprefix(PREFIX): t for name, t in weights.items()}
    ranks = {t.shape[0] for name, t in layers.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise UserError(f"checkpoint: unet_lora: adapters of ranks {sorted(ranks)}, expected one")
    places = {name.rpartition(".lora_")[0].rpartition(".attn")[2].partition(".")[2] for name in layers}
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers,
        unet_lora_adapter_metadata={"r": ranks.pop(), "lora_alpha": ALPHA, "target_modules": sorted(places)},
    )
    return sum(t.numel() for t in layers.values())
