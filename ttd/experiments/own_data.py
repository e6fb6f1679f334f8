"""Configuration of ``launch/own_data.py``: from one's own recordings to a report with one file.

The sections ``align`` to ``eval`` are those of the entries themselves; what one step hands to the next (folders, base,
target) is filled in by ``trees``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ttd.config import Config, explain, merge
from ttd.data.pairing import PartsConfig
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.preprocessing import PreprocessingConfig
from ttd.eeg.studies import StudyConfig

SCRIPTS = {
    "shards": "shards/build_paired.py",
    "targets": "shards/precompute_targets.py",
    "align": "ttd/align.py",
    "finetune": "ttd/finetune.py",
    "generate": "ttd/generate.py",
    "eval": "ttd/eval.py",
    "report": "ttd/report.py",
}
"""The steps in their order."""
SCHEMAS = {
    "shards": ("ttd.experiments.shards", "BuildPairedConfig"),
    "targets": ("ttd.experiments.targets", "TargetsConfig"),
    "align": ("ttd.experiments.align", "AlignConfig"),
    "finetune": ("ttd.experiments.finetune", "FinetuneConfig"),
    "generate": ("ttd.experiments.generate", "GenerateConfig"),
    "eval": ("ttd.experiments.eval", "EvalConfig"),
    "report": ("ttd.experiments.report", "ReportConfig"),
}
ASKED = ("align", "finetune", "generate", "eval")


def schema_of(step: str) -> type[Config]:
    """The configuration of a step's entry; imported late, since most of them need torch."""
    module, name = SCHEMAS[step]
    found: type[Config] = getattr(importlib.import_module(module), name)
    return found


class OwnDataConfig(Config):
    """Everything from recordings to report."""

    output_dir: Path
    """Receives one folder per step, and ``configs/`` with the whole experiment of each."""
    study: StudyConfig
    preprocessing: PreprocessingConfig
    epochs: EpochsConfig = EpochsConfig()
    parts: PartsConfig = PartsConfig()
    normalise: Literal["channel", "subject"] = "channel"
    base: str = "weights/tiny"
    """Folder or downloaded repository of the base model."""
    clip: str = "weights/tiny/clip"
    """Folder or downloaded repository of the CLIP model that EEG is aligned with."""
    image_size: int = Field(default=64, ge=8)
    """Pixels along one side of what the base draws."""
    align: dict[str, Any] = Field(default_factory=dict)
    """Fields of ttd/align.py."""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """Fields of ttd/finetune.py."""
    generate: dict[str, Any] = Field(default_factory=dict)
    """Fields of ttd/generate.py."""
    eval: dict[str, Any] = Field(default_factory=dict)
    """Fields of ttd/eval.py."""

    @classmethod
    def further_mistakes(cls, tree: dict) -> list[str]:
        """Mistakes in the fields of the steps; what is absent there, ``trees`` may still fill in."""
        lines = []
        for step in (step for step in ASKED if isinstance(tree.get(step), dict)):
            schema = schema_of(step)
            try:
                schema.model_validate(tree[step])
            except ValidationError as error:
                found = [m for m in error.errors() if m["type"] not in ("missing", "union_tag_not_found")]
                lines += [f"{step}.{line}" for line in explain(found, schema)]
        return lines

    def trees(self) -> dict[str, dict[str, Any]]:
        """The experiment of every step as YAML holds it: what the user asks of it, and over it what links the steps."""
        folder = {step: str(self.output_dir / step) for step in SCRIPTS}
        shards, base = folder["shards"], {"path": self.base}
        asked = self.model_dump(mode="json")
        title = getattr(self.study, "title", "") or "EEG to image"
        links: dict[str, dict[str, Any]] = {
            "shards": {key: asked[key] for key in ("study", "preprocessing", "epochs", "parts", "normalise")},
            "targets": {"shards": shards, "base": self.base, "clip": self.clip, "image_size": self.image_size},
            "align": {"data": {"shards": shards}},
            "finetune": {
                "start": {"name": "alignment", "run": folder["align"]},
                "data": {"shards": shards},
                "base": base,
            },
            "generate": {"finetune": folder["finetune"], "shards": shards, "base": base},
            "eval": {
                "shards": shards,
                "retrieval": {"run": folder["align"]},
                "pictures": {"runs": {"decoded": folder["generate"]}, "clip": self.clip},
            },
            "report": {"title": title, "shards": shards, "generate": {"decoded": folder["generate"]}}
            | {step: folder[step] for step in ("align", "finetune", "eval")},
        }
        places = {step: {} if step == "targets" else {"output_dir": folder[step]} for step in SCRIPTS}
        return {step: places[step] | merge(asked.get(step, {}), links[step]) for step in SCRIPTS}
