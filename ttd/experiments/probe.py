"""Configuration of ``ttd/probe.py``: which labelled epochs, which classifiers, what is left out, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ttd.baselines.classifiers import BandPowerConfig, LDAConfig, RidgeConfig
from ttd.config import Config
from ttd.data.labelled import LabelledConfig
from ttd.objectives.inceptsadnet import InceptSADNetConfig
from ttd.objectives.probing import LinearProbeConfig, NetworkConfig


class AlignedConfig(Config):
    """Encoders of ``ttd/align.py`` as they are, one per group left out. An epoch's score is the cosine of its embedding to
    the mean positive embedding of the training part minus that to the mean negative one."""

    name: Literal["aligned"] = "aligned"
    shards: dict[str, Path] = Field(min_length=1)
    """Group → its paired shards, whose test part is that group."""
    runs: dict[str, Path]
    """The same groups → run folders of ``ttd/align.py`` that were trained without it."""

    @model_validator(mode="after")
    def _same_names(self) -> AlignedConfig:
        odd = set(self.runs) ^ set(self.shards)
        if odd:
            raise ValueError(f"runs and shards must have the same names; they differ in {', '.join(sorted(odd))}")
        return self


ClassifierConfig = Annotated[
    LDAConfig | RidgeConfig | BandPowerConfig | LinearProbeConfig | NetworkConfig | InceptSADNetConfig | AlignedConfig,
    Field(discriminator="name"),
]


class ProbedConfig(Config):
    """One classifier, and how it is scored."""

    classifier: ClassifierConfig
    data: list[str] = Field(default_factory=list)
    """Names under ``data``; all of them where empty."""
    folds: int | None = Field(default=None, ge=2)
    """Groups are left out together in so many folds; each alone where null."""
    inner_folds: int = Field(default=5, ge=2)
    """Folds of the training groups in which settings are chosen, where there are several."""
    permuted_fits: int = Field(default=10, ge=0)
    """How often everything is fitted again on permuted labels, for the control."""


class DifferenceConfig(Config):
    """Row ``a`` minus row ``b``, each given as [model, data]."""

    a: tuple[str, str]
    b: tuple[str, str]


class ProbeConfig(Config):
    output_dir: Path
    """Receives probe.json and table.md."""
    seed: int = 0
    data: dict[str, LabelledConfig] = Field(min_length=1)
    """Name → labelled epochs."""
    models: dict[str, ProbedConfig] = Field(min_length=1)
    """Name → classifier."""
    metric: Literal["auc", "accuracy"] = "auc"
    """``auc``: of two classes. ``accuracy``: share of epochs named rightly."""
    positive: str | None = None
    """Label of the class that should score higher; the last in the alphabet where null."""
    interval: Literal["epochs", "groups"] = "epochs"
    """What the mean's interval speaks about: other epochs of these groups, or other groups (subjects)."""
    differences: dict[str, DifferenceConfig] = Field(default_factory=dict)
    """Name → two rows whose groups are compared one by one."""

    def pairs(self) -> list[tuple[str, str]]:
        """Every [model, data] that is scored, in order."""
        return [(name, on) for name, probed in self.models.items() for on in probed.data or self.data]

    @model_validator(mode="after")
    def _names_exist(self) -> ProbeConfig:
        unknown = sorted({on for _, on in self.pairs()} - set(self.data))
        if unknown:
            raise ValueError(f"models: no data is called {', '.join(unknown)}; there are {', '.join(self.data)}")
        for name, difference in self.differences.items():
            for pair in (difference.a, difference.b):
                if pair not in self.pairs():
                    raise ValueError(f"differences.{name}: {list(pair)} is not scored")
        aligned = [name for name, probed in self.models.items() if isinstance(probed.classifier, AlignedConfig)]
        if aligned and self.metric != "auc":
            raise ValueError(f"models.{aligned[0]}: aligned encoders give scores of two classes; take metric auc")
        for name in aligned:
            if len([on for model, on in self.pairs() if model == name]) != 1:
                raise ValueError(f"models.{name}.data: name the one data set that its own shards hold")
        return self
