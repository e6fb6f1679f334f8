"""Fixed targets of images: the CLIP embedding that EEG is aligned with, the VAE moments that diffusion is trained on.

Radford et al., 2021, arXiv:2103.00020 (CLIP); Rombach et al., 2022, arXiv:2112.10752 (VAE). Preprocessing is done
here in torch, as transformers' image processor does it (shorter side to size, centre crop, normalise), so that no
torchvision is needed.

Shapes: B images, H, W their height and width, S the size a model wants, D width of CLIP's embedding, h, w of the
latents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from ttd.config import UserError
from ttd.diffusion.base import BaseConfig, find_folder
from ttd.untrusted.pictures import decode_picture
from ttd.untrusted.weights import find_tampered, split_name, unpinned

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training images; openai/CLIP, clip.py. In force where the model's folder states no others."""

METHOD = 1
"""Raised whenever the same images and weights would give other targets."""


def decode_image(content: bytes) -> Tensor:
    """RGB uint8 [3, H, W] of an encoded jpg or png.

    Raises:
        ValueError: not a jpg or png, damaged, or too large.
    """
    return torch.from_numpy(decode_picture(content)).permute(2, 0, 1)


def resize_and_crop(image: Tensor, size: int) -> Tensor:
    """Float [3, S, S] in [0, 1] of uint8 [3, H, W]: shorter side to ``size`` (bicubic, antialiased), centre crop."""
    x = image.float()[None] / 255
    height, width = x.shape[-2:]
    if (height, width) != (size, size):
        shape = [size * height // min(height, width), size * width // min(height, width)]
        x = F.interpolate(x, size=shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        x = x[..., top : top + size, left : left + size]
    return x[0]


class ClipTargets:
    """Image files to CLIP embeddings float16 [B, D]: the projection's output, not normalised."""

    def __init__(self, path: str, *, device: torch.device | str = "cpu"):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        folder = model_folder(path)
        config = CLIPVisionConfig.from_pretrained(folder)
        self.model, self.device = (
            load_whole(CLIPVisionModelWithProjection, folder, config).to(device),
            torch.device(device),
        )
        self.size = int(config.image_size)
        self.mean, self.std = _normalisation(folder, self.device)

    @torch.no_grad()
    def __call__(self, files: list[bytes]) -> np.ndarray:
        """Embed pictures of any size; returns [B, D].

        Raises:
            ValueError: a file cannot be decoded.
        """
        return self.embed([decode_image(file) for file in files]).half().cpu().numpy()

    @torch.no_grad()
    def embed(self, images: Sequence[Tensor]) -> Tensor:
        """Embed B decoded pictures, uint8 [3, H, W] of any size; returns float32 [B, D]."""
        x = torch.stack([resize_and_crop(image, self.size) for image in images]).to(self.device)
        return self.model(pixel_values=(x - self.mean) / self.std).image_embeds


def load_whole(model_class: Any, folder: Path, config: Any) -> torch.nn.Module:
    """One tower of a folder that may hold both, frozen, in float32.

    Raises:
        UserError: the folder lacks some of its weights.
    """
    from transformers.utils import logging

    stated = json.loads((folder / "config.json").read_text())
    if stated.get("model_type") == "clip":  # a model with both towers states the width they share outside of either
        config.projection_dim = stated.get("projection_dim", config.projection_dim)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # a checkpoint of both towers holds text weights, reported one by one
    logging.disable_progress_bar()
    model, report = model_class.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    logging.set_verbosity(level)
    absent = sorted(report["missing_keys"])
    if absent:
        raise UserError(f"{folder}: lacks {len(absent)} weights of a {model_class.__name__}, first {absent[0]}")
    return model.requires_grad_(False).eval()


class VaeTargets:
    """Image files to what the UNet is trained on: the moments of the VAE's posterior, and where the picture came from."""

    def __init__(self, path: str, *, image_size: int, device: torch.device | str = "cpu"):
        from diffusers import AutoencoderKL

        folder = model_folder(path, "vae")
        model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
        self.model, self.device = model.requires_grad_(False).eval().to(device), torch.device(device)
        self.size = image_size

    @torch.no_grad()
    def __call__(self, files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encode pictures of any size.

        Returns:
            Moments float16 [B, 8, h, w] (mean, then log variance, unscaled) and size ids float32 [B, 6].

        Raises:
            ValueError: a file cannot be decoded.
        """
        images = [decode_image(file) for file in files]
        x = torch.stack([resize_and_crop(image, self.size) for image in images]).to(self.device)
        ids = np.array([size_ids(image.shape[1], image.shape[2], self.size) for image in images], np.float32)
        return self.model.encode(x * 2 - 1).latent_dist.parameters.half().cpu().numpy(), ids


def size_ids(height: int, width: int, size: int) -> tuple[int, ...]:
    """SDXL's conditioning on a picture's size and crop: its height and width, the corner that ``resize_and_crop`` cut it at in
    pixels of the resized picture (top, left), and what is left of it (Podell et al., 2023, sections 2.2 and 2.3)."""
    shorter = min(height, width)
    top, left = ((size * side // shorter - size) // 2 for side in (height, width))
    return height, width, top, left, size, size


def find_missing(path: str, part: str = "") -> str | None:
    """One sentence if ``path`` does not hold a model (in ``part`` of it), or holds weights that are not what they should be.

    A path is a folder, or a downloaded repository at its commit: ``owner/name@commit``. None where all is well.
    """
    folder, (name, commit) = _find(path), split_name(path)
    if folder is None:
        revision = f" --revision {commit}" if commit else ""
        return f"{path!r} is neither a folder here nor in the Hugging Face cache; download it with: hf download {name}{revision}"
    if not (folder / part / "config.json").is_file() or not list((folder / part).glob("*.safetensors")):
        return f"{folder / part} lacks config.json or *.safetensors; give a folder that save_pretrained wrote"
    loose = None if Path(path).is_dir() else unpinned(name, commit, folder)
    return f"{loose}: write {name}@{folder.name}" if loose else find_tampered(folder / part)


def _find(path: str) -> Path | None:
    name, commit = (path, None) if Path(path).is_dir() else split_name(path)
    return find_folder(BaseConfig(path=name, revision=commit))


def identity(path: str, part: str = "") -> str:
    """Hash of the configuration and weights of a model, so that targets are known to be its own. Variants of the weights
    (model.fp16.safetensors), which a download may bring along and nothing reads, do not count.

    Raises:
        UserError: the model is not here.
    """
    hashes = xxhash.xxh3_128()
    for file in sorted(model_folder(path, part).iterdir()):
        if file.suffix in (".json", ".safetensors") and "." not in file.stem:
            hashes.update(file.name.encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 24):
                    hashes.update(block)
    return hashes.hexdigest()


def model_folder(path: str, part: str = "") -> Path:
    """Where a model lies here.

    Raises:
        UserError: it does not.
    """
    missing = find_missing(path, part)
    folder = _find(path)
    if missing or folder is None:
        raise UserError(missing)
    return folder / part


def _normalisation(folder: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    path = folder / "preprocessor_config.json"
    stated: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    mean, std = stated.get("image_mean", OPENAI_MEAN), stated.get("image_std", OPENAI_STD)
    return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)
