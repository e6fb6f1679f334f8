"""Configuration of ``ttd/train_lift.py``: the tiny lifter, trained on simulated scenes."""

from __future__ import annotations

from pathlib import Path

from ttd.config import Config
from ttd.geometry.sdf_training import SDFTrainingConfig


class TrainLiftConfig(Config):
    output_dir: Path
    """Run folder: the training state, ``log.jsonl`` and ``metrics.json``; the same command resumes."""
    weights: Path = Path("weights/tiny/lifter")
    """Where the finished lifter is written (config.json, model.safetensors)."""
    seed: int = 0
    """Seed of the scenes, the weights' start, the points and the spoiling."""
    n_scenes: int = 8000
    """Training scenes, each seen in both looks."""
    n_held_out: int = 64
    """Scenes of other seeds on which the figures of the model card are read."""
    training: SDFTrainingConfig = SDFTrainingConfig()
