"""A picture drawn again under its description, so that the lifter gets what it expects: SDXL's image to image.

Brain3D's way (arXiv:2604.08068): the description guides a stage of 2D diffusion, whose picture is lifted (SDEdit, Meng et al.,
2022, arXiv:2108.01073). What the description gets wrong is drawn wrong, so both pictures are kept and both paths are scored.

Shapes: N pictures uint8 [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator

from ttd.config import Config, UserError
from ttd.diffusion.base import BaseConfig, find_folder, find_missing, measured_hashes

FIELDS = ("label", "color", "shape", "size", "place")
"""What a template may name of an object of the description."""


class RefineConfig(Config):
    base: BaseConfig = BaseConfig()
    """Text-conditioned SDXL, of which path, revision and variant count."""
    strength: float = Field(default=0.5, gt=0, le=1)
    """Share of the noise that is put in and taken out again: 0 keeps the picture, 1 keeps nothing of it."""
    steps: int = Field(default=25, ge=1)
    guidance: float = 5.0
    object_template: str = "{color} {label}"
    """An object in words; it may name label, color, shape, size and place."""
    joiner: str = " and "
    prompt_template: str = "{objects}, {geometry}, three-quarter view, plain background"
    """The prompt; it may name objects and geometry."""

    def problems(self) -> list[str]:
        """What is missing, found without loading anything."""
        missing = find_missing(self.base)
        return [f"refine.{missing}"] if missing else []

    @field_validator("object_template")
    @classmethod
    def _object_fields(cls, value: str) -> str:
        return _fits(value, dict.fromkeys(FIELDS, "x"))

    @field_validator("prompt_template")
    @classmethod
    def _prompt_fields(cls, value: str) -> str:
        return _fits(value, {"objects": "x", "geometry": "x"})


def _fits(template: str, fields: dict[str, str]) -> str:
    try:
        template.format_map(fields)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"names {error}; it may name {', '.join(fields)}") from error
    return template


def prompt_of(description: dict[str, Any], config: RefineConfig) -> str:
    """The description as a prompt, objects from left to right as they are seen."""
    objects = sorted(description["objects"], key=lambda o: o["position"]["x"])
    words = config.joiner.join(config.object_template.format_map({n: o.get(n, "") for n in FIELDS}) for o in objects)
    return config.prompt_template.format(objects=words, geometry=description.get("geometry", ""))


class Refiner:
    """Draws pictures again under prompts."""

    def __init__(self, config: RefineConfig, pipeline: Any):
        self.config, self.pipeline = config, pipeline
        hashes = sorted(measured_hashes(config.base).values())
        self.revision = f"{config.base.path}@{config.base.revision or ','.join(h[:12] for h in hashes)}"

    @classmethod
    def prepare(cls, config: RefineConfig, *, device: torch.device) -> Refiner:
        """Load the base.

        Raises:
            UserError: it is not here.
        """
        from diffusers import StableDiffusionXLImg2ImgPipeline
        from diffusers.utils import logging

        for problem in config.problems():
            raise UserError(problem)
        folder = find_folder(config.base)
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # it tells for every picture that the VAE stays in float32
        dtype = torch.float32 if device.type == "cpu" else getattr(torch, config.base.dtype)
        pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            folder, torch_dtype=dtype, variant=config.base.variant, add_watermarker=False, use_safetensors=True
        ).to(device, dtype)
        pipeline.set_progress_bar_config(disable=True)
        return cls(config, pipeline)

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        """Pictures, each of the size it has, drawn again under its prompt; equal seeds begin with equal noise."""
        out = []
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):  # one by one: independent of the batch
            drawn = self.pipeline(
                prompt=prompt, image=Image.fromarray(image), strength=self.config.strength,
                num_inference_steps=self.config.steps, guidance_scale=self.config.guidance,
                generator=torch.Generator().manual_seed(seed), output_type="np",
            ).images[0]  # fmt: skip
            out.append((drawn * 255).round().astype(np.uint8))
        return out
