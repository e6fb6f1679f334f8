"""Configuration of the report (``ttd/report.py``): which run folders one page is made of."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ttd.config import Config


class ReportConfig(Config):
    output_dir: Path
    """Receives ``index.html``."""
    seed: int = 0
    """Of nothing random so far; every entry has one."""
    title: str = "EEG to image"
    shards: Path
    """Folder of one study's shards; its training part gives the evoked responses."""
    pretrain: Path | None = None
    align: Path | None = None
    finetune: Path | None = None
    generate: dict[str, Path] = Field(default_factory=dict)
    """Generation runs by the name they have in the tables; the first one is shown next to the stimuli."""
    eval: Path | None = None
    lift: Path | None = None
    split: Path | None = None
    """The split manifest, beside which the ledger of the test part lies; None: ``<shards>/split.json``."""
    pairs_per_subject: int = Field(default=6, ge=1)
    """Pictures shown per subject: the first ones of the manifest, not chosen."""
    readme: Path | None = None
    """A README whose text between ``<!-- results -->`` and ``<!-- /results -->`` becomes the evaluation's table."""
    commands: list[str] = Field(default_factory=list)
    """Command lines that made the runs, printed at the end of the page."""
