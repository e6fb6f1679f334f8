"""Targets from any CLIP, DINOv2 or SigLIP vision model of transformers: its image embedding, or one of its layers.

Radford et al., 2021, arXiv:2103.00020 (CLIP); Oquab et al., 2023, arXiv:2304.07193 (DINOv2); Zhai et al., 2023,
arXiv:2303.15343 (SigLIP). A layer is written

    pooled      what the model itself calls its image embedding: CLIP's projection, DINOv2's normalised class token,
                SigLIP's attention pooling
    8           the class token after block 8 (0: before the first), or the mean over patches where there is no class token
    8-mean      the mean over patches
    8-tokens    all tokens [N, D], class token and registers first

and is what transformers gives in ``hidden_states``: no normalisation is added. Pictures are prepared as the folder's
``preprocessor_config.json`` says, here in torch, so that no torchvision is needed.

Shapes: B images, H, W height and width, N tokens, D width of the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttd.config import UserError
from ttd.diffusion.targets import OPENAI_MEAN, OPENAI_STD, decode_image, find_missing, load_whole, model_folder

LAYER = re.compile(r"pooled|(?P<block>\d+)(-(?P<tokens>mean|tokens))?")
METHOD = 1
"""Raised whenever the same images and weights would give other targets."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""torchvision's statistics of ImageNet, which DINOv2 was trained with."""
INTERPOLATION = {2: "bilinear", 3: "bicubic"}
"""By PIL's numbers, as preprocessor_config.json writes them."""


@dataclass(frozen=True)
class Family:
    """How one kind of model is loaded and read."""

    model: str
    """Class of transformers."""
    config: str
    n_extra: int
    """Tokens before the first patch, registers not counted."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False
    """Pictures are squeezed to a square where the folder says nothing; else their shorter side is fitted and they are cut."""


CLIP = Family("CLIPVisionModelWithProjection", "CLIPVisionConfig", 1, OPENAI_MEAN, OPENAI_STD)
DINOV2 = Family("Dinov2Model", "Dinov2Config", 1, IMAGENET_MEAN, IMAGENET_STD)
REGISTERS = Family("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", 1, IMAGENET_MEAN, IMAGENET_STD)
SIGLIP = Family("SiglipVisionModel", "SiglipVisionConfig", 0, (0.5,) * 3, (0.5,) * 3, squash=True)
FAMILIES = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "dinov2": DINOV2,
    "dinov2_with_registers": REGISTERS,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}
"""By ``model_type`` of the folder's config.json."""


