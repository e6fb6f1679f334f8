"""Configuration of ``ttd/lift.py``: pictures to meshes, and how near they are to the true ones."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ttd.config import Config
from ttd.engine.items import ItemsConfig
from ttd.geometry.lift_job import ScoringConfig
from ttd.geometry.sdf_lifter import SDFLifterConfig


class LiftConfig(Config):
    output_dir: Path
    """Receives items/<item>_<input>/ and lift.json."""
    seed: int = 0
    """Of the points spread over the surfaces, of the re-paired control and of the intervals."""
    generate: Path
    """Run folder of ``ttd/generate.py``: the decoded pictures, beside each the one that was shown."""
    study: Path
    """The simulated study, whose ``stimuli/scenes.json`` knows the true solids."""
    subject: str | None = None
    """Whose decoded pictures; the first subject of the manifest when not given."""
    n_items: int = Field(default=40, ge=2)
    """Pictures lifted, each as shown and as decoded: the first ones of the manifest."""
    lifter: SDFLifterConfig = SDFLifterConfig()
    scoring: ScoringConfig = ScoringConfig()
    items: ItemsConfig = ItemsConfig()
    """How the work is spread over processes."""
