"""Configuration of ``ttd/train_lift.py``: the tiny lifter or the tiny describer, trained on simulated scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config
from ttd.experiments.train_base import FitConfig
from ttd.geometry.describer import DescriberConfig
from ttd.geometry.sdf_training import SDFTrainingConfig


class DescriberTrainingConfig(Config):
    sight: FitConfig = FitConfig(steps=2400, batch_size=32, lr=2e-3, ema=0.99)
    """First the vision tower alone learns what each patch shows, at a third of the cost of a whole step."""
    words: FitConfig = FitConfig(steps=3000, batch_size=32, lr=1.5e-3, ema=0.99)
    """Then the whole model learns to write the description, the patches still being asked."""
    spoil: float = Field(default=0.6, ge=0, le=1)
    """Share of the pictures that are spoilt as a decoded picture is."""
    mixed_precision: bool = True
    """bfloat16 where autocast allows it; twice as fast on a CPU with AVX-512-bf16."""
    start: DescriberConfig | None = None
    """A vision-language model to fine-tune on ``pairs`` for the steps of ``words``, instead of training the tiny one."""
    pairs: Path | None = None
    """JSON lines {"image": path beside the file, "description": {...}}; the last ``n_held_out`` are not trained on."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of the adapters on the attention of its language model."""


class TrainLiftConfig(Config):
    output_dir: Path
    """Run folder: the training state, ``log.jsonl`` and ``metrics.json``; the same command resumes."""
    component: Literal["lifter", "describer"] = "lifter"
    """What is trained: picture → mesh, or picture → words."""
    weights: Path = Path("weights/tiny/lifter")
    """Where the finished model is written, in the form in which it is loaded."""
    seed: int = 0
    """Seed of the scenes, the weights' start, the points and the spoiling."""
    n_scenes: int = Field(default=8000, ge=1)
    """Training scenes, each seen in both looks."""
    n_held_out: int = Field(default=64, ge=2)
    """Scenes of other seeds on which the figures of the model card are read."""
    training: SDFTrainingConfig = SDFTrainingConfig()
    """Of the lifter."""
    describer: DescriberTrainingConfig = DescriberTrainingConfig()
    """Of the describer."""