def find_problem(path: str, layers: Sequence[str]) -> str | None:
    """One sentence if ``path`` holds no such model or the model has no such layer, else None. Loads no weights."""
    missing = find_missing(path)
    if missing:
        return missing
    stated = json.loads((model_folder(path) / "config.json").read_text())
    kind = stated.get("model_type")
    if kind not in FAMILIES:
        return f"{path} is a model of type {kind!r}; known: {', '.join(FAMILIES)}"
    import transformers

    config = getattr(transformers, FAMILIES[kind].config).from_pretrained(model_folder(path))
    for layer in layers:
        match = LAYER.fullmatch(layer)
        if match is None:
            return f"layer {layer!r}: write pooled, or a number, N-mean or N-tokens"
        if match["block"] and int(match["block"]) > config.num_hidden_layers:
            return (
                f"layer {layer!r}: the model has {config.num_hidden_layers} blocks, so 0 to {config.num_hidden_layers}"
            )
        if layer == "pooled" and not getattr(config, "vision_use_head", True):
            return "layer 'pooled': this SigLIP has no attention pooling; take a block, as N-mean"
    return None


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before the model sees it."""

    resize: int | tuple[int, int]
    """Of the shorter side, or height and width."""
    crop: tuple[int, int] | None
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path, family: Family, image_size: int) -> Preparation:
        """As preprocessor_config.json says; by the family's custom where there is none.

        Raises:
            UserError: it asks for something that is not done here.
        """
        path = folder / "preprocessor_config.json"
        stated: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        square = (image_size, image_size)
        size = stated.get("size", {"height": image_size, "width": image_size} if family.squash else image_size)
        if isinstance(size, dict) and not ({"shortest_edge"} == set(size) or {"height", "width"} == set(size)):
            raise UserError(f"{path}: size {size} is not known; give shortest_edge, or height and width")
        resize = _side(size) if isinstance(size, dict) and "height" in size else _shorter(size)
        cropped = stated.get("do_center_crop", not family.squash)
        crop = _side(stated["crop_size"]) if cropped and "crop_size" in stated else square if cropped else None
        mode = INTERPOLATION.get(stated.get("resample", 3))
        if mode is None or not stated.get("do_resize", True) or not stated.get("do_rescale", True):
            raise UserError(
                f"{path}: pictures are resized (bilinear or bicubic) and scaled to 0…1 here; it says otherwise"
            )
        normalised = stated.get("do_normalize", True)
        mean = tuple(stated.get("image_mean", family.mean)) if normalised else (0.0,) * 3
        std = tuple(stated.get("image_std", family.std)) if normalised else (1.0,) * 3
        return cls(resize, crop, mode, mean, std)

    def __call__(self, image: Tensor) -> Tensor:
        """Float [3, h, w] of uint8 [3, H, W]."""
        x = image.float()[None] / 255
        height, width = x.shape[-2:]
        short = min(height, width)
        shape = (
            self.resize
            if isinstance(self.resize, tuple)
            else (self.resize * height // short, self.resize * width // short)
        )
        if shape != (height, width):
            x = F.interpolate(x, size=shape, mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)
        if self.crop is not None:
            top, left = (shape[0] - self.crop[0]) // 2, (shape[1] - self.crop[1]) // 2
            x = x[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (x[0] - mean) / std


def _side(size: Any) -> tuple[int, int]:
    return (int(size["height"]), int(size["width"])) if isinstance(size, dict) else (int(size), int(size))


def _shorter(size: Any) -> int:
    return int(size["shortest_edge"] if isinstance(size, dict) else size)


class VisionTargets:
    """Image files to several layers of one model at once, each float16 [B, D], or [B, N, D] for ``-tokens``."""

    def __init__(self, path: str, layers: Sequence[str], *, device: torch.device | str = "cpu"):
        import transformers

        problem = find_problem(path, layers)
        if problem:
            raise UserError(problem)
        folder = model_folder(path)
        self.family = FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]]
        config = getattr(transformers, self.family.config).from_pretrained(folder)
        self.model = load_whole(getattr(transformers, self.family.model), folder, config).to(device)
        self.prepare = Preparation.of(folder, self.family, int(config.image_size))
        self.layers, self.device = list(layers), torch.device(device)
        self.n_extra = self.family.n_extra + int(getattr(config, "num_register_tokens", 0))

    @torch.no_grad()
    def __call__(self, files: list[bytes]) -> dict[str, np.ndarray]:
        """Every layer of pictures of any size.

        Raises:
            ValueError: a file cannot be decoded.
        """
        x = torch.stack([self.prepare(decode_image(file)) for file in files]).to(self.device)
        said = self.model(pixel_values=x, output_hidden_states=True)
        return {layer: self._read(said, layer).half().cpu().numpy() for layer in self.layers}

    def _read(self, said: Any, layer: str) -> Tensor:
        match = LAYER.fullmatch(layer)
        assert match is not None
        if match["block"] is None:
            return said.image_embeds if self.family is CLIP else said.pooler_output
        states = said.hidden_states[int(match["block"])]  # [B, N, D]
        if match["tokens"] == "tokens":
            return states
        if match["tokens"] == "mean" or self.n_extra == 0:
            return states[:, self.n_extra :].mean(1)
        return states[:, 0]
