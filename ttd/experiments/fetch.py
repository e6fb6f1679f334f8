"""Configuration of ``shards/fetch.py``: where a study's files lie, under which licence, and which of them are wanted."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from ttd.config import Config
from ttd.eeg.listings import Source


class FetchConfig(Config):
    root: Path
    """Receives the files; what ``study.root`` of the shards' configuration names."""
    title: str
    """Author and year of the study, as Grootswagers2022."""
    citation: str
    licence: str
    sources: dict[str, Source] = Field(min_length=1)
    """The study's parts by name, each with the server that holds it."""
    take: list[str] | None = None
    """Which of the sources; all where null."""
    subjects: list[int] | None = None
    """Whose files: plain numbers without leading zeros, as [1, 2, 10]; everybody's where null."""
    size: str = ""
    """What is known of the size beforehand, in words; the listings say it exactly."""
    note: str = ""
    """What is to be known before or after, printed with the licence."""

    @model_validator(mode="after")
    def _known(self) -> FetchConfig:
        unknown = sorted(set(self.take or []) - set(self.sources))
        if unknown:
            raise ValueError(f"take: no source is called {', '.join(unknown)}; there are {', '.join(self.sources)}")
        return self
