"""The base's own words for a picture: what its text encoders give the UNet for a caption of that picture.

A condition that was learned from EEG has to be understood by a UNet that has only ever been conditioned on text. These states
are the shortest way to tell the bridge what that language is (an image-caption pair needs no EEG). Captions come from the
study where it has them, else they name the concept.

Shapes: B captions, L tokens of a caption, D width of the cross-attention, P width of the pooled condition.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttd.config import UserError
from ttd.diffusion.targets import model_folder


class TextTargets:
    """Captions → float16 [B, L·D + P]: the context of both text encoders row by row, then the pooled state."""

    def __init__(self, path: str, *, device: torch.device | str = "cpu"):
        from diffusers import StableDiffusionXLPipeline
        from diffusers.utils import logging

        model_folder(path, "text_encoder")  # both are there and what they should be
        folder = model_folder(path, "text_encoder_2").parent
        logging.disable_progress_bar()
        self.pipeline = StableDiffusionXLPipeline.from_pretrained(
            folder, unet=None, vae=None, torch_dtype=torch.float32, add_watermarker=False, use_safetensors=True
        ).to(device)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> np.ndarray:
        """States of captions, padded as the pipeline pads them."""
        context, _, pooled, _ = self.pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
        return torch.cat([context.flatten(1), pooled], dim=1).half().cpu().numpy()


def split_states(states: Tensor, *, context_dim: int, pooled_dim: int) -> tuple[Tensor, Tensor]:
    """States [B, L·D + P] → context [B, L, D] and pooled [B, P].

    Raises:
        ValueError: the width fits no whole number of tokens: the states are another base's.
    """
    tokens, rest = divmod(states.shape[1] - pooled_dim, context_dim)
    if rest or tokens < 1:
        raise ValueError(
            f"text states of width {states.shape[1]} are not L x {context_dim} + {pooled_dim}: they belong to another base"
        )
    return states[:, :-pooled_dim].reshape(len(states), tokens, context_dim), states[:, -pooled_dim:]


def read_captions(path: Path) -> dict[str, str]:
    """Captions by image_id, from ``{"scenes": {image_id: {"caption": …}}}`` (a simulated study) or ``{image_id: caption}``.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text())
        content = content.get("scenes", content)
        return {name: (entry if isinstance(entry, str) else entry["caption"]) for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"captions={path}: cannot be read as captions by image_id: {error}") from error


def caption_of(image_id: str, concept: str | None, captions: dict[str, str]) -> str:
    """The study's caption of an image, else one that names its concept.

    Raises:
        ValueError: neither is known.
    """
    if image_id in captions:
        return captions[image_id]
    if concept is None:
        raise ValueError(
            f"image {image_id!r} has neither a caption nor a concept; give captions, or leave target text out"
        )
    return f"a photo of a {concept.replace('_', ' ')}"
