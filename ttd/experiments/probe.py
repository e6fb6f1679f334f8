"""Configuration of ``ttd/probe.py``: how well aligned encoders tell two classes of epochs apart, recording by recording."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from ttd.config import Config


class ProbeConfig(Config):
    output_dir: Path
    """Receives probe.json and table.md."""
    seed: int = 0
    folds: dict[str, Path] = Field(min_length=1)
    """Name of the left-out recording → its paired shards, whose test part is that recording."""
    aligned: dict[str, Path]
    """The same names → run folders of ``ttd/align.py`` that were trained without that recording."""
    unrejected: dict[str, Path] = Field(default={})
    """The same names → the same shards without rejection of artefacts, for the baseline's second row."""
    positive: str = "target"
    """Label of the class that should score higher."""

    @model_validator(mode="after")
    def _same_names(self) -> ProbeConfig:
        for field in ("aligned", "unrejected"):
            names = set(getattr(self, field))
            if names and names != set(self.folds):
                raise ValueError(
                    f"{field} and folds must have the same names; they differ in {names ^ set(self.folds)}"
                )
        return self
