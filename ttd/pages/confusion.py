"""What was taken for what: words for the generated picture, or for the nearest one, against those for the seen one.

Rows are what was seen and add up to 1, so the diagonal is the share that was named rightly; counts stand in the cells.

Shapes: K names, n items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, no window

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ttd.metrics.manifest import read_lines
from ttd.metrics.uncertainty import repaired
from ttd.pages import neighbours, page

FILE = "items.jsonl"
FIELDS = ("run", "control", "named", "true")

MAX_CONCEPTS = 30
"""Names at most: the cells of a larger matrix are too small for a number on a phone."""

SMALL = 10
"""Names up to which two matrices stand side by side, each at a size that a phone shows legibly."""

WHITE_ABOVE = 0.68
"""Share from which white has more contrast with the cell's blue than the ink of the page has."""


@dataclass(frozen=True)
class Confusion:
    """Counts [K, K] of what was named (columns) by what was seen (rows), both in the order of ``names`` [K]."""

    names: list[str]
    counts: np.ndarray

    @classmethod
    def of(cls, true: list[str], named: list[str]) -> Confusion:
        """Count pairs.

        Raises:
            ValueError: the lists differ in length, or are empty.
        """
        if len(true) != len(named) or not true:
            raise ValueError(f"need as many names as truths and at least one, got {len(named)} and {len(true)}")
        names = sorted({*true, *named})
        row = {name: i for i, name in enumerate(names)}
        counts = np.zeros((len(names), len(names)), int)
        np.add.at(counts, ([row[t] for t in true], [row[n] for n in named]), 1)
        return cls(names, counts)

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of items that were named rightly."""
        return float(np.trace(self.counts) / self.n)

    @property
    def shares(self) -> np.ndarray:
        """Each row as shares [K, K]; 0 in the row of a name that was never seen."""
        return self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)

    @property
    def chance(self) -> float:
        """1 / the number of names that were seen, as in the table of results."""
        return float(1 / (self.counts.sum(1) > 0).sum())

    @property
    def independent(self) -> float:
        """Expected accuracy if words and pictures had nothing to do with each other, but each kept its totals.

        Chance agreement of Cohen (1960, Educational and Psychological Measurement 20:37-46): above ``chance`` where the
        names that are seen often are said often as well.
        """
        return float(self.counts.sum(0) @ self.counts.sum(1) / self.n**2)

    @property
    def worst(self) -> tuple[str, str, int, int] | None:
        """The most frequent confusion: seen, named instead, how often, and of how many; None where there is none."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        if not wrong.any():
            return None
        seen, named = np.unravel_index(wrong.argmax(), wrong.shape)
        return self.names[seen], self.names[named], int(wrong[seen, named]), int(self.counts[seen].sum())


def section(evaluation: Path, *, seed: int = 0) -> list[str]:
    """Matrices of the judge's words for the first run and its control; without words, of concepts in retrieval.

    Raises:
        UserError: a file of the evaluation is there but damaged.
    """
    path = Path(evaluation) / FILE
    items = read_lines(path, FIELDS, remedy=neighbours.AGAIN) if path.is_file() else []
    items = [item for item in items if item["run"] == items[0]["run"] and item["named"] and item["true"]]
    real = [item for item in items if item["control"] is None]
    if not real:
        return concepts(evaluation, seed=seed)
    shuffled = [item for item in items if item["control"] == "shuffled"]
    out = [
        page.paragraph(
            f"Pictures of the run “{real[0]['run']}” as a classifier that took no part in training names them. Rows: what "
            "was seen; columns: what the generated picture is named. Colour: share of the row; number: pictures. Beside "
            "it the control, generated from the EEG of another picture: a column that is dark there too is what the "
            "image model draws anyway."
        )
    ]
    for what in [w for w in real[0]["true"] if w in real[0]["named"]]:
        own = Confusion.of(*_words(real, what))
        other = Confusion.of(*_words(shuffled, what)) if shuffled else None
        out += pair(what, own, other, "wrong EEG")
    return out


def _words(items: list[dict[str, Any]], what: str) -> tuple[list[str], list[str]]:
    return [str(item["true"][what]) for item in items], [str(item["named"][what]) for item in items]


