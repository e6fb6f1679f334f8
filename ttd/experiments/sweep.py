"""Configuration of ``ttd/sweep.py``: which settings are fitted, for which subjects and seeds, and how they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ttd.config import Config, merge, read_yaml
from ttd.experiments.eval import BinsConfig

WITHIN, LEFT_OUT = "within subject", "subject left out"
Mode = Literal["within subject", "subject left out"]


class Experiment(Config):
    """An experiment file and what differs from it."""

    config: Path
    fields: dict[str, Any] = Field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """The experiment as YAML holds it."""
        return merge(read_yaml(self.config), self.fields)


class Preparation(Experiment):
    """A command that comes before all fits and knows itself what it has finished."""

    script: Path


class Ridge(Config):
    """The pooled linear baseline."""

    name: Literal["ridge"] = "ridge"
    half_whitened: bool = True
    """The fair baseline; false is plain ridge."""
    target: str = "clip"
    """Name of the target in the shards."""
    bins: BinsConfig = BinsConfig()
    modes: tuple[Mode, ...] = ("within subject", "subject left out")


class Encoder(Config):
    """An encoder aligned by ``ttd/align.py``, on its own or from a pretraining of the same seed and subjects."""

    name: Literal["encoder"] = "encoder"
    align: Experiment
    pretrain: Experiment | None = None
    """Fitted first, on the same shards, seed and subjects; on the shards it names where it names some."""
    seeds: list[int] | None = None
    """Instead of the seeds of the sweep."""
    modes: tuple[Mode, ...] = ("within subject", "subject left out")


@dataclass(frozen=True)
class Fit:
    """One run folder: a setting, who is left out, a seed, and the experiments of its steps by the step's name."""

    setting: str
    left_out: str | None
    seed: int
    folder: Path
    steps: dict[str, dict[str, Any]]

    @property
    def mode(self) -> str:
        return WITHIN if self.left_out is None else LEFT_OUT


class SweepConfig(Config):
    output_dir: Path
    """Receives one folder per fit below ``fits/``, ``table.md`` and ``table.json``."""
    before: list[Preparation] = Field(default_factory=list)
    """Commands that make the shards, in their order."""
    shards: Path
    """Paired shards with train, validation and test part; the test part is opened, which its ledger counts."""
    settings: dict[str, Annotated[Ridge | Encoder, Field(discriminator="name")]]
    """What is compared, by the name that it gets in the table."""
    reference: str
    """The setting that every other one is compared with, picture by picture."""
    pairs: list[tuple[str, str]] = Field(default_factory=list)
    """More pairs of settings to compare: the first minus the second."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    subjects: list[str] = Field(default_factory=list)
    """Subjects each of whom is left out once; none: every model is trained on all subjects alone."""
    repetitions: tuple[int, ...] = (20, 4, 1)
    """How many test repetitions are averaged, one set of figures each."""
    ways: tuple[int, ...] = (50, 200)
    """Sizes of the gallery; a size beyond the number of test pictures becomes that number."""
    n_resamples: int = Field(default=2000, ge=100)
    """Draws of the bootstrap over pictures."""
    n_draws: int = Field(default=5, ge=1)
    """Re-pairings that each control is the mean of."""
    batch_size: int = Field(default=100, ge=1)
    bootstrap_seed: int = 0
    launch: Literal["here", "slurm"] = "here"
    """``here`` runs what is not finished, one after the other, and makes the table. ``slurm`` prepares, writes a job array
    with one task per fit, and stops; the command without it makes the table afterwards."""
    task: int | None = Field(default=None, ge=0)
    """Only the fit of this number, without preparation or table: a task of the job array."""

    @model_validator(mode="after")
    def _named(self) -> SweepConfig:
        for name in [self.reference, *(name for pair in self.pairs for name in pair)]:
            if name not in self.settings:
                raise ValueError(f"{name!r} is none of the settings {', '.join(self.settings)}")
        return self

    def modes(self, setting: str) -> list[str]:
        """In which modes a setting is fitted."""
        return [mode for mode in self.settings[setting].modes if mode == WITHIN or self.subjects]

    def who(self, setting: str) -> Iterator[str | None]:
        """Who is left out of each fit of a setting; None: nobody."""
        for mode in self.modes(setting):
            yield from [None] if mode == WITHIN else self.subjects

    def fits(self) -> list[Fit]:
        """Every fit that is a process of its own, those of one setting together."""
        out = []
        for name, setting in self.settings.items():
            if isinstance(setting, Encoder):
                for left_out in self.who(name):
                    out += [self._fit(name, setting, left_out, seed) for seed in setting.seeds or self.seeds]
        return out

    def folder(self, setting: str, left_out: str | None) -> Path:
        """Where the fits of a setting lie."""
        return self.output_dir / "fits" / setting.replace(" ", "_") / (f"without-{left_out}" if left_out else "all")

    def _fit(self, name: str, setting: Encoder, left_out: str | None, seed: int) -> Fit:
        folder = self.folder(name, left_out) / f"seed-{seed}"
        given = {"data": {"shards": str(self.shards)}}
        links: dict[str, Any] = {"seed": seed, "data": {"leave_out": [left_out] if left_out else []}}
        steps = {}
        align = merge(merge(setting.align.tree(), given), links)
        if setting.pretrain:
            tree = merge(merge(given, setting.pretrain.tree()), links)
            steps["pretrain"] = {**tree, "output_dir": str(folder / "pretrain")}
            align["pretrained"] = str(folder / "pretrain")
        steps["align"] = {**align, "output_dir": str(folder / "align")}
        return Fit(name, left_out, seed, folder, steps)
