"""Training steps that ``gpu_finetune.py`` times: this project's, as it is executed, and two peers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from sdxl_shapes import NOISE, UNET, VAE
from torch import Tensor, nn

from ttd.bridge.conditioner import EEGConditioner, PerceiverConditionerConfig
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.bridge.resampler import ResamplerConfig
from ttd.diffusion.attention import attention_problem, compile_blocks, set_attention
from ttd.diffusion.base import Base, BaseConfig, load_base, time_ids
from ttd.diffusion.lora import LoRAConfig, add_lora
from ttd.encoders import InceptSADConfig, build_encoder
from ttd.engine.schedules import OptimConfig, make_optimizer
from ttd.objectives.conditional_diffusion import ConditionalDiffusion, ConditionalDiffusionConfig
from ttd.objectives.contrastive import TargetSpace

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
C, T, SFREQ, CLIP_DIM, N_BANK = 63, 128, 250.0, 768, 1024


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    tiny: bool
    latent: int = 64
    batch: int = 32
    n_tokens: int = 16
    steps: int = 20
    sampling_steps: int = 25
    flop_per_sample: float = 3.103e12
    """Forward, gradients of inputs and of adapters; counted from the published configuration."""


@dataclass(frozen=True)
class How:
    """How a training step is executed; the defaults are this project's."""

    checkpointing: bool = False
    channels_last: bool = True
    compiled: bool = True
    whole: bool = False
    """Compile the whole UNet instead of its blocks."""
    attention: Any = "sdpa"
    fused_adamw: bool = True
    wait: bool = False
    """Read the loss after each step, as progress bars do."""
    vae_in_loop: bool = False


def base(size: Size) -> Base:
    """SDXL with random values in bfloat16, or the tiny base, on the device."""
    if size.tiny:
        return load_base(BaseConfig(path="weights/tiny", dtype="bfloat16"), device=DEVICE, with_vae=True)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        unet = UNet2DConditionModel(**UNET).to(torch.bfloat16)
        vae = AutoencoderKL(**VAE)
    scheduler = DDPMScheduler(**NOISE)
    frozen = [part.requires_grad_(False).eval() for part in (unet, vae)]
    return Base(frozen[0], scheduler, dict(vae.config), frozen[1])


def batch_of(size: Size, n: int, parts: Base) -> dict[str, Tensor]:
    """A batch as the loader hands it over, already on the device."""
    g = torch.Generator().manual_seed(n)
    shape = (n, 8, size.latent, size.latent)
    made = {"eeg": torch.randn(n, C, T, generator=g), "vae": torch.randn(shape, generator=g)}
    pixels = size.latent * parts.vae_factor
    made |= {"clip": torch.randn(n, CLIP_DIM, generator=g), "vae.size-ids": time_ids(n, pixels, pixels)}
    return {name: value.to(DEVICE) for name, value in made.items()} | {"position": torch.arange(n)}


