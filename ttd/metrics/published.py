"""Published figures, to be read beside ours: each with where it stands, what is known of how it was made, and a caveat.

None of them was computed here. ``published.json`` beside this file holds them as fractions; a label that is not there is
not stated by what the figure was read from. Two figures may share a column only if their labels agree: ``unlike`` says
which do not. A label "any" is one that the figure does not depend on, as a closed form's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ttd.metrics.catalogue import METRICS

WITHIN, LEFT_OUT = "200-way within subject", "200-way leave one subject out"
JOINT, RECONSTRUCTION = "200-way subjects jointly", "reconstruction"
PROTOCOLS = {
    WITHIN: "a model of each subject's own, tested on pictures and concepts it has not seen",
    LEFT_OUT: "a model per subject, trained on the others",
    JOINT: "one model of all subjects",
    RECONSTRUCTION: "generated pictures against those that were shown",
}
STUDIES = {
    "Gifford2022": "THINGS-EEG2 (Gifford et al., 2022)",
    "ThingsMEG": "THINGS-MEG (Hebart et al., 2023)",
    "NSD": "Natural Scenes Dataset, fMRI (Allen et al., 2022)",
}

NAMES = {
    "study": "study",
    "protocol": "protocol",
    "subjects": "number of subjects",
    "channels": "channels",
    "repetitions": "repetitions averaged",
    "inductive": "inductive or transductive",
    "selection": "how the state was selected",
    "gallery": "size of the gallery",
    "gallery_of": "gallery of images or of prototypes",
    "definition": "which SSIM",
    "size": "pixels of the comparison",
    "candidates": "candidates drawn",
    "samples": "samples scored",
}
"""What must agree before two figures are compared, as ``unlike`` and the tables call it."""
EVERY = ("study", "protocol", "subjects", "channels", "repetitions", "inductive", "selection")


def labels_of(metric: str) -> tuple[str, ...]:
    """The labels that a figure of this metric needs."""
    if metric.startswith("retrieval"):
        return (*EVERY, "gallery", "gallery_of")
    drawn = (*EVERY, "candidates", "samples")
    if metric in ("pixcorr", "ssim"):
        return (*drawn, "size", *(["definition"] if metric == "ssim" else []))
    return (*drawn, "gallery") if metric.startswith("two_way") else drawn


@dataclass(frozen=True)
class Published:
    """One published figure. ``value`` is a fraction or index as in ``METRICS``, ``labels`` hold only what is known."""

    study: str
    protocol: str
    method: str
    metric: str
    value: float
    source: str
    """The paper that the figure was read in, and whose table it is where that is another's."""
    caveat: str
    """What is known to be different or doubtful; "not stated" where nothing is said."""
    labels: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in ((self.metric, METRICS), (self.study, STUDIES), (self.protocol, PROTOCOLS)):
            assert name in known, f"{name} is none of {', '.join(known)}"
        for text in (self.source, self.caveat):
            assert text, f"{self.method} needs a source and a caveat"
        assert set(self.labels) <= set(NAMES), self

    def label(self, name: str) -> Any:
        """A label's value, None where it is not stated."""
        return getattr(self, name) if name in ("study", "protocol") else self.labels.get(name)

    @property
    def not_stated(self) -> list[str]:
        """The labels this figure needs and has not, by their keys."""
        return [name for name in labels_of(self.metric) if self.label(name) is None]


@cache
def _all() -> tuple[Published, ...]:
    content = json.loads(files("ttd.metrics").joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(
        Published(metric=metric, value=value, **entry)
        for entry in content["figures"]
        for metric, value in entry.pop("values").items()
    )


def published(study: str, metrics: Sequence[str] | None = None, *, protocol: str | None = None) -> list[Published]:
    """The published figures of a study, of some metrics or of all, in the order of their tables.

    A study that nothing is known of, the simulated one or your own, has none.

    Raises:
        ValueError: a metric or protocol that does not exist.
    """
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown:
        raise ValueError(f"no metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    return [
        figure
        for figure in _all()
        if figure.study == study
        and (metrics is None or figure.metric in metrics)
        and (protocol is None or figure.protocol == protocol)
    ]


def unlike(figure: Published, row_labels: Mapping[str, Any]) -> list[str]:
    """Why ``figure`` may not stand in one column with a row of ours: its labels that differ, or that one side does not tell.

    Args:
        row_labels: of a ``ttd.metrics.row.Row``; ``subjects`` may be the list of their names.
    """
    reasons = []
    for name in labels_of(figure.metric):
        theirs, ours = figure.label(name), row_labels.get(name)
        if name == "subjects" and isinstance(ours, list | tuple):
            ours = len(ours)
        if theirs == "any":
            continue
        if theirs is None:
            reasons.append(f"{NAMES[name]}: not stated")
        elif ours is None:
            reasons.append(f"{NAMES[name]}: {_said(name, theirs)}, of ours not known")
        elif theirs != ours:
            reasons.append(f"{NAMES[name]}: {_said(name, theirs)}, ours {_said(name, ours)}")
    return reasons


def _said(name: str, value: Any) -> str:
    if name == "inductive":
        return "inductive" if value else "transductive"
    return str(value)


def cells(figures: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of one study and protocol: a line per method and source, a column per metric. The last
    column is the caveat, which also names the labels that are not stated.

    Raises:
        ValueError: the figures are of several studies or protocols.
    """
    kinds = {(f.study, f.protocol) for f in figures}
    if len(kinds) > 1:
        raise ValueError(f"one table holds one study and protocol, not {', '.join(map(str, sorted(kinds)))}")
    metrics = [name for name in METRICS if any(f.metric == name for f in figures)]
    lines: dict[tuple[str, str], list[Published]] = {}
    for f in figures:
        lines.setdefault((f.method, f.source), []).append(f)
    header = ["method", *(_title(name) for name in metrics), "source", "caveat"]
    table = []
    for (method, source), own in lines.items():
        values = {f.metric: f"{f.value:.3f}" for f in own}
        table.append([method, *(values.get(name, "–") for name in metrics), source, _caveat(own)])
    return header, table


def _title(metric: str) -> str:
    facts = METRICS[metric]
    return f"{facts.title.removesuffix(', {k}-way')} {'↑' if facts.direction == 'higher' else '↓'}"


def _caveat(figures: Sequence[Published]) -> str:
    missing = [NAMES[name] for name in NAMES if any(name in f.not_stated for f in figures)]
    said = "; ".join(dict.fromkeys(f.caveat for f in figures))
    if not missing:
        return said
    return f"not stated: {', '.join(missing)}" if said == "not stated" else f"{said}; not stated: {', '.join(missing)}"


def published_markdown(study: str, metrics: Sequence[str] | None = None) -> str:
    """The tables "Published, not run here" of a study as Markdown, one per protocol; empty where there is nothing."""
    parts = []
    for protocol, meaning in PROTOCOLS.items():
        figures = published(study, metrics, protocol=protocol)
        if figures:
            header, lines = cells(figures)
            table = ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines]]
            parts.append("\n".join([f"### {protocol}: {meaning}", "", *table]))
    return "\n\n".join([f"## Published, not run here: {STUDIES[study]}", *parts]) + "\n" if parts else ""
