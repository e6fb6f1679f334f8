"""Results as rows: a figure never travels without its interval, its chance level, its control and its labels.

``metrics.json`` holds the rows and what each metric means; ``table.md`` is the same for people. A figure compares with
another one only if their labels agree (gallery, channels, repetitions, subjects, selection, inductive or not).
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttd.config import UserError, write_json

MEAN = "mean"  # the subject of a row that averages over subjects


@dataclass(frozen=True)
class Facts:
    """What a metric is: printed name, unit, whether more is better, its source."""

    title: str
    unit: str
    direction: str
    source: str


METRICS = {
    "retrieval_top1": Facts("retrieval top-1, {k}-way", "fraction", "higher", "Song et al. 2024, arXiv:2308.13234"),
    "retrieval_top5": Facts("retrieval top-5, {k}-way", "fraction", "higher", "Song et al. 2024, arXiv:2308.13234"),
    "mean_reciprocal_rank": Facts(
        "mean reciprocal rank, {k}-way", "fraction", "higher", "mAP of UBP, one relevant picture"
    ),
    "mse": Facts("MSE", "squared intensity", "lower", "mean over RGB in [0, 1]"),
    "pixcorr": Facts("PixCorr", "Pearson r", "higher", "MindEye2, arXiv:2403.11207"),
    "ssim": Facts("SSIM", "index", "higher", "Wang et al. 2004; σ 1.5, grey, two-dimensional"),
    "two_way_clip": Facts("two-way identification, CLIP", "fraction", "higher", "Ozcelik & VanRullen 2023"),
    "two_way_judge": Facts("two-way identification, judge", "fraction", "higher", "Ozcelik & VanRullen 2023"),
    "two_way_alexnet_2": Facts(
        "two-way identification, AlexNet(2)", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "two_way_alexnet_5": Facts(
        "two-way identification, AlexNet(5)", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "two_way_inception": Facts(
        "two-way identification, Inception v3", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "two_way_clip_l": Facts(
        "two-way identification, CLIP ViT-L/14", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "distance_efficientnet": Facts("distance, EfficientNet-B1", "1 - Pearson r", "lower", "MindEye2, arXiv:2403.11207"),
    "distance_swav": Facts("distance, SwAV", "1 - Pearson r", "lower", "MindEye2, arXiv:2403.11207"),
    "lpips": Facts("LPIPS, AlexNet", "distance", "lower", "Zhang et al. 2018, arXiv:1801.03924"),
    "n_way_top1": Facts("50-way top-1, ViT-H/14", "fraction", "higher", "DreamDiffusion, arXiv:2306.16934"),
    "image_retrieval_top1": Facts("retrieval of the picture, CLIP, {k}-way", "fraction", "higher", "cosine, top-1"),
    "named_kind": Facts("kind named by the judge", "fraction", "higher", "independent classifier"),
    "named_colour": Facts("colour named by the judge", "fraction", "higher", "independent classifier"),
}


@dataclass(frozen=True)
class Row:
    """One figure. ``control`` pairs predictions with wrong pictures; ``control_generated`` was made from wrong EEG;
    ``chance_low``, ``chance_high`` and ``p`` are those of ``rows.permutation_test``, in the mean over subjects."""

    metric: str
    model: str
    subject: str
    value: float
    low: float
    high: float
    chance: float | None
    control: float
    control_low: float
    control_high: float
    n: int
    labels: dict[str, Any] = field(default_factory=dict)
    control_generated: float | None = None
    control_generated_low: float | None = None
    control_generated_high: float | None = None
    chance_low: float | None = None
    chance_high: float | None = None
    p: float | None = None

    def __post_init__(self) -> None:
        assert self.metric in METRICS, f"{self.metric} has no entry in METRICS"

    @property
    def title(self) -> str:
        """The printed name, with the number of ways where the metric has one."""
        return METRICS[self.metric].title.format(k=self.labels.get("gallery", "?"))


def read_rows(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows and the rest of a ``metrics.json``.

    Raises:
        UserError: the file is missing or is not one of ours.
    """
    try:
        content = json.loads(Path(path).read_text())
        return [Row(**row) for row in content.pop("rows")], content
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; run ttd/eval.py first") from error
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        raise UserError(f"{path}: not a metrics.json of this version ({error}); run ttd/eval.py again") from error


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _chance(row: Row) -> str:
    if row.chance is None or row.chance_low is None or row.chance_high is None:
        return _number(row.chance)
    return _interval(row.chance, row.chance_low, row.chance_high)


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def _order(row: Row) -> tuple:
    labels = row.labels
    return (
        list(METRICS).index(row.metric),
        -int(labels.get("gallery", 0)),
        -int(labels.get("repetitions", 0)),
        row.model,
    )


def summary_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of means over subjects; models stand below each other for comparison."""
    header = [
        "metric", "model", "repetitions", "value [95 %]", "chance [95 % of permutations]", "p", "re-paired control",
        "wrong-EEG control", "n",
    ]  # fmt: skip
    lines = []
    for row in sorted((r for r in rows if r.subject == MEAN), key=_order):
        arrow = "↑" if METRICS[row.metric].direction == "higher" else "↓"
        wrong = _interval(row.control_generated, row.control_generated_low, row.control_generated_high)
        lines.append([
            f"{row.title} {arrow}", row.model, str(row.labels.get("repetitions", "–")),
            _interval(row.value, row.low, row.high), _chance(row), _p(row.p),
            _interval(row.control, row.control_low, row.control_high), wrong, str(row.n),
        ])  # fmt: skip
    return header, lines


def subject_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table by subject."""
    subjects = sorted({r.subject for r in rows if r.subject != MEAN})
    groups: dict[tuple, dict[str, Row]] = {}
    for row in sorted((r for r in rows if r.subject != MEAN), key=_order):
        groups.setdefault((row.title, row.model, str(row.labels.get("repetitions", "–"))), {})[row.subject] = row
    lines = [[*name, *(_number(g[s].value) if s in g else "–" for s in subjects)] for name, g in groups.items()]
    return ["metric", "model", "repetitions", *subjects], lines


def means_markdown(rows: list[Row]) -> str:
    """The table of means over subjects as Markdown."""
    return _markdown(*summary_cells(rows))


def table_markdown(rows: list[Row], heading: str) -> str:
    """Both tables as Markdown below one heading."""
    parts = [f"# {heading}", means_markdown(rows), "## By subject", _markdown(*subject_cells(rows))]
    return "\n\n".join(parts) + "\n"


def write_results(output_dir: Path, rows: list[Row], *, heading: str, facts: dict[str, Any]) -> None:
    """Write ``metrics.json`` and ``table.md``, each whole or absent."""
    meaning = {name: dataclasses.asdict(METRICS[name]) for name in dict.fromkeys(r.metric for r in rows)}
    aside = output_dir / ".table.md"
    output_dir.mkdir(parents=True, exist_ok=True)
    aside.write_text(table_markdown(rows, heading))
    aside.replace(output_dir / "table.md")
    content = {**facts, "heading": heading, "metrics": meaning, "rows": [dataclasses.asdict(r) for r in rows]}
    write_json(output_dir / "metrics.json", content)


def replace_section(readme: str, name: str, content: str) -> str:
    """``readme`` with the text between ``<!-- name -->`` and ``<!-- /name -->`` exchanged.

    Raises:
        ValueError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    if not pattern.search(readme):
        raise ValueError(f"no section between <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda m: m[1] + content.rstrip() + "\n" + m[2], readme, count=1)
