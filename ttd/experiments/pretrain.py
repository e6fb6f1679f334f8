"""Configuration of ``ttd/pretrain.py``: self-supervised pretraining of an encoder on unlabelled windows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config
from ttd.data.stream import DataConfig
from ttd.encoders import EncoderConfig, InceptSADConfig
from ttd.engine.accelerator import EngineConfig
from ttd.engine.loop import TrainConfig
from ttd.engine.schedules import OptimConfig
from ttd.objectives.masked_reconstruction import MaskedReconstructionConfig


class PretrainReportConfig(Config):
    """The trained model beside the trivial predictors, on runs it has not seen."""

    part: Literal["validation", "test"] = "validation"
    """Which held-out part; opening the test part is entered into the ledger beside the split manifest."""
    max_windows: int = Field(default=2000, ge=1)
    """More windows than these, evenly spaced over the part, are not looked at."""
    n_wiener: int = Field(default=20, ge=1)
    """Windows, evenly spaced, on which the Wiener predictor is computed as well (it solves equations for each)."""


class PretrainConfig(Config):
    output_dir: Path
    seed: int = 0
    data: DataConfig
    """Shards of ``shards/build_unlabelled.py``."""
    encoder: EncoderConfig = InceptSADConfig()
    objective: MaskedReconstructionConfig = MaskedReconstructionConfig()
    global_batch_size: int = Field(default=256, ge=1)
    """Windows per update, over all ranks and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Windows per forward pass of one rank; all of a rank's share when not given."""
    optim: OptimConfig = OptimConfig(lr=4e-4, betas=(0.9, 0.95), weight_decay=0.05)
    train: TrainConfig = TrainConfig()
    """Validation gives ``loss`` where the shards have a validation part."""
    report: PretrainReportConfig = PretrainReportConfig()
    engine: EngineConfig = EngineConfig()
