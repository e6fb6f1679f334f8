"""Configuration of the report (``ttd/report.py``): which run folders one page is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config


class ReportConfig(Config):
    output_dir: Path
    """Becomes the report: ``index.html`` and what it shows. An earlier report is replaced, anything else is refused."""
    seed: int = 0
    """Draws the random examples, and the bootstraps of figures."""
    title: str = "EEG to image"
    shards: Path
    """Folder of one study's shards; its training part gives the evoked responses."""
    pretrain: Path | None = None
    align: Path | None = None
    finetune: Path | None = None
    generate: dict[str, Path] = Field(default_factory=dict)
    """Generation runs by the name they have in the tables; each is a column of the gallery, the first one has its controls
    beside it and gives the score that picks examples."""
    eval: Path | None = None
    lift: Path | None = None
    split: Path | None = None
    """The split manifest, beside which the ledger of the test part lies; None: ``<shards>/split.json``."""
    stimuli: Literal["show", "leave_out"] = "show"
    """``show``: pictures that were shown are in the report, marked "not for republication" unless the study is simulated
    or its licence frees its pictures. ``leave_out``: their names stand in their places, so that the folder can be handed on."""
    readme: Path | None = None
    """A README whose text between ``<!-- results -->`` and ``<!-- /results -->`` becomes the evaluation's table."""
    commands: list[str] = Field(default_factory=list)
    """Command lines that made the runs, printed at the end of the page."""
