"""LoRA adapters on the attention projections of SDXL's UNet, in the format of diffusers.

Hu et al., 2021, arXiv:2106.09685. Rank 16 on to_q, to_k, to_v, to_out.0 of SDXL's UNet: 23,224,320 parameters.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from ttd.config import Config, UserError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

FILE = "pytorch_lora_weights.safetensors"

logger = logging.getLogger(__name__)


class LoRAConfig(Config):
    rank: int = 16
    """Rank of the update; 0 leaves the UNet as it is."""
    alpha: float = 16
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the linear layers that get an adapter, in self- and cross-attention."""


def add_lora(unet: UNet2DConditionModel, config: LoRAConfig) -> int:
    """Freeze the UNet, add trainable float32 adapters, and return their number of parameters."""
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unet.requires_grad_(False)
    if config.rank == 0:
        return 0
    unet.add_adapter(
        LoraConfig(
            r=config.rank, lora_alpha=config.alpha, init_lora_weights="gaussian", target_modules=list(config.targets)
        )
    )
    cast_training_params(unet, dtype=torch.float32)  # a half-precision base still trains float32 adapters
    return sum(p.numel() for p in unet.parameters() if p.requires_grad)


def save_lora(unet: UNet2DConditionModel, folder: Path) -> Path:
    """Write the adapters, rank and alpha included, for ``StableDiffusionXLPipeline.load_lora_weights(folder)``."""
    from diffusers import StableDiffusionXLPipeline
    from peft.utils import get_peft_model_state_dict

    (adapter,) = unet.peft_config
    metadata = unet.peft_config[adapter].to_dict()
    StableDiffusionXLPipeline.save_lora_weights(
        folder,
        # In peft's own names: diffusers' conversion renames attention layers alone, and a file with both cannot be read.
        unet_lora_layers=get_peft_model_state_dict(unet, adapter_name=adapter),
        unet_lora_adapter_metadata={
            key: sorted(value) if isinstance(value, set) else value
            for key, value in metadata.items()
            if key in ("r", "lora_alpha", "target_modules")
        },
    )
    return folder / FILE


def load_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Put saved adapters onto the UNet.

    Raises:
        UserError: there is no adapter file, or it belongs to another UNet.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder}: no {FILE}; give the export/unet_lora folder of a fine-tuning run")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # peft's word for layers that the file says nothing about
            unet.load_lora_adapter(str(folder), weight_name=FILE, prefix="unet")
    except (RuntimeError, RuntimeWarning, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: these adapters do not fit the base's UNet: {str(error)[:400]}") from error
    if not getattr(unet, "peft_config", None):
        raise UserError(f"{folder / FILE}: holds no adapters for a UNet")
    logger.info("LoRA adapters from %s", folder)
