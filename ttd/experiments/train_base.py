"""Configuration of ``ttd/train_base.py``: the tiny base models of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ttd.config import Config


class BaseDataConfig(Config):
    """How many scenes of each look, and how many of them hold one solid."""

    n_base: int = 14_000
    n_study: int = 7_000
    single_fraction: float = 0.6


class FitConfig(Config):
    """Length and step size of one base model's training."""

    steps: int
    batch_size: int
    lr: float
    warmup: int = 100
    weight_decay: float = 1e-2
    ema: float = 0.0
    """Decay of the exponential moving average of the weights that is kept as the result; 0 keeps the last weights."""


class TrainBaseConfig(Config):
    """One run trains VAE, CLIP, judge and UNet in this order and writes them as a folder of diffusers."""

    output_dir: Path
    """Run folder: rendered pictures, training states, log.jsonl."""
    export_dir: Path = Path("weights/tiny")
    """Where the half-precision models go."""
    base: Literal["sdxl", "sd15"] = "sdxl"
    """Whose interface the UNet has: Stable Diffusion XL's, or 1.5's."""
    parts_dir: Path | None = None
    """Folder with the VAE, CLIP and judge that are used as they are, where the stages do not train them; without it
    ``export_dir``."""
    seed: int = 0
    data: BaseDataConfig = BaseDataConfig()
    vae: FitConfig = FitConfig(steps=3000, batch_size=16, lr=2.5e-3, weight_decay=1e-3, ema=0.995)
    clip: FitConfig = FitConfig(steps=1300, batch_size=96, lr=1.5e-3, weight_decay=2e-2, ema=0.995)
    judge: FitConfig = FitConfig(steps=1200, batch_size=64, lr=2e-3, weight_decay=1e-2, ema=0.99)
    unet: FitConfig = FitConfig(steps=9000, batch_size=32, lr=1.2e-3, weight_decay=1e-2, ema=0.999)
    stages: tuple[str, ...] = ("vae", "clip", "judge", "unet", "report")
    """Which of them to run."""
    n_evaluation: int = 200
    """Unseen scenes behind each figure of the model card."""
    sampling_seeds: int = 3
