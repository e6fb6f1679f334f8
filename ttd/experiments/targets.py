"""Configuration of ``shards/precompute_targets.py``."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, model_validator

from ttd.config import Config

OWN = ("clip", "vae", "text")
SIZE_IDS = "vae.size-ids"


class TargetsConfig(Config):
    shards: Path
    """Folder of one study's shards: reads ``images/``, writes one folder of ``targets/`` each."""
    targets: list[str] = Field(default=["clip", "vae"], min_length=1)
    """``clip``, ``vae`` (with it ``vae.size-ids``: the size and corner that each picture was cut from), ``text`` (what the
    base's text encoders say to the UNet about a caption of the image), and ``<model>.<layer>`` of the vision models below, as
    dinov2.pooled, dinov2.8, dinov2.8-mean, dinov2.8-tokens."""
    models: dict[str, str] = Field(default_factory=dict)
    """Vision models by a name of your own: a folder or downloaded repository of CLIP, DINOv2 or SigLIP."""
    captions: Path | None = None
    """JSON with captions by image_id, for ``text``; without it a caption names the concept."""
    base: str = "weights/tiny"
    """Folder or downloaded repository whose ``vae/`` encodes the images."""
    clip: str = "weights/tiny/clip"
    """Folder or downloaded repository of the CLIP model whose vision tower embeds the images."""
    image_size: int = Field(default=64, ge=8)
    """Pixels along one side of what the VAE is given; a vision model's own size stands in its folder."""
    batch_size: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _named(self) -> TargetsConfig:
        odd = [name for name in self.models if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in OWN]
        if odd:
            raise ValueError(f"models: {odd[0]!r} must be letters, digits, _ and -, and none of {', '.join(OWN)}")
        for target in self.targets:
            if target not in OWN and target.partition(".")[0] not in self.models:
                raise ValueError(f"targets: {target!r} is none of {', '.join(OWN)}, nor <model>.<layer> of models")
        return self

    @property
    def by_model(self) -> dict[str, list[str]]:
        """The targets that one model gives, by its name."""
        models = dict.fromkeys(target.partition(".")[0] for target in self.targets)
        of_model = {model: [t for t in self.targets if t.partition(".")[0] == model] for model in models}
        return of_model | ({"vae": ["vae", SIZE_IDS]} if "vae" in models else {})
