"""Configuration of ``shards/materialise.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config


class MaterialiseConfig(Config):
    shards: Path
    """Folder of one study's shards."""
    output_dir: Path
    """Receives one folder per part."""
    parts: list[Literal["train", "validation"]] = Field(default=["train"], min_length=1)
    """The test part stays locked where it is."""
    targets: list[str] = Field(default_factory=list)
    """Names under ``<shards>/targets`` to store with each sample."""
    images: bool = True
    """Store the encoded picture with each sample."""
    samples_per_shard: int = Field(default=1024, ge=1)
    """An object store likes files of 50 to 500 MB."""
    seed: int = 0
    """Of the draw that deals samples to shards."""
