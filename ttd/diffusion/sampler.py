"""From a condition to pictures: a scheduler of diffusers and classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598).

DPM++ 2M with Karras sigmas (Lu et al., 2022, arXiv:2211.01095; Karras et al., 2022, arXiv:2206.00364) unless another is named:
DDIM (Song et al., 2021, arXiv:2010.02502), PLMS (Liu et al., 2022, arXiv:2202.09778), Euler (Karras et al.) or UniPC (Zhao et
al., 2023, arXiv:2302.04867). All of them are deterministic: the only randomness of a picture is its first noise. The
unconditional side is what condition dropout trains: context and pooled condition all zero. The first noise of a picture
belongs to its own seed, so a picture does not depend on which others share its batch.

Shapes: B batch, Q conditioning tokens, D and P widths of context and pooled condition, h, w latent and H, W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ttd.config import Config
from ttd.diffusion.base import Base, time_ids


class SamplerConfig(Config):
    name: Literal["dpmpp_2m_karras", "ddim", "plms", "euler", "unipc"] = "dpmpp_2m_karras"
    """Scheduler, with the base's own noise levels and prediction type."""
    steps: int = Field(default=25, ge=1)
    """Evaluations of the UNet per picture (one more with plms, twice as many with guidance)."""
    guidance: float = 3.0
    """Classifier-free guidance; 1 is none and costs half."""


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Class in diffusers, and what differs from the base's own scheduler, as Stable Diffusion's configurations have it."""


def make_sampler(base: Base, config: SamplerConfig) -> Any:
    """The named scheduler with the base's own noise levels and prediction type, set to ``config.steps``."""
    import diffusers

    kind, options = KINDS[config.name]
    scheduler = getattr(diffusers, kind).from_config(
        base.noise_scheduler.config, timestep_spacing="leading", steps_offset=1, **options
    )
    scheduler.set_timesteps(config.steps)
    return scheduler


@torch.no_grad()
def sample(
    base: Base,
    context: Tensor,
    pooled: Tensor,
    *,
    seeds: Sequence[int],
    config: SamplerConfig,
    picture_size: int | None = None,
) -> Tensor:
    """Draw one picture [3, H, W] in [0, 1] for each condition: [B, 3, H, W], float32 on the CPU.

    Args:
        context: conditioning tokens [B, Q, D].
        pooled: pooled condition [B, P].
        seeds: one integer per picture; equal seeds begin with equal noise.
        picture_size: H and W in pixels, a multiple of the VAE's factor; the base's native size when not given.

    Raises:
        ValueError: the number of seeds is not the number of conditions.
    """
    if len(seeds) != len(context):
        raise ValueError(f"{len(context)} conditions need as many seeds, got {len(seeds)}")
    assert base.vae is not None, "sampling needs the base's VAE: load_base(..., with_vae=True)"
    scheduler, device = make_sampler(base, config), base.unet.device
    size = picture_size // base.vae_factor if picture_size else base.latent_size
    shape = (base.unet.config.in_channels, size, size)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    latents = noise.to(device) * scheduler.init_noise_sigma  # [B, 4, h, w], float32

    guided = config.guidance != 1
    if guided:
        context = torch.cat([torch.zeros_like(context), context])
        pooled = torch.cat([torch.zeros_like(pooled), pooled])
    pixels = size * base.vae_factor
    dtype = base.unet.conv_in.weight.dtype  # once, not at every level
    context, pooled, sizes = (x.to(device, dtype) for x in (context, pooled, time_ids(len(context), pixels, pixels)))
    for t in scheduler.timesteps:
        both = torch.cat([latents, latents]) if guided else latents
        predicted = base.predict(scheduler.scale_model_input(both, t), t, context, pooled, sizes)
        if guided:
            without, with_condition = predicted.chunk(2)
            predicted = without + config.guidance * (with_condition - without)
        latents = scheduler.step(predicted, t, latents).prev_sample
    images = base.vae.decode(base.unscale(latents)).sample
    return (images / 2 + 0.5).clamp(0, 1).float().cpu()
