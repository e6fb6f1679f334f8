"""The report: one page that says what was shown, what came back, and how far to believe it.

Every section names what it could not find; nothing is drawn that was not measured.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.experiments.report import ReportConfig
from ttd.metrics.reconstruction import read_manifest
from ttd.metrics.table import MEAN, METRICS, means_markdown, read_rows, replace_section, subject_cells, summary_cells
from ttd.pages import figures, page, recordings
from ttd.pages.runs import RunFolder

SIMULATED = (
    "Simulated study: the recordings were computed from the pictures. Nothing on this page was measured on a person."
)


def build_report(config: ReportConfig) -> Path:
    """Write ``index.html`` into ``config.output_dir``; returns its path.

    Raises:
        UserError: shards, or a run that is there, cannot be read.
    """
    facts = ShardIndex.read(config.shards / "train").facts
    subtitle = f"Study {facts.study} · code {facts.code_version or 'unknown'} · every figure stands beside its control"
    sheet = page.Page(config.title, subtitle=subtitle, banner=SIMULATED if facts.simulated else "")
    sheet.section("pictures", "Shown and reconstructed", *pictures(config))
    sheet.section("results", "Results", *results(config))
    sheet.section("training", "Training", *training(config))
    sheet.section("solids", "From picture to solid", *solids(config))
    sheet.section("recordings", "Recordings", *recordings.section(config.shards))
    sheet.section("provenance", "How this came about", *provenance(config))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    target = config.output_dir / "index.html"
    aside = config.output_dir / ".index.html"
    aside.write_text(sheet.html(), encoding="utf-8")
    aside.replace(target)
    return target


def not_run(what: str, folder: Path | None) -> str:
    """The sentence that stands for a run that is not there."""
    return page.missing(f"{what}: not run" + (f" (no such folder: {folder})" if folder else ""))


def pictures(config: ReportConfig) -> list[str]:
    """Sets of shown, reconstructed and wrong-EEG pictures, by subject, in the manifest's order."""
    runs = {name: folder for name, folder in config.generate.items() if (folder / "manifest.jsonl").is_file()}
    if not runs:
        return [not_run("generation", next(iter(config.generate.values()), None))]
    manifests = {name: read_manifest(folder) for name, folder in runs.items()}
    first = next(iter(manifests.values()))
    real = [item for item in first if item["control"] is None]
    by_place = {
        (name, str(i["subject"]), i["image_sha256"], i["control"]): i
        for name, m in manifests.items()
        for i in reversed(m)
    }
    out = [
        page.paragraph(
            f"The first {config.pairs_per_subject} pictures of each subject in the order of the manifest, none chosen. "
            "“Wrong EEG” was made from the recording of another picture: what it shares with the stimulus is chance."
        )
    ]
    for subject, items in groupby(sorted(real, key=lambda item: str(item["subject"])), key=lambda i: str(i["subject"])):
        sets: list[str] = []
        seen: set[str] = set()
        for item in items:
            if item["image_sha256"] in seen or len(seen) == config.pairs_per_subject:
                continue
            seen.add(item["image_sha256"])
            cells = [("shown", item["shown_path"])]
            for name in runs:
                other = by_place.get((name, subject, item["image_sha256"], None))
                if other:
                    cells.append((name if len(runs) > 1 else "reconstructed", other["path"]))
            wrong = by_place.get((next(iter(runs)), subject, item["image_sha256"], "shuffled"))
            if wrong:
                cells.append(("wrong EEG", wrong["path"]))
            sets.append(_set(cells, f"{subject}, {item['image_id']}"))
        repetitions = {item["n_repetitions"] for item in real if str(item["subject"]) == subject}
        title = f"Subject {subject}, {'/'.join(map(str, sorted(repetitions)))} repetitions averaged"
        out.append(f'<h3>{page.escape(title)}</h3><div class="grid">{"".join(sets)}</div>')
    absent = [name for name in config.generate if name not in runs]
    return out + [not_run(f"generation “{name}”", config.generate[name]) for name in absent]