def trainer(size: Size, how: How) -> Callable[[int], None]:
    """One update of this project's objective on ``n`` samples."""
    parts = base(size)
    add_lora(parts.unet, LoRAConfig(rank=16))
    set_attention(parts.unet, how.attention)
    if how.channels_last:
        parts.unet.to(memory_format=torch.channels_last)
    facts: dict[str, Any] = {"n_times": T, "sfreq": SFREQ, "ch_names": [f"E{i}" for i in range(C)]}
    encoder = build_encoder(InceptSADConfig(embed_dim=128, depth=0, n_filters=32, whiten=False), **facts)
    head = ClipHead(ClipHeadConfig(), embed_dim=128, n_tokens=encoder.n_tokens, clip_dim=CLIP_DIM)
    conditioner = EEGConditioner.build(
        PerceiverConditionerConfig(
            resampler=ResamplerConfig(n_queries=size.n_tokens, depth=2), freeze=("encoder", "clip_head")
        ),
        encoder=encoder,
        clip_head=head,
        context_dim=parts.context_dim,
        pooled_dim=parts.pooled_dim,
    )
    bank = torch.randn(N_BANK, CLIP_DIM)
    module: nn.Module = ConditionalDiffusion(
        ConditionalDiffusionConfig(gradient_checkpointing=how.checkpointing), conditioner=conditioner, base=parts,
        space=TargetSpace.fit(bank, "centred"), bank=bank, global_batch_size=size.batch, seed=0,
    ).to(DEVICE).train()  # fmt: skip
    if how.whole:
        parts.unet.compile()
    elif how.compiled:
        compile_blocks(parts.unet)
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(OptimConfig(lr=1e-4), module)
    if not how.fused_adamw:
        optimizer = torch.optim.AdamW(weights, lr=1e-4, foreach=False)
    pixels = size.latent * parts.vae_factor
    picture = torch.rand(size.batch, 3, pixels, pixels, device=DEVICE) * 2 - 1 if how.vae_in_loop else None
    batches: dict[int, dict[str, Tensor]] = {}

    def update(n: int) -> None:
        batch = batches.setdefault(n, batch_of(size, n, parts))
        if picture is not None and parts.vae is not None:
            with torch.no_grad():
                batch = batch | {"vae": parts.vae.encode(picture[:n]).latent_dist.parameters}
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = module(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if how.wait:
            loss.item()

    return update


def eager_peer(size: Size) -> Callable[[int], None]:
    """The best that diffusers and peft give without more: bfloat16, fused attention, cached latents, no checkpointing."""
    parts = base(size)
    add_lora(parts.unet, LoRAConfig(rank=16))
    parts.unet.train()
    optimizer = torch.optim.AdamW([p for p in parts.unet.parameters() if p.requires_grad], lr=1e-4)
    dtype, step = parts.unet.conv_in.weight.dtype, denoiser(size, parts)

    def update(n: int) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            loss = step(torch.randn(n, 4, size.latent, size.latent, device=DEVICE, dtype=dtype))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def example_peer(size: Size) -> Callable[[int], None]:
    """As diffusers' SDXL LoRA example is usually run: float16 with a scaler, checkpointing, the VAE in float32 in the loop, the
    batch in 16 passes of 2."""
    parts = base(size)
    parts.unet.to(torch.float16 if GPU else torch.float32)
    add_lora(parts.unet, LoRAConfig(rank=16))
    if attention_problem("xformers") is None:
        set_attention(parts.unet, "xformers")
    parts.unet.train().enable_gradient_checkpointing()
    weights = [p for p in parts.unet.parameters() if p.requires_grad]
    optimizer, scaler = torch.optim.AdamW(weights, lr=1e-4), torch.amp.GradScaler(DEVICE.type, enabled=GPU)
    pixels = size.latent * parts.vae_factor
    picture, step = torch.rand(2, 3, pixels, pixels, device=DEVICE) * 2 - 1, denoiser(size, parts)

    def update(n: int) -> None:
        for _ in range(n // 2):
            with torch.no_grad():
                latents = parts.scale(parts.vae.encode(picture).latent_dist.sample())
            with torch.autocast(DEVICE.type, torch.float16, enabled=GPU):
                loss = step(latents.to(parts.unet.dtype)) / (n // 2)
            scaler.scale(loss).backward()
            loss.item()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(weights, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return update


def denoiser(size: Size, parts: Base) -> Callable[[Tensor], Tensor]:
    """The plain diffusion loss of latents [B, 4, h, w] under a fixed condition."""
    dtype = parts.unet.conv_in.weight.dtype

    def loss(latents: Tensor) -> Tensor:
        n = len(latents)
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (n,), device=DEVICE)
        context = torch.zeros(n, size.n_tokens, parts.context_dim, device=DEVICE, dtype=dtype)
        pooled = torch.zeros(n, parts.pooled_dim, device=DEVICE, dtype=dtype)
        added = {"text_embeds": pooled, "time_ids": time_ids(n, 512, 512).to(DEVICE, dtype)}
        noisy = parts.noise_scheduler.add_noise(latents, noise, t)
        predicted = parts.unet(noisy, t, encoder_hidden_states=context, added_cond_kwargs=added).sample
        return F.mse_loss(predicted.float(), noise.float())

    return loss
