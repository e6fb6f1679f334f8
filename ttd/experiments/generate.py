"""Configuration of ``ttd/generate.py``: pictures from held-out EEG."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config
from ttd.data.schema import Part
from ttd.diffusion.sampler import SamplerConfig
from ttd.diffusion.sdxl import BaseConfig
from ttd.engine.items import ItemsConfig


class GenerateConfig(Config):
    output_dir: Path
    """Receives items/, shown/, sheet.png and manifest.jsonl."""
    seed: int = 0
    """Of the first noise of each picture, of the choice of items and of the shuffled control."""
    finetune: Path
    """Run folder of ``ttd/finetune.py``."""
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