def concepts(evaluation: Path, *, seed: int) -> list[str]:
    """The concept of the nearest picture of the gallery against the one seen, for at most ``MAX_CONCEPTS`` concepts."""
    path = Path(evaluation) / neighbours.FILE
    records = read_lines(path, neighbours.FIELDS, remedy=neighbours.AGAIN) if path.is_file() else []
    records = [r for r in records if r["model"] == records[0]["model"] and r.get("concept") and r["nearest"]]
    names = {r["concept"] for r in records}
    if not names:
        return [page.missing("confusion: no run whose pictures were named, and no concepts in retrieval")]
    if len(names) > MAX_CONCEPTS:
        return [page.missing(f"confusion: {len(names)} concepts are too many to be drawn (at most {MAX_CONCEPTS})")]
    true, nearest = [r["concept"] for r in records], [r["nearest"][0]["concept"] or "none" for r in records]
    pictures, own = np.unique([r["image_sha256"] for r in records], return_inverse=True)
    concept_of = dict(zip(own.tolist(), true, strict=True))
    control = None
    if len(pictures) > 1:
        control = Confusion.of([concept_of[i] for i in repaired(own, seed=seed).tolist()], nearest)
    text = (
        f"Concept of the picture that the {records[0]['model']} finds nearest. Rows: what was seen; columns: concept of the "
        "nearest picture of the gallery. Colour: share of the row; number: epochs. Beside it the control, in which every "
        "EEG stands for another picture than its own."
    )
    return [page.paragraph(text), *pair("concept", Confusion.of(true, nearest), control, "re-paired control")]


def pair(what: str, own: Confusion, control: Confusion | None, control_name: str) -> list[str]:
    """Heading and two matrices side by side, each with its accuracy and most frequent confusion in words."""
    drawn = drawing(own, f"{what}, EEG of the picture")
    if control is None:
        return [f"<h3>{what.capitalize()}</h3>", drawn, page.missing(f"{what}: no control was generated")]
    drawn += drawing(control, f"{what}, {control_name}")
    small = len(own.names) <= SMALL
    return [f"<h3>{what.capitalize()}</h3>", f'<div class="grid wide">{drawn}</div>' if small else drawn]


def drawing(confusion: Confusion, title: str) -> str:
    """One matrix with its words below it and in its alternative text."""
    said = (
        f"{100 * confusion.accuracy:.1f} % of {confusion.n} named rightly, chance {100 * confusion.chance:.1f} % "
        f"(1 of {round(1 / confusion.chance)}), by the totals of rows and columns alone {100 * confusion.independent:.1f} %"
    )
    worst = confusion.worst
    said += f"; most often {worst[0]} was taken for {worst[1]}, {worst[2]} of {worst[3]}" if worst else ""
    return page.drawing(matrix_figure(confusion, title), f"confusion of {title}: {said}", f"{said}.")


def matrix_figure(confusion: Confusion, title: str) -> Figure:
    """Shares as shades of blue, counts in the cells, the diagonal in frames."""
    k = len(confusion.names)
    small = k <= SMALL
    side = 4.4 if small else 1.5 + 0.23 * k  # inches; 0.23 hold a number of two digits at 7 points
    figure, axis = plt.subplots(figsize=(side, 0.95 * side))
    axis.imshow(confusion.shares, cmap="Blues", vmin=0, vmax=1)
    size = 10 if small else 7
    for i, j in np.ndindex(k, k):
        if confusion.counts[i, j]:
            colour = "white" if confusion.shares[i, j] > WHITE_ABOVE else "#1d2330"
            axis.text(j, i, str(confusion.counts[i, j]), ha="center", va="center", fontsize=size, color=colour)
    for i in range(k):
        axis.add_patch(Rectangle((i - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor="#8a5a00", linewidth=1.3))
    axis.set_xticks(range(k), confusion.names, rotation=45 if small else 90, ha="right" if small else "center")
    axis.set_yticks(range(k), confusion.names)
    axis.tick_params(length=0, labelsize=size)
    axis.set_xlabel("named", fontsize=11)
    axis.set_ylabel("seen", fontsize=11)
    axis.set_title(title, loc="left", fontsize=11)
    axis.spines[:].set_visible(False)
    figure.tight_layout()
    return figure
