"""Parts that several test folders share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ttd.diffusion.base import Base


SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 8 + 6 * 8,
}
SD15 = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
}
"""Where the two interfaces differ."""


def _random_base(prediction_type: str = "v_prediction", seed: int = 0, name: str = "sdxl") -> Base:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    from ttd.diffusion.base import Base

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        transformer_layers_per_block=1,
        norm_num_groups=8,
        **(SDXL if name == "sdxl" else SD15 | {"class_embed_type": "identity"}),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type
    )
    return Base(unet.requires_grad_(False).eval(), scheduler, dict(vae.config), vae.requires_grad_(False).eval())


def _write_base(folder: Path, name: str = "sdxl") -> Path:
    base = _random_base("v_prediction" if name == "sdxl" else "epsilon", name=name)
    assert base.vae is not None
    base.unet.register_to_config(class_embed_type=None)  # as published: what is added here has no weights
    base.unet.half().save_pretrained(folder / "unet")
    base.vae.half().save_pretrained(folder / "vae")
    base.noise_scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def random_base() -> Callable[..., Base]:
    """Build random parts of SDXL, or of Stable Diffusion 1.5 (name="sd15"): 32-pixel images, latents [4, 16, 16], context width
    16, pooled width 8 (64: that of the time-step embedding)."""
    return _random_base


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """The same as a folder in the format of diffusers, in half precision like the shipped one."""
    return _write_base(tmp_path / "base")


@pytest.fixture(scope="session")
def write_base() -> Callable[..., Path]:
    """Write such a folder at a place, for fixtures that several tests share."""
    return _write_base


@pytest.fixture
def other_precision() -> Iterator[Callable[[], None]]:
    """Forget accelerate's state, which one process otherwise keeps: the next accelerator may have another precision."""
    from accelerate.state import AcceleratorState

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)

    forget()
    yield forget
    forget()
