"""Configuration of ``ttd/train_lift.py``: the tiny lifter, the tiny describer or both, trained on simulated scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

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


TERMS = {"lifter": ("representation", "image"), "describer": ("description",)}
"""The terms of the loss that each component has."""
TERMS["joint"] = (*TERMS["lifter"], *TERMS["describer"])
DEFAULT_TERMS = {"representation": 1.0, "image": 1.0, "description": 0.5}


class TermsConfig(Config):
    """Weights of the terms of the loss: 0 switches one off, null is 1 / 1 / 0.5 where the component has the term.

    The defaults are Brain3D's: 1 for the image, 0.5 for the description, 1 for the representation.
    """

    representation: float | None = Field(default=None, ge=0)
    """Of the lifter: signed distance at points of the scene, and colour near the surface."""
    image: float | None = Field(default=None, ge=0)
    """Of the lifter: silhouette and colour of the field in the camera of the picture, against the clean picture."""
    description: float | None = Field(default=None, ge=0)
    """Of the describer: cross-entropy of the words, and of what each patch shows."""


class TrainLiftConfig(Config):
    output_dir: Path
    """Run folder: the training state, ``log.jsonl`` and ``metrics.json``; the same command resumes."""
    component: Literal["lifter", "describer", "joint"] = "lifter"
    """What is trained: picture → mesh, picture → words, or both at once on one vision tower."""
    weights: Path = Path("weights/tiny/lifter")
    """Where the finished model is written, as it is loaded; ``joint`` writes lifter/ and describer/ below it."""
    seed: int = 0
    """Seed of the scenes, the weights' start, the points and the spoiling."""
    n_scenes: int = Field(default=8000, ge=1)
    """Training scenes, each seen in both looks."""
    n_held_out: int = Field(default=64, ge=2)
    """Scenes of other seeds on which the figures of the model card are read."""
    vae: Path | None = None
    """Folder of an ``AutoencoderKL``; half of the spoilt pictures go through it and back first, as decoded ones did."""
    start: Path | None = None
    """Folder of a lifter whose weights the training of a lifter goes on from; null starts from fresh ones."""
    terms: TermsConfig = TermsConfig()
    training: SDFTrainingConfig = SDFTrainingConfig()
    """Of the lifter; of ``joint`` its points and rays alone."""
    describer: DescriberTrainingConfig = DescriberTrainingConfig()
    """Of the describer, and the two stages of ``joint``."""

    @property
    def loss_terms(self) -> dict[str, float]:
        """Weight of each term that the component has."""
        given = self.terms.model_dump()
        return {name: DEFAULT_TERMS[name] if given[name] is None else given[name] for name in TERMS[self.component]}

    @model_validator(mode="after")
    def _belongs_together(self) -> TrainLiftConfig:
        for name, weight in self.terms.model_dump().items():
            if weight and name not in TERMS[self.component]:
                known = ", ".join(TERMS[self.component])
                raise ValueError(
                    f"terms.{name}: {weight:g}, but {self.component} has the terms {known} alone; remove it"
                )
        if not any(self.loss_terms.values()):
            raise ValueError(f"terms: every weight of {self.component} is 0, so there is nothing to learn")
        if self.component != "lifter" and self.weights == Path("weights/tiny/lifter"):
            raise ValueError(f"weights: {self.weights} is the lifter's; give {self.component} a folder of its own")
        if self.component != "lifter" and self.start is not None:
            raise ValueError(f"start: a lifter's weights; {self.component} has none to go on from; remove it")
        if self.component == "joint" and self.describer.start is not None:
            raise ValueError("describer.start: joint trains the tiny models from fresh weights alone; remove it")
        return self
