"""The report: one folder that says what was shown, what came back, and how far to believe it.

Every section names what it could not find; nothing is drawn that was not measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.experiments.report import ReportConfig
from ttd.metrics import published, table
from ttd.metrics.catalogue import METRICS
from ttd.metrics.row import read_rows
from ttd.pages import (
    card,
    confusion,
    figures,
    gallery,
    neighbours,
    occlusion,
    page,
    recordings,
    report_folder,
    solids,
)
from ttd.pages.items import Item, read_items
from ttd.pages.page import Stimuli
from ttd.pages.runs import RunFolder

SIMULATED = (
    "Simulated study: the recordings were computed from the pictures. Nothing on this page was measured on a person."
)

BANNERS: dict[str, str] = {
    "marked": (
        "The pictures that were shown are not for republication: the licence of the study ({licence}) does not say that it "
        "frees its pictures. To hand this folder on, make it again with stimuli=leave_out."
    ),
    "leave_out": (
        "The pictures that were shown, and the solids made from them, are left out; their names stand in their places."
    ),
}

FREE_PICTURES = re.compile(r"(CC0|CC[ -]BY(-SA)?([ -][1-4]\.0)?|public domain) \(pictures\)", re.IGNORECASE)
"""Licences that allow to republish pictures, and say that it is the pictures they speak of."""


def build_report(config: ReportConfig) -> Path:
    """Write the folder ``config.output_dir``, whole or not at all; returns its ``index.html``.

    Raises:
        UserError: shards, or a run that is there, cannot be read; ``output_dir`` holds something else than a report.
    """
    index = ShardIndex.read(config.shards / "train")
    facts = index.facts
    licence = str(ShardReader(index).meta(0).get("licence") or "not stated") if facts.n_samples else "not stated"
    stimuli = stimuli_of(config, simulated=facts.simulated, licence=licence)
    with report_folder.replaced(
        config.output_dir, {"title": config.title, "study": facts.study, "stimuli": stimuli}
    ) as aside:
        sheet = page.Page(
            config.title,
            subtitle=f"Study {facts.study} · code {facts.code_version or 'unknown'} · every figure stands beside its control",
            banner=" ".join(
                filter(None, [SIMULATED if facts.simulated else "", BANNERS.get(stimuli, "").format(licence=licence)])
            ),
            folder=aside,
            stimuli=stimuli,
        )
        runs = {name: path for name, path in config.generate.items() if (path / "manifest.jsonl").is_file()}
        items = read_items(runs, config.eval) if runs else []
        sheet.section("pictures", "Shown and reconstructed", *pictures(config, sheet, items))
        sheet.section("results", "Results", *results(config))
        for name, title, what in EVALUATED:
            parts = what(config.eval, config, sheet) if config.eval else [not_run("evaluation", None)]
            sheet.section(name, title, *parts)
        sheet.section("training", "Training", *training(config))
        sheet.section("solids", "From picture to solid", *lifted(config, sheet, items))
        sheet.section("recordings", "Recordings", *recordings.section(config.shards))
        sheet.section("data", "Data card", *card.data_card(config.shards))
        sheet.section("use", card.USE_TITLE, *card.intended_use())
        sheet.section("provenance", "How this came about", *provenance(config))
        (aside / "index.html").write_text(sheet.html(), encoding="utf-8")
    return config.output_dir / "index.html"


def stimuli_of(config: ReportConfig, *, simulated: bool, licence: str) -> Stimuli:
    """Whether pictures that were shown may be seen by everybody; in doubt they are marked.

    The licence of recordings says nothing of the pictures: THINGS-EEG1 is CC0, its pictures are THINGS' and for research.
    So pictures are free only where the licence says "CC0 (pictures)", or the like, or where the study is simulated.
    """
    if config.stimuli == "leave_out":
        return "leave_out"
    return "free" if simulated or FREE_PICTURES.search(licence) else "marked"


def not_run(what: str, folder: Path | None) -> str:
    """The sentence that stands for a run that is not there."""
    return page.missing(f"{what}: not run" + (f" (no such folder: {folder})" if folder else ""))


def pictures(config: ReportConfig, sheet: page.Page, items: list[Item]) -> list[str]:
    """The gallery, and which generation runs are not there."""
    absent = [name for name, folder in config.generate.items() if not (folder / "manifest.jsonl").is_file()]
    if not items:
        return [not_run("generation", next(iter(config.generate.values()), None))]
    rows = read_rows(config.eval / "metrics.json")[0] if config.eval and _evaluated(config) else []
    out = gallery.section(items, sheet, rows, seed=config.seed)
    return out + [not_run(f"generation “{name}”", config.generate[name]) for name in absent]


def _evaluated(config: ReportConfig) -> bool:
    return config.eval is not None and (config.eval / "metrics.json").is_file()


def results(config: ReportConfig) -> list[str]:
    """The tables of the evaluation, with figure, labels and the count of the ledger."""
    if config.eval is None or not _evaluated(config):
        return [not_run("evaluation", config.eval)]
    rows, facts = read_rows(config.eval / "metrics.json")
    out = [
        page.paragraph(
            "Means over subjects with 95 % intervals by bootstrap over pictures. The re-paired control scores every "
            "prediction against another picture; the wrong-EEG control scores pictures that were generated from the "
            "recording of another picture. Blue: value, grey: re-paired control, dashed: chance."
        )
    ]
    means = table.means(rows)
    most = max((int(r.labels.get("repetitions", 0)) for r in means), default=0)
    shown = [r for r in means if int(r.labels.get("repetitions", most)) == most]
    galleries = [r.labels["gallery"] for r in shown if r.metric == "retrieval_top1"]
    shown = [r for r in shown if r.metric != "retrieval_top1" or r.labels["gallery"] == min(galleries)]
    names = ["retrieval_top1", "two_way_clip", "two_way_judge", "named_kind", "named_colour"]
    drawn = figures.result_figure(shown, metrics=names)
    if drawn is not None:
        out.append(page.drawing(drawn, "results with intervals, controls and chance", f"{most} repetitions averaged."))
    out.append(page.table(*table.summary_cells(rows)))
    out += [page.paragraph(note, soft=True) for note in table.notes(rows)]
    if table.means(rows, controls=True):
        about = (
            "EEG and pictures that cannot know what was seen, scored like the model. Where one of them does as well as the "
            "model, the figure says nothing about the EEG."
        )
        out += ["<h3>What must fail</h3>", page.paragraph(about), page.table(*table.control_cells(rows))]
        out.append(page.paragraph(table.control_note(rows), soft=True))
    out += ["<h3>By subject</h3>", page.table(*table.subject_cells(rows))]
    out += others(facts.get("study", ""), [row.metric for row in means])
    sources = [
        [r.title, METRICS[r.metric].unit, METRICS[r.metric].direction, METRICS[r.metric].source, _labels(r.labels)]
        for r in {r.title: r for r in means}.values()
    ]
    out += [
        "<h3>What the figures mean</h3>",
        page.table(["metric", "unit", "better", "source", "labels"], sources, wrap=True),
    ]
    for note in facts.get("not_run", []):
        out.append(page.missing(note))
    return out


def others(study: str, metrics: list[str]) -> list[str]:
    """Published figures of the study, one table for each protocol; none for a simulated one."""
    out = []
    for protocol, meaning in published.PROTOCOLS.items():
        figures_ = published.published(study, list(dict.fromkeys(metrics)), protocol=protocol)
        if figures_:
            out += [f"<h3>Published, not run here: {page.escape(protocol)}</h3>", page.paragraph(meaning, soft=True)]
            out.append(page.table(*published.cells(figures_), wrap=True))
    return out


EVALUATED: tuple[tuple[str, str, Callable[[Path, ReportConfig, page.Page], list[str]]], ...] = (
    ("neighbours", "Nearest pictures", lambda run, c, sheet: neighbours.section(run, c.shards, sheet, seed=c.seed)),
    ("confusion", "What was taken for what", lambda run, c, sheet: confusion.section(run, seed=c.seed)),
    ("occlusion", "What the model uses", lambda run, c, sheet: occlusion.section(run)),
)
"""Sections that are made of what ``ttd/eval.py`` leaves beside its tables."""


def rewrite_readme(readme: Path, evaluation: Path) -> None:
    """Put an evaluation's short table, and the command that makes it, into the results section of a README.

    Raises:
        UserError: the README has no such section, or there is no evaluation.
    """
    rows, facts = read_rows(evaluation / "metrics.json")
    command = f"`python ttd/eval.py` → `{evaluation / 'metrics.json'}`" + (
        ", simulated study" if facts["simulated"] else ""
    )
    try:
        content = table.replace_section(readme.read_text(), "results", f"{table.short_markdown(rows)}\n\n{command}")
    except (OSError, ValueError) as error:
        raise UserError(f"readme: {readme}: {error}") from error
    readme.write_text(content)


def _labels(labels: dict[str, Any]) -> str:
    told = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in labels.items()}
    return " · ".join(f"{k}: {v}" for k, v in told.items() if k != "repetitions")  # a column of the table


def training(config: ReportConfig) -> list[str]:
    """Curves of each training run."""
    out = []
    for name, folder in (
        ("Pretraining", config.pretrain),
        ("Alignment", config.align),
        ("Fine-tuning", config.finetune),
    ):
        run = RunFolder.read(folder) if folder else None
        if run is None:
            out += [f"<h3>{name}</h3>", not_run(name.lower(), folder)]
            continue
        steps = max((line.get("step", 0) for line in run.log), default=0)
        seen = max((line.get("samples_seen", 0) for line in run.log), default=0)
        figure = figures.training_curves(run.log)
        out.append(f"<h3>{name}</h3>")
        out.append(page.paragraph(f"{steps:,} steps, {seen:,} samples seen, {run.state}, {run.duration}.", soft=True))
        out.append(
            page.drawing(figure, f"curves of {name.lower()}") if figure else page.missing("no curve in log.jsonl")
        )
        if name == "Pretraining":
            out += reconstruction(run)
    return out


def reconstruction(run: RunFolder) -> list[str]:
    """What pretraining predicts of hidden EEG, and at which frequencies, beside a Wiener filter."""
    content = run.json("pretrain_report.json")
    if content is None:
        return [page.missing("no pretrain_report.json: pretraining has not ended")]
    names = list(content["masked_mse_on_wiener_windows"])
    cells = [[name, f"{content['masked_mse_on_wiener_windows'][name]:.3f}"] for name in names]
    out = [page.table([f"masked error, {content['n_wiener']} windows of part {content['part']}", "variances"], cells)]
    if "spectrum" in content:
        drawn = figures.reconstructed_bands(content["spectrum"])
        out.append(page.drawing(drawn, "hidden EEG by frequency", "Hidden spans by band, against what was there."))
    return out


def lifted(config: ReportConfig, sheet: page.Page, items: list[Item]) -> list[str]:
    """Figures of the lifting run and its solids."""
    if config.lift is None or not (config.lift / "lift.json").is_file():
        return [not_run("lifting", config.lift)]
    return solids.section(config.lift, sheet, {item.image_id: item.name for item in items})


def provenance(config: ReportConfig) -> list[str]:
    """Openings of the test part, runs with their state, environment, commands."""
    out = []
    ledger = read_ledger(config)
    out.append(
        page.paragraph(f"The test part was opened {len(ledger)} time{'s' * (len(ledger) != 1)}, as its ledger says:")
    )
    if ledger:
        header = list(dict.fromkeys(key for line in ledger for key in line))
        out.append(page.table(header, [[str(line.get(key, "–")) for key in header] for line in ledger[-20:]]))
    named = {
        "pretrain": config.pretrain, "align": config.align, "finetune": config.finetune,
        **{f"generate ({n})": f for n, f in config.generate.items()}, "eval": config.eval, "lift": config.lift,
    }  # fmt: skip
    lines: list[list[str]] = []
    environment: dict[str, Any] = {}
    for name, folder in named.items():
        run = RunFolder.read(folder) if folder else None
        lines.append([name, str(folder or "–"), run.state if run else "not run", run.duration if run else "–"])
        environment = (run and run.environment) or environment
    out += ["<h3>Runs</h3>", page.table(["run", "folder", "state", "duration"], lines)]
    if environment:
        cells = [
            [key, json.dumps(value) if isinstance(value, dict | list) else str(value)]
            for key, value in environment.items()
        ]
        out += ["<h3>Environment</h3>", page.table(["", ""], cells, wrap=True)]
    if config.commands:
        out += ["<h3>Commands</h3>", page.commands(config.commands)]
    return out


def read_ledger(config: ReportConfig) -> list[dict[str, Any]]:
    """Every opening of the test part, oldest first."""
    from ttd.data.splits import read_ledger as read

    return read(config.split or config.shards / "split.json")
