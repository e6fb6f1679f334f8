"""The demo's UNet: ``UNet2DConditionModel`` with SDXL's interface on 4 × 16 × 16 latents, trained on the base look alone.

Podell et al., 2023, arXiv:2307.01952 (text_time conditioning, two text encoders); Salimans & Ho, 2022, arXiv:2202.00512
(v-prediction); Hang et al., 2023, arXiv:2303.09556 (min-SNR weighting). Text encoder 1 is trained jointly, text encoder 2 is
the frozen text tower of the tiny CLIP; the empty prompt is zeros, as in SDXL.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ttd.objectives.conditional_diffusion import min_snr_weight
from ttd.seeding import numpy_rng, torch_rng
from ttd.simulation.tiny_clip import EMBED_DIM, MAX_LENGTH, tokenize

TEXT_1_WIDTH, TEXT_2_WIDTH, TIME_ID_WIDTH = 32, 96, 32
TIME_IDS = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)  # original size, crop corner, target size
MIN_SNR_GAMMA = 5.0
DROPOUT = 0.1


def make_scheduler(prediction_type: str = "v_prediction") -> DDPMScheduler:
    """The noise levels of SDXL and of Stable Diffusion 1.5."""
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000,
        prediction_type=prediction_type, clip_sample=False, timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Text encoder 1: 32 wide, 2 layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_1_WIDTH, intermediate_size=4 * TEXT_1_WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=MAX_LENGTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def make_unet() -> UNet2DConditionModel:
    """Three levels of 32 / 64 / 128 channels, cross-attention below the top level as in SDXL; under 6 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=1,
        use_linear_projection=True,
        cross_attention_dim=TEXT_1_WIDTH + TEXT_2_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=EMBED_DIM + 6 * TIME_ID_WIDTH,
        norm_num_groups=16,
    )


class TextToLatents(nn.Module):
    """UNet and text encoder 1 as one trainable module, the second text encoder frozen beside them."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder_2: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.unet, self.text_encoder = make_unet(), make_text_encoder(tokenizer)
        self.text_encoder_2 = text_encoder_2.requires_grad_(False)

    def condition(self, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Context [B, L, 128] and pooled [B, 64] of token ids [B, L]; rows with ``keep`` 0 are the empty prompt, zeros."""
        one = self.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]
        with torch.no_grad():
            two = self.text_encoder_2(input_ids=ids, output_hidden_states=True)
        context = torch.cat([one, two.hidden_states[-2]], dim=-1) * keep[:, None, None]
        return context, two.text_embeds * keep[:, None]

    def forward(self, noisy: Tensor, t: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """Prediction [B, 4, 16, 16] for noisy latents at times ``t`` [B]."""
        ids = noisy.new_tensor(TIME_IDS).expand(len(noisy), -1)
        return self.unet(noisy, t, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample


class UnetLoss:
    """``loss_at(step)``: min-SNR weighted squared error in the scheduler's prediction type, on latents encoded beforehand.

    ``model.condition(ids, keep)`` gives what ``model(noisy, t, ...)`` is told of captions; ``keep`` 0 is the empty prompt.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: DDPMScheduler,
        tokenizer: CLIPTokenizer,
        latents: Tensor,
        captions: list[str],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.model, self.latents, self.batch_size, self.seed = model, latents, batch_size, seed
        self.ids, self.scheduler = tokenize(tokenizer, captions), scheduler

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, g = numpy_rng(self.seed, "unet", step), torch_rng(self.seed, "unet-noise", step)
        rows = rng.choice(len(self.latents), size=self.batch_size, replace=False)
        clean, keep = self.latents[rows], torch.from_numpy(rng.random(len(rows)) > DROPOUT).float()
        noise = torch.randn(clean.shape, generator=g)
        # One time in each of B equal slices: less variance than B free draws, and still uniform.
        t = torch.from_numpy(((rng.permutation(len(rows)) + rng.random(len(rows))) / len(rows) * 1000).astype("int64"))
        v = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(clean, noise, t) if v else noise
        with torch.autocast("cpu", torch.bfloat16):
            condition: Any = self.model.condition  # a module's attributes have no types
            prediction = self.model(self.scheduler.add_noise(clean, noise, t), t, *condition(self.ids[rows], keep))
        error = ((prediction.float() - target) ** 2).mean((1, 2, 3))
        return (min_snr_weight(self.scheduler, t, MIN_SNR_GAMMA) * error).mean(), {"mse": error.mean().item()}


def make_model(tokenizer: CLIPTokenizer, clip: Path) -> TextToLatents:
    """A new UNet and text encoder 1 beside the text tower of the CLIP in a folder."""
    text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(clip, dtype=torch.float32, use_safetensors=True)
    return TextToLatents(tokenizer, text_encoder_2.eval())


def save_pipeline(folder: Path, model: TextToLatents, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
    """All parts as one folder that ``StableDiffusionXLPipeline.from_pretrained`` opens."""
    scheduler = DPMSolverMultistepScheduler.from_config(make_scheduler().config, use_karras_sigmas=True)
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=CLIPTextModel(copy.deepcopy(model.text_encoder.config)),
        text_encoder_2=CLIPTextModelWithProjection(copy.deepcopy(model.text_encoder_2.config)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=copy.deepcopy(model.unet).half(),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.text_encoder.load_state_dict(model.text_encoder.state_dict())
    pipeline.text_encoder_2.load_state_dict(model.text_encoder_2.state_dict())
    pipeline.text_encoder.half()
    pipeline.text_encoder_2.half()
    pipeline.save_pretrained(folder)


def load_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """The tiny SDXL in float32."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, add_watermarker=False, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
