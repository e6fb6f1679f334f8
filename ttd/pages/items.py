"""What the gallery shows: every picture that was shown, beside what each run and each control made of it, with scores.

Runs are joined by (subject, picture), scores by (run, key) with the ``items.jsonl`` of an evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttd.config import UserError
from ttd.metrics.catalogue import METRICS
from ttd.metrics.manifest import CONTROL_NAMES, read_manifest
from ttd.seeding import numpy_rng

FILE = "items.jsonl"

PREFERRED = ("two_way_clip_l", "two_way_clip", "two_way_judge", "pixcorr", "ssim", "mse")
"""The score that picks examples is the first of these that was measured: what a picture shows before its pixels."""

AT_RANDOM = 3


@dataclass(frozen=True)
class Cell:
    """One generated picture: of a run, or of a control of the first run."""

    label: str
    path: Path
    scores: dict[str, float] = field(default_factory=dict)
    named: str = ""
    """What the judge calls it."""
    samples: int = 1
    """Pictures that were kept; this is the first, scores are means over all."""


@dataclass(frozen=True)
class Item:
    """One picture as one subject saw it; ``cells`` in the order of the runs, then the controls."""

    order: int
    subject: str
    image_id: str
    concept: str
    repetitions: int
    shown: Path
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        return self.concept.replace("_", " ") or self.image_id

    def score(self, metric: str) -> float:
        """Of the first run; not a number where it was not measured."""
        return self.cells[0].scores.get(metric, math.nan)


def read_scores(evaluation: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of ``items.jsonl`` by (run, key); empty where the evaluation left none.

    Raises:
        UserError: a line that is no item.
    """
    path = evaluation / FILE if evaluation else None
    if path is None or not path.is_file():
        return {}
    lines = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            line["scores"] = {k: float(v) for k, v in line["scores"].items() if k in METRICS and v is not None}
            lines[str(line["run"]), str(line["key"])] = line
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: not an item ({error!r}); run ttd/eval.py again") from error
    return lines


def read_items(runs: Mapping[str, Path], evaluation: Path | None) -> list[Item]:
    """One item per subject and picture of the first run, in the order of its manifest.

    Raises:
        UserError: a manifest or ``items.jsonl`` that cannot be read.
    """
    scores = read_scores(evaluation)
    manifests = {name: read_manifest(folder) for name, folder in runs.items()}
    first = next(iter(manifests))
    place = {
        (name, str(line["subject"]), line["image_sha256"], line["control"]): line
        for name, lines in manifests.items()
        for line in reversed(lines)
    }
    wanted: list[tuple[str, str | None, str]] = [(name, None, name) for name in manifests]
    wanted += [(first, control, label) for control, label in CONTROL_NAMES.items()]
    items: dict[tuple[str, str], Item] = {}
    for line in manifests[first]:
        subject, sha = str(line["subject"]), line["image_sha256"]
        if line["control"] is not None or (subject, sha) in items:
            continue
        cells = []
        for name, control, label in wanted:
            made = place.get((name, subject, sha, control))
            if made:
                measured = scores.get((name, str(made["key"])), {})
                cells.append(Cell(
                    label, made["path"], measured.get("scores", {}), words(measured.get("named")),
                    int(measured.get("samples", 1)),
                ))  # fmt: skip
        items[subject, sha] = Item(
            len(items), subject, str(line["image_id"] or sha[:12]), str(line.get("concept") or ""),
            int(line["n_repetitions"]), line["shown_path"], tuple(cells),
        )  # fmt: skip
    return list(items.values())


def words(named: Mapping[str, Any] | None) -> str:
    """``{"kind": "sphere", "colour": "green"}`` as "green sphere"."""
    named = named or {}
    return " ".join(str(named[k]) for k in ("colour", "kind") if named.get(k))


def metrics_of(items: list[Item]) -> list[str]:
    """Every score that some cell has, in the order of ``METRICS``."""
    present = {name for item in items for cell in item.cells for name in cell.scores}
    return [name for name in METRICS if name in present]


def picks(items: list[Item], metric: str | None, *, seed: int) -> list[tuple[str, Item]]:
    """Best, median and worst by a score of the first run, and three drawn by the seed; without a score only these.

    Items of equal score stand in the order of the manifest.
    """
    chosen = []
    scored = [item for item in items if metric and not math.isnan(item.score(metric))]
    if metric and scored:
        sign = -1 if METRICS[metric].direction == "higher" else 1
        ranked = sorted(scored, key=lambda item: (sign * item.score(metric), item.order))
        chosen = [("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])]
    drawn = numpy_rng(seed, "report items").permutation(len(items))[:AT_RANDOM]
    return chosen + [("random", items[int(i)]) for i in drawn]
