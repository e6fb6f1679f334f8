"""The older base of the demo: ``UNet2DConditionModel`` with Stable Diffusion 1.5's interface on 4 × 16 × 16 latents.

Rombach et al., 2022, arXiv:2112.10752. One text encoder, the frozen text tower of the tiny CLIP, of which the UNet reads the
last hidden state; no pooled condition and no sizes; attention on every level but the lowest; ε-prediction; and the empty prompt
is what the text encoder says to an empty string.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ttd.simulation import tiny_unet
from ttd.simulation.tiny_clip import tokenize


def make_scheduler() -> DDPMScheduler:
    """Its noise levels, with ε-prediction."""
    return tiny_unet.make_scheduler("epsilon")


def make_unet(cross_attention_dim: int) -> UNet2DConditionModel:
    """Three levels of 32 / 64 / 80 channels; with its VAE and text encoder it fits beside the demo's other weights into 25 MB."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64, 80),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=cross_attention_dim,
        norm_num_groups=16,
    )


class CaptionToLatents(nn.Module):
    """The UNet, trainable, with the frozen text encoder beside it."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = make_unet(text_encoder.config.hidden_size)
        self.text_encoder = text_encoder.requires_grad_(False)
        self.nothing = tokenize(tokenizer, [""])

    @torch.no_grad()
    def condition(self, ids: Tensor, keep: Tensor) -> tuple[Tensor]:
        """Context [B, L, D] of token ids [B, L]; rows with ``keep`` 0 are the empty prompt."""
        ids = torch.where(keep[:, None] > 0, ids, self.nothing.to(ids.device))
        return (self.text_encoder(input_ids=ids).last_hidden_state,)

    def forward(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Prediction [B, 4, 16, 16] for noisy latents at times ``t`` [B]."""
        return self.unet(noisy, t, context).sample


def make_model(tokenizer: CLIPTokenizer, clip: Path) -> CaptionToLatents:
    """A new UNet beside the text tower of the CLIP in a folder."""
    text_encoder = CLIPTextModel.from_pretrained(clip, dtype=torch.float32, use_safetensors=True)
    return CaptionToLatents(tokenizer, text_encoder.eval())


def save_pipeline(folder: Path, model: CaptionToLatents, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
    """All parts as one folder that ``StableDiffusionPipeline.from_pretrained`` opens, in half precision."""
    text_encoder = CLIPTextModel(copy.deepcopy(model.text_encoder.config))
    text_encoder.load_state_dict(model.text_encoder.state_dict())
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(model.unet).half(),
        scheduler=PNDMScheduler.from_config(make_scheduler().config, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The tiny Stable Diffusion 1.5 in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