def _set(cells: list[tuple[str, Path]], about: str) -> str:
    inner = "".join(
        f"<div>{page.picture(path, f'{label}: {about}', max_side=160)}<span>{page.escape(label)}</span></div>"
        for label, path in cells
    )
    return f'<figure class="set">{inner}</figure>'


def results(config: ReportConfig) -> list[str]:
    """The tables of the evaluation, with figure, labels and the count of the ledger."""
    if config.eval is None or not (config.eval / "metrics.json").is_file():
        return [not_run("evaluation", config.eval)]
    rows, facts = read_rows(config.eval / "metrics.json")
    out = [
        page.paragraph(
            "Means over subjects with 95 % intervals by bootstrap over pictures. The re-paired control scores every "
            "prediction against another picture; the wrong-EEG control scores pictures that were generated from the "
            "recording of another picture. Blue: value, grey: re-paired control, dashed: chance."
        )
    ]
    means = [row for row in rows if row.subject == MEAN]
    most = max((int(r.labels.get("repetitions", 0)) for r in means), default=0)
    shown = [r for r in means if int(r.labels.get("repetitions", most)) == most]
    galleries = [r.labels["gallery"] for r in shown if r.metric == "retrieval_top1"]
    shown = [r for r in shown if r.metric != "retrieval_top1" or r.labels["gallery"] == min(galleries)]
    names = ["retrieval_top1", "two_way_clip", "two_way_judge", "named_kind", "named_colour"]
    drawn = figures.result_figure(shown, metrics=names)
    if drawn is not None:
        out.append(page.drawing(drawn, "results with intervals, controls and chance", f"{most} repetitions averaged."))
    out.append(page.table(*summary_cells(rows)))
    out += ["<h3>By subject</h3>", page.table(*subject_cells(rows))]
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


def rewrite_readme(readme: Path, evaluation: Path) -> None:
    """Put the table of an evaluation's means, and the command that makes it, into the results section of a README.

    Raises:
        UserError: the README has no such section, or there is no evaluation.
    """
    rows, facts = read_rows(evaluation / "metrics.json")
    command = f"`python ttd/eval.py` → `{evaluation / 'metrics.json'}`" + (
        ", simulated study" if facts["simulated"] else ""
    )
    try:
        content = replace_section(readme.read_text(), "results", f"{means_markdown(rows)}\n\n{command}")
    except (OSError, ValueError) as error:
        raise UserError(f"readme: {readme}: {error}") from error
    readme.write_text(content)


def _labels(labels: dict[str, Any]) -> str:
    return " · ".join(f"{k}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in labels.items())


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


def solids(config: ReportConfig) -> list[str]:
    """Figures of the lifting run and turntable pictures of the first items."""
    if config.lift is None or not (config.lift / "lift.json").is_file():
        return [not_run("lifting", config.lift)]
    try:
        summary = json.loads((config.lift / "lift.json").read_text())
    except ValueError as error:
        raise UserError(f"{config.lift / 'lift.json'}: not valid JSON ({error}); run ttd/lift.py again") from error
    out = [page.table(*lift_cells(summary))]
    posters = sorted((config.lift / "items").glob("*/poster.png"))
    cards = "".join(
        f'<figure class="card">{page.picture(path, f"turntable of {path.parent.name}")}'
        f"<figcaption>{page.escape(path.parent.name)}</figcaption></figure>"
        for path in posters[:12]
    )
    note = f"Turntable pictures of the first {min(12, len(posters))} of {len(posters)} items, none chosen."
    return [*out, page.paragraph(note, soft=True), f'<div class="grid wide">{cards}</div>'] if posters else out


def lift_cells(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the lifting table from the ``rows`` of ``lift.json``."""
    cells = []
    for row in summary.get("rows", []):
        value = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        control = row.get("control")
        if isinstance(control, int | float) and "control_low" in row:
            control = f"{control:.3f} [{row['control_low']:.3f}, {row['control_high']:.3f}]"
        name = row.get("model") or row.get("input") or row.get("labels", {}).get("input", "–")
        cells.append([str(row["metric"]), str(name), value, str(control), str(row.get("n", "–"))])
    return ["metric", "input", "value [95 %]", "re-paired control", "n"], cells


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
