"""Configuration of ``ttd/align.py``: alignment of an encoder with CLIP's image embeddings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ttd.config import Config
from ttd.data.stream import DataConfig
from ttd.encoders import EncoderConfig, InceptSADConfig
from ttd.engine.accelerator import EngineConfig
from ttd.engine.loop import TrainConfig
from ttd.engine.schedules import OptimConfig
from ttd.objectives.contrastive import ContrastiveConfig


class RetrievalValidation(Config):
    """How the validation part is scored: mean over subjects of top-1 and top-5 in a random gallery."""

    ways: int = Field(default=50, ge=6)
    """Pictures in the gallery; all of the part's where it has fewer."""
    n_repetitions: int = Field(default=4, ge=1)
    """Presentations averaged into one epoch."""
    batch_size: int = Field(default=200, ge=1)


class AlignConfig(Config):
    output_dir: Path
    seed: int = 0
    data: DataConfig
    """Paired shards with the target that ``objective.target`` names; ``data.targets`` need not name it."""
    encoder: EncoderConfig = InceptSADConfig()
    """A new encoder; not used where ``pretrained`` is given."""
    pretrained: Path | None = None
    """Run folder of ``ttd/pretrain.py``; its encoder moves to this cap by electrode name and is trained on."""
    objective: ContrastiveConfig = ContrastiveConfig()
    global_batch_size: int = Field(default=512, ge=2)
    """Samples that are compared with each other, over all ranks; accumulation is refused."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Must be the rank's whole share; all of it when not given."""
    optim: OptimConfig = OptimConfig(lr=1e-3, weight_decay=0.05, warmup_steps=100)
    train: TrainConfig = TrainConfig(select="top1")
    """Validation gives ``top1``, ``top5``, ``cosine`` (to the own picture) and ``chance`` (of top1)."""
    validation: RetrievalValidation = RetrievalValidation()
    engine: EngineConfig = EngineConfig()
