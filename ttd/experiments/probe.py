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
    """Run of the left-out recording → its paired shards, whose test part is that recording."""
    aligned: dict[str, Path]
    """The same runs → run folders of ``ttd/align.py`` that were trained without that recording."""
    unrejected: Path | None = None
    """Paired shards of all these recordings, in any split, without rejection of artefacts: the baseline once more."""
    positive: str = "target"
    """Label of the class that should score higher."""

    @model_validator(mode="after")
    def _same_names(self) -> ProbeConfig:
        odd = set(self.aligned) ^ set(self.folds)
        if odd:
            raise ValueError(f"aligned and folds must have the same names; they differ in {', '.join(sorted(odd))}")
        return self
