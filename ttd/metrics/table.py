"""Results as tables: a figure never travels without its interval, its chance level, its control and its labels.

``metrics.json`` holds the rows and what each metric means; ``table.md`` and ``table.tex`` are the same for people. Figures
stand in one column only where their labels agree (gallery, channels, repetitions, subjects, selection, inductive or not,
...); a figure with another label carries a mark, and a note below the table says which.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from ttd.config import write_json
from ttd.metrics.catalogue import METRICS
from ttd.metrics.row import MEAN, Row

OWN_COLUMN = ("control", "minus")
"""Labels that the table shows elsewhere; gallery and repetitions are part of what is compared."""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return _number(value)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _value(row: Row) -> str:
    return _interval(row.value, row.low, row.high) + (f", sd {row.sd:.3f}" if row.sd is not None else "")


def _concepts(row: Row) -> str:
    if row.concept_low is None or row.concept_high is None:
        return "–"
    return f"[{row.concept_low:.3f}, {row.concept_high:.3f}]"


def _chance(row: Row) -> str:
    return _interval(row.chance, row.chance_low, row.chance_high)


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _order(row: Row) -> tuple:
    labels = row.labels
    return (
        list(METRICS).index(row.metric),
        -int(labels.get("gallery", 0)),
        -int(labels.get("repetitions", 0)),
        row.model,
    )


def _named(row: Row) -> str:
    return f"{row.title} {'↑' if METRICS[row.metric].direction == 'higher' else '↓'}"


def _repetitions(row: Row) -> str:
    return str(row.labels.get("repetitions", "–"))


def means(rows: list[Row], *, controls: bool = False) -> list[Row]:
    """The means over subjects in the order of the tables: those of the models, or of what must fail."""
    return sorted((r for r in rows if r.subject == MEAN and ("control" in r.labels) == controls), key=_order)


def unlike_labels(rows: list[Row]) -> dict[int, str]:
    """By place in ``rows``: the labels in which a figure differs from the first one of its metric and repetitions.

    A label that only one of two rows has is none they differ in: a ridge has no training seed.
    """
    first: dict[tuple[str, str], Row] = {}
    unlike = {}
    for place, row in enumerate(rows):
        other = first.setdefault((row.title, _repetitions(row)), row)
        shared = [name for name in row.labels if name in other.labels and name not in OWN_COLUMN]
        differing = [name for name in shared if row.labels[name] != other.labels[name]]
        if differing:
            words = ", ".join(f"{name} {row.labels[name]} instead of {other.labels[name]}" for name in differing)
            unlike[place] = f"{row.model}: {words}"
    return unlike


def summary_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of means over subjects; models stand below each other for comparison."""
    shown = means(rows)
    unlike = unlike_labels(shown)
    marks = {note: f" ({number})" for number, note in enumerate(dict.fromkeys(unlike.values()), 1)}
    concepts = any(row.concept_low is not None for row in shown)
    header = [
        "metric", "model", "repetitions", "value [95 %]", *(["95 % over concepts"] if concepts else []),
        "chance [95 % of permutations]", "p", "re-paired control", "wrong-EEG control", "n",
    ]  # fmt: skip
    lines = []
    for place, row in enumerate(shown):
        wrong = _interval(row.control_generated, row.control_generated_low, row.control_generated_high)
        lines.append([
            _named(row), row.model + marks.get(unlike.get(place, ""), ""), _repetitions(row), _value(row),
            *([_concepts(row)] if concepts else []), _chance(row), _p(row.p),
            _interval(row.control, row.control_low, row.control_high), wrong, str(row.n),
        ])  # fmt: skip
    return header, lines


def notes(rows: list[Row]) -> list[str]:
    """What must be said below the table of means: figures whose labels differ from those they stand below."""
    unlike = dict.fromkeys(unlike_labels(means(rows)).values())
    return [
        f"({number}) other labels than the first figure of the metric: {note}" for number, note in enumerate(unlike, 1)
    ]


