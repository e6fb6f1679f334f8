"""Shap-E (Jun & Nichol, 2023, arXiv:2305.02463) through diffusers: a picture of one object → an implicit function → a mesh.

The pipeline is asked for its latent alone; its own mesh path needs tables that only the published checkpoint holds, and
fails where there is no surface. The latent's weights for the renderer's network are applied without being written into
it, the network is asked on our grid, and marching cubes find the surface.

Shap-E's axes: +Z up, the front towards -Y (its own turntable starts at (0, -3.6, 1.8)). The object stands in the pose
of the training set, not in that of the picture: how it is turned about the vertical is the network's guess.

Letters: K lattice points per axis, P points.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ttd.config import Config
from ttd.diffusion.targets import find_missing, identity, model_folder
from ttd.geometry.background import isolate
from ttd.geometry.camera import Camera
from ttd.geometry.lifter import LifterInfo, LiftRequest, LiftResult, Surface, measured
from ttd.geometry.surfaces import lattice, zero_level

if TYPE_CHECKING:
    from diffusers import ShapEImg2ImgPipeline

CHUNK = 65536  # points asked at once: 67 MB per layer of width 256
PARTS = ("image_encoder", "prior", "shap_e_renderer")
TO_FRAME = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""From Shap-E's axes to the common frame: its +Z is up, its -Y faces the camera."""


class ShapEConfig(Config):
    name: Literal["shap_e"] = "shap_e"
    model: str = "openai/shap-e-img2img"
    """A folder in the format of diffusers, or a repository that was downloaded before (``hf download``)."""
    steps: int = Field(default=64, ge=1)
    """Denoising steps, of the Heun sampler: two evaluations each."""
    guidance: float = 3.0
    """Classifier-free guidance; the value of the paper's image model."""
    cells: int = Field(default=128, ge=8)
    """Cells per axis of the grid over [-1, 1]^3."""

    def problems(self) -> list[str]:
        """What is missing, found without loading anything."""
        return [f"lifter.model: {text}" for part in PARTS if (text := find_missing(self.model, part))]


class ShapELifter:
    """One object per picture; the background is removed first."""

    camera: Camera | None = None

    def __init__(self, pipeline: ShapEImg2ImgPipeline, config: ShapEConfig, *, revision: str = "untrained"):
        self.pipeline, self.config, self.revision = pipeline, config, revision
        self.device = torch.device(pipeline.device)
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def prepare(cls, config: ShapEConfig, *, device: torch.device | str = "cpu") -> ShapELifter:
        """Load the pipeline.

        Raises:
            UserError: it is not here, or lacks a part.
        """
        hashes = [identity(config.model, part) for part in PARTS]
        from diffusers import ShapEImg2ImgPipeline

        folder = model_folder(config.model, PARTS[0]).parent
        pipeline = ShapEImg2ImgPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
        revision = hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
        return cls(pipeline.to(device), config, revision=revision)

    def info(self) -> LifterInfo:
        """Name, version, weights, licence and domain."""
        domain = "single objects on a plain background"
        return LifterInfo("shap_e", "1", self.revision, "MIT", domain, pretrained=True)

    @torch.no_grad()
    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """One result per request; one by one, because the pipeline reads only the first of a list of pictures."""
        return [measured(self._lift, request, self.device) for request in requests]

    def close(self) -> None:
        """Nothing outlives it."""

    def _lift(self, request: LiftRequest) -> LiftResult:
        cut = isolate(request)
        picture, facts = cut.on(255), {"background": cut.method}
        latent = self.pipeline(
            Image.fromarray(picture),
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="latent",
        ).images  # [1, tokens, width]
        surface = self.surface(self.pipeline.shap_e_renderer.params_proj(latent))
        if surface is None:
            reason = "the network's field has no surface"
            return LiftResult(request.key, "empty", reason, picture=picture, facts=facts)
        return LiftResult(request.key, "ok", surface=surface, to_frame=TO_FRAME, picture=picture, facts=facts)

    def surface(self, weights: Mapping[str, Tensor]) -> Surface | None:
        """The surface of the renderer's network with ``weights`` [1, ...] by name, in Shap-E's axes; None if empty."""
        own = {name.removeprefix("nerstf."): value.squeeze(0) for name, value in weights.items()}
        k = self.config.cells + 1
        field = -self._ask(own, lattice(k))[0].view(k, k, k).numpy()  # Shap-E is positive inside, we are negative
        for axis in range(3):  # what reaches the end of the grid is closed there, as in the pipeline's own mesh path
            for end in (0, -1):
                side = np.moveaxis(field, axis, 0)
                side[end] = np.maximum(side[end], 1e-3)
        level = zero_level(field)
        if level is None:
            return None
        rgb = self._ask(own, torch.from_numpy(level[0]))[1]
        return Surface(*level, (rgb * 255).round().to(torch.uint8).numpy())

    def _ask(self, weights: dict[str, Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """Field [P] (positive inside) and RGB in [0, 1] [P, 3] at points [P, 3]."""
        mlp, fields, colours = self.pipeline.shap_e_renderer.mlp, [], []
        how = {"direction": None, "ts": None, "nerf_level": "fine", "rendering_mode": "stf"}
        for chunk in points.split(CHUNK):
            out = torch.func.functional_call(mlp, weights, kwargs={"position": chunk[None].to(self.device), **how})
            fields.append(out.signed_distance[0, :, 0].float().cpu())
            colours.append(out.channels[0].float().cpu())
        return torch.cat(fields), torch.cat(colours)
