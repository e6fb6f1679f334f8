"""Configuration of ``ttd/lift.py``: pictures → descriptions → meshes, and how near they are to the true ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ttd.config import Config
from ttd.engine.items import ItemsConfig
from ttd.geometry.camera import Camera
from ttd.geometry.describer import DescriberConfig
from ttd.geometry.lift_job import ScoringConfig
from ttd.geometry.lifters import LifterConfig
from ttd.geometry.refine import RefineConfig
from ttd.geometry.sdf_lifter import SDFLifterConfig

Route = Literal["plain", "refined", "composed"]


class LiftConfig(Config):
    output_dir: Path
    """Receives describe/, refine/, lift/ and score/, a folder per item in each, and lift.json."""
    seed: int = 0
    """Of what backends draw, of the points spread over the surfaces, of the re-paired control and of the intervals."""
    generate: Path | None = None
    """Run folder of ``ttd/generate.py``: the decoded pictures, beside each the one that was shown."""
    pictures: Path | None = None
    """Instead, a folder of pictures of your own (png, jpg)."""
    study: Path | None = None
    """The simulated study, whose ``stimuli/scenes.json`` knows the true solids; null where nobody knows them."""
    subject: str | None = None
    """Whose decoded pictures; the first subject of the manifest when not given."""
    n_items: int | None = Field(default=None, ge=2)
    """Pictures lifted, of a generation run each as shown and as decoded: the first ones; all when not given."""
    describe: DescriberConfig | None = None
    """The vision-language model that describes each picture; null leaves the phase out."""
    refine: RefineConfig | None = None
    """Text-conditioned SDXL that draws the route "refined"."""
    lifter: LifterConfig = SDFLifterConfig()
    """``name``: ttd_sdf, shap_e, depth, external or oracle."""
    routes: tuple[Route, ...] = ("plain",)
    """plain: the picture is lifted. refined: the picture drawn again under its description is. composed: each described object
    is lifted by itself and put where it is described."""
    camera: Camera | None = None
    """Of composition, where the lifter was not trained for one."""
    scoring: ScoringConfig = ScoringConfig()
    items: ItemsConfig = ItemsConfig()
    """How the work is spread over processes."""

    @model_validator(mode="after")
    def _belongs_together(self) -> LiftConfig:
        if (self.generate is None) == (self.pictures is None):
            raise ValueError("give generate (a generation run) or pictures (a folder), one of the two")
        if "refined" in self.routes and (self.refine is None or self.describe is None):
            raise ValueError("routes: refined needs describe and refine")
        if "composed" in self.routes and self.describe is None:
            raise ValueError("routes: composed needs describe")
        return self
