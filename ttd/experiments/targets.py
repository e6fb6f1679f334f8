"""Configuration of ``shards/precompute_targets.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config


class TargetsConfig(Config):
    shards: Path
    """Folder of one study's shards: reads ``images/``, writes one folder of ``targets/`` each."""
    targets: list[Literal["clip", "vae", "text"]] = Field(default=["clip", "vae"], min_length=1)
    """``text``: what the base's text encoders say to the UNet about a caption of the image."""
    captions: Path | None = None
    """JSON with captions by image_id, for ``text``; without it a caption names the concept."""
    base: str = "weights/tiny"
    """Folder or downloaded repository whose ``vae/`` encodes the images."""
    clip: str = "weights/tiny/clip"
    """Folder or downloaded repository of the CLIP model whose vision tower embeds the images."""
    image_size: int = Field(default=64, ge=8)
    """Pixels along one side of what the VAE is given; CLIP's own size stands in its configuration."""
    batch_size: int = Field(default=64, ge=1)
