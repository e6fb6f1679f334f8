"""Configuration of ``ttd/generate.py``: pictures from held-out EEG."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ttd.baselines.direct_decoder import DirectDecoderConfig
from ttd.config import Config
from ttd.data.schema import Part
from ttd.diffusion.base import BaseConfig
from ttd.diffusion.sampler import SamplerConfig
from ttd.encoders import EncoderConfig
from ttd.encoders.brain3d import Brain3DConfig
from ttd.engine.items import ItemsConfig


class DirectPicturesConfig(DirectDecoderConfig):
    """Brain3D's direct decoder, fitted on the training part before it draws."""

    encoder: EncoderConfig = Brain3DConfig()
    picture_size: int = Field(default=64, ge=8)
    """Pixels along a side of what it learns and draws: 8, 16, 32, 64 or a further doubling."""


class GenerateConfig(Config):
    output_dir: Path
    """Receives items/, shown/, sheet.png and manifest.jsonl."""
    seed: int = 0
    """Of the first noise of each picture, of the choice of items and of the shuffled control."""
    finetune: Path | None = None
    """Run folder of ``ttd/finetune.py``, which draws; or else ``direct_decoder``."""
    direct_decoder: DirectPicturesConfig | None = None
    """The baseline that draws in its place; kept in direct_decoder/. It uses neither base, sampler, candidates nor clip."""
    shards: Path
    """Folder of one study's paired shards."""
    part: Part = "test"
    """The test part is locked: opening it is entered into the ledger beside the split manifest."""
    base: BaseConfig = BaseConfig()
    """The base the adapters were trained on."""
    sampler: SamplerConfig = SamplerConfig()
    candidates: int = Field(default=1, ge=1)
    """Pictures drawn per item, each from a first noise of its own. Of several, those are kept whose CLIP embeddings lie nearest
    the one that the EEG predicts, as MindEye does (Scotti et al., 2023, arXiv:2305.18274); the control likewise."""
    keep: int = Field(default=1, ge=1)
    """How many of them are saved, nearest first: picture.png, picture-2.png, … Evaluation reads the first, or all with
    pictures.samples=all."""
    clip: str | None = None
    """Folder or repository of the CLIP that alignment compared with; needed where not all candidates are kept, and gives those
    that are kept their order (without it: as drawn)."""
    subjects: list[str] | None = None
    """Whose EEG; everybody's when not given."""
    n_items: int | None = Field(default=None, ge=2)
    """Pictures per subject, the same ones for each; all when not given."""
    n_repetitions: int | None = Field(default=None, ge=1)
    """Presentations averaged into one epoch; all when not given."""
    controls: tuple[Literal["shuffled", "pre_stimulus", "noise", "unconditional"], ...] = ()
    """Once more for every item, which must score at chance: with the EEG of another picture of the same subject, with all from
    the onset on hidden, with noise as strong as the EEG, without any condition."""
    items: ItemsConfig = ItemsConfig(batch_size=32)

    @model_validator(mode="after")
    def _one_draws(self) -> GenerateConfig:
        if (self.finetune is None) == (self.direct_decoder is None):
            given = "neither is" if self.finetune is None else "both are"
            raise ValueError(f"give exactly one of finetune and direct_decoder, whichever is to draw; {given} given")
        return self

    @property
    def export(self) -> Path:
        """What the fine-tuned run left behind; there is none of the direct decoder."""
        assert self.finetune is not None
        return self.finetune / "export"
