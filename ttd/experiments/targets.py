"""Configuration of ``shards/precompute_targets.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config


class TargetsConfig(Config):
    shards: Path
    """Folder of one study's shards: reads ``images/``, writes ``targets/clip`` and ``targets/vae``."""
    targets: list[Literal["clip", "vae"]] = Field(default=["clip", "vae"], min_length=1)
    base: str = "weights/tiny"
    """Folder or downloaded repository whose ``vae/`` encodes the images."""
    clip: str = "weights/tiny/clip"
    """Folder or downloaded repository of the CLIP model whose vision tower embeds the images."""
    image_size: int = Field(default=64, ge=8)
    """Pixels along one side of what the VAE is given; CLIP's own size stands in its configuration."""
    batch_size: int = Field(default=64, ge=1)
