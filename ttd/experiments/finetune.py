"""Configuration of ``ttd/finetune.py``: conditioning bridge and adapters, or the UNet's cross-attention, on paired shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ttd.bridge.conditioner import ConditionerConfig, PerceiverConditionerConfig
from ttd.bridge.heads import ClipHeadConfig
from ttd.config import Config
from ttd.data.stream import DataConfig
from ttd.diffusion.base import BaseConfig
from ttd.diffusion.lora import LoRAConfig
from ttd.diffusion.sampler import SamplerConfig
from ttd.encoders import EncoderConfig, InceptSADConfig
from ttd.engine.accelerator import EngineConfig
from ttd.engine.loop import TrainConfig
from ttd.engine.schedules import OptimConfig
from ttd.objectives.conditional_diffusion import ConditionalDiffusionConfig


class FromAlignment(Config):
    """Encoder and CLIP head as alignment exported them."""

    name: Literal["alignment"] = "alignment"
    run: Path
    """Run folder of ``ttd/align.py``."""


class FromScratch(Config):
    """A new CLIP head on a new or a pretrained encoder: the original's way, which has no alignment stage."""

    name: Literal["scratch"] = "scratch"
    encoder: EncoderConfig = InceptSADConfig()
    """Taken from ``pretrained`` where that is given."""
    pretrained: Path | None = None
    """Run folder of ``ttd/pretrain.py``; weights move to this cap by electrode name."""
    clip_head: ClipHeadConfig = ClipHeadConfig()


class SamplesConfig(Config):
    """Pictures drawn at every validation from the EEG of the validation part, each below the one that was shown: the same ones
    each time and from the same first noise, so that their grids compare. They change nothing in what is learned."""

    n: int = Field(default=8, ge=0)
    """How many; 0 draws none."""
    sampler: SamplerConfig = SamplerConfig(steps=10)
    """Fewer steps than a finished picture gets, for a look in passing."""


class FinetuneConfig(Config):
    output_dir: Path
    seed: int = 0
    start: Annotated[FromAlignment | FromScratch, Field(discriminator="name")]
    """Where encoder and CLIP head come from."""
    data: DataConfig
    """Paired shards with the targets clip, vae, vae.size-ids and, for words, text; ``data.targets`` need not name them."""
    global_batch_size: int = Field(default=32, ge=1)
    """Samples per update, over all ranks and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Samples per forward pass of one rank; when not given, as its memory allows (``ttd.diffusion.memory``)."""
    base: BaseConfig = BaseConfig()
    lora: LoRAConfig = LoRAConfig()
    cross_attention: bool = False
    """Train the UNet's own cross-attention and the norms before it instead of adapters (lora.rank=0), as DreamDiffusion does."""
    conditioner: ConditionerConfig = PerceiverConditionerConfig()
    objective: ConditionalDiffusionConfig = ConditionalDiffusionConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig(select="diffusion", select_mode="min")
    """Validation gives the losses on the validation part, with the same noise each time."""
    samples: SamplesConfig = SamplesConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _fits(self) -> FinetuneConfig:
        if self.cross_attention and self.lora.rank:
            raise ValueError("cross_attention: is trained instead of adapters; give lora.rank=0 as well")
        if self.cross_attention and self.base.dtype != "float32":
            raise ValueError(
                f"cross_attention: trains the base's own weights, which base.dtype={self.base.dtype} would round; give float32 "
                "(half-precision arithmetic is engine.mixed_precision)"
            )
        if self.objective.text_weight and self.base.name == "sd15":
            raise ValueError(
                "objective.text_weight: the base's words are made for SDXL (target text); give 0 with base.name=sd15"
            )
        return self
