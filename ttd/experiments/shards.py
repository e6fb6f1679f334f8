"""Configuration of ``shards/build_paired.py``, ``shards/build_unlabelled.py`` and ``shards/merge.py``.

One YAML file is one set of shards: the study, how its recordings are cleaned, which pieces become samples, and which
part of the split each belongs to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ttd.config import Config
from ttd.data.pairing import PartsConfig
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.preprocessing import PreprocessingConfig
from ttd.eeg.studies import StudyConfig


class BuildPairedConfig(Config):
    """Epochs paired with the picture that was seen."""

    output_dir: Path
    """Receives train/, validation/, test/, images/ and split.json."""
    study: StudyConfig
    preprocessing: PreprocessingConfig
    epochs: EpochsConfig = EpochsConfig()
    parts: PartsConfig = PartsConfig()
    normalise: Literal["channel", "subject"] = "channel"
    """``channel``: z-score by the training part. ``subject``: then whiten each subject's channels by the covariance of its
    training repetitions and take away its mean response (multivariate noise normalisation); needs repetitions."""
    only_subjects: list[str] | None = Field(default=None, min_length=1)
    """Build a portion of the study, these subjects alone; ``shards/merge.py`` joins all portions into what null would have
    built.
    A portion cannot be trained on. To leave subjects out for good, see the study's own field."""
    samples_per_shard: int = Field(default=512, ge=1)


class WindowsConfig(Config):
    """Continuous pieces of the recordings."""

    n_times: int = Field(default=512, ge=2)
    """Samples of a window at the rate of the chain."""
    stride: dict[Literal["train", "validation", "test"], int] = Field(default_factory=dict)
    """Samples from one window to the next, per part; n_times (no overlap) where a part is not named."""
    max_windows: int | None = Field(default=None, ge=1)
    """At most this many windows per part, the first ones of each recording in equal numbers; all where null."""


class BuildUnlabelledConfig(Config):
    """Windows without labels, for pretraining."""

    output_dir: Path
    """Receives one folder per part."""
    study: StudyConfig
    preprocessing: PreprocessingConfig
    windows: WindowsConfig = WindowsConfig()
    runs: dict[Literal["train", "validation", "test"], list[str]]
    """Which runs belong to each part; a run that is not named is left out. ``"*"`` means every run."""
    only_part: Literal["train", "validation", "test"] | None = None
    """Restrict every recording to the stretch between its first and last event of this part of the study; stored epochs to
    those of the part."""
    only_subjects: list[str] | None = Field(default=None, min_length=1)
    """Build a portion of the study, these subjects alone; ``shards/merge.py`` joins all portions into what null would have
    built.
    A portion cannot be trained on. To leave subjects out for good, see the study's own field."""
    samples_per_shard: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _training_is_there(self) -> BuildUnlabelledConfig:
        if not self.runs.get("train"):
            raise ValueError("runs.train must name at least one run: the statistics come from there")
        named = [run for runs in self.runs.values() for run in runs]
        twice = sorted({run for run in named if named.count(run) > 1})
        if twice or ("*" in named and len(named) > 1):
            raise ValueError(f"a run may belong to one part only ({', '.join(twice) or '*'})")
        return self


class MergeConfig(Config):
    """Portions of one study, built by one configuration but for ``only_subjects``."""

    inputs: Path
    """Holds the portions, one folder each."""
    output_dir: Path
    """Receives what one build of the whole study would have made; not inside ``inputs``, nor around it."""