def control_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of what must fail: EEG or pictures that cannot know what was seen, beside the model's own figure."""
    own = {(r.title, r.model, _repetitions(r)): r for r in means(rows)}
    header = [
        "metric",
        "model",
        "repetitions",
        "control",
        "value [95 %]",
        "chance [95 % of permutations]",
        "p",
        "the model",
    ]
    lines = []
    for row in means(rows, controls=True):
        place = row.title, _repetitions(row)
        models = [r for (t, m, n), r in own.items() if (t, n) == place and m == row.model] or [
            r for (t, _, n), r in own.items() if (t, n) == place and "minus" not in r.labels
        ]  # a control of no model stands beside all of them
        said = ", ".join(_number(r.value) if r.model == row.model else f"{r.model} {r.value:.3f}" for r in models)
        lines.append([
            _named(row), row.model, _repetitions(row), str(row.labels["control"]), _value(row), _chance(row), _p(row.p),
            said or "–",
        ])  # fmt: skip
    return header, lines


def control_note(rows: list[Row]) -> str:
    """How many controls scored above their chance interval, and how many would by chance."""
    tested = [r for r in means(rows, controls=True) if r.p is not None]
    above = sum(r.p < 0.05 for r in tested if r.p is not None)
    return (
        f"{above} of {len(tested)} controls have p < 0.05 (one in twenty would by chance; those of one run are not independent). "
        "Controls without a chance level are to be read beside the model."
    )


def subject_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table by subject."""
    single = [r for r in rows if r.subject != MEAN and "control" not in r.labels]
    subjects = sorted({r.subject for r in single})
    groups: dict[tuple, dict[str, Row]] = {}
    for row in sorted(single, key=_order):
        groups.setdefault((row.title, row.model, _repetitions(row)), {})[row.subject] = row
    lines = [[*name, *(_number(g[s].value) if s in g else "–" for s in subjects)] for name, g in groups.items()]
    return ["metric", "model", "repetitions", *subjects], lines


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """Cells as a table of Markdown."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "–": "--", "−": "$-$", "±": r"$\pm$", "σ": r"$\sigma$", "×": r"$\times$",
})  # fmt: skip
"""What TeX reads otherwise than it is meant."""


def latex(header: list[str], lines: list[list[str]]) -> str:
    """Cells as a ``tabular`` of booktabs."""
    rows = [" & ".join(cell.translate(LATEX) for cell in cells) + r" \\" for cells in [header, *lines]]
    body = [rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}"])


def means_markdown(rows: list[Row]) -> str:
    """The table of means over subjects as Markdown, with its notes."""
    below = "\n\n".join(notes(rows))
    return markdown(*summary_cells(rows)) + (f"\n\n{below}" if below else "")


def short_markdown(rows: list[Row]) -> str:
    """The figures of the largest number of repetitions, and what must fail: what a README has room for."""
    most = max((int(r.labels.get("repetitions", 0)) for r in rows), default=0)
    shown = [r for r in rows if int(r.labels.get("repetitions", most)) == most]
    parts = [means_markdown(shown)]
    if means(shown, controls=True):
        parts += ["What must fail:", markdown(*control_cells(shown)), control_note(shown)]
    return "\n\n".join(parts)


def table_markdown(rows: list[Row], heading: str, published: str = "") -> str:
    """All tables as Markdown below one heading; ``published`` are the figures of others, which nobody ran here."""
    parts = [f"# {heading}", means_markdown(rows)]
    if means(rows, controls=True):
        parts += ["## What must fail", markdown(*control_cells(rows)), control_note(rows)]
    parts += ["## By subject", markdown(*subject_cells(rows)), *([published.rstrip()] if published else [])]
    return "\n\n".join(parts) + "\n"


def table_latex(rows: list[Row], heading: str) -> str:
    """The table of means and that of the controls for ``\\input``; needs the package booktabs."""
    parts = [f"% {heading}", latex(*summary_cells(rows)), *(f"% {note}" for note in notes(rows))]
    if means(rows, controls=True):
        parts += ["% what must fail", latex(*control_cells(rows))]
    return "\n\n".join(parts) + "\n"


def write_results(
    output_dir: Path, rows: list[Row], *, heading: str, facts: dict[str, Any], published: str = ""
) -> None:
    """Write ``metrics.json``, ``table.md`` and ``table.tex``, each whole or absent."""
    meaning = {name: dataclasses.asdict(METRICS[name]) for name in dict.fromkeys(r.metric for r in rows)}
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.md", table_markdown(rows, heading, published)),
        ("table.tex", table_latex(rows, heading)),
    ):
        aside = output_dir / f".{name}"
        aside.write_text(text)
        aside.replace(output_dir / name)
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
