"""Retrieval as one can look at it: the picture that was seen beside those that the EEG came closest to.

The share of epochs with a rank of at most k against k is the cumulative match characteristic of biometrics (Moon &
Phillips, 2001, Perception 30:303-321); at k = 1 and 5 it is the top-1 and top-5 of the tables.

Shapes: S subjects, N pictures, M pictures in the gallery.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, no window

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ttd.data.reader import ShardReader
from ttd.metrics.manifest import read_lines
from ttd.metrics.uncertainty import bootstrap_interval, grand_mean
from ttd.pages import figures, page
from ttd.seeding import key

FILE = "retrieval.jsonl"
FIELDS = ("model", "subject", "image_id", "image_sha256", "repetitions", "gallery", "rank", "nearest")

PER_KIND, AT_RANDOM = 3, 6
"""Examples of the best, median and worst ranks each, and of all epochs at random: three stand side by side on a wide page."""

N_POINTS = 32
"""Places at most where a curve and its band are computed; on a logarithmic axis more cannot be told apart."""

SIDE = 128
"""Pixels of a picture's longer side at most: six in a row of 340 are shown at 53, and screens have two for one."""

AGAIN = "run ttd/eval.py again"

RIGHT = "outline: 3px solid var(--accent, #2f5d9b); outline-offset: -1px"
"""How the right picture is marked; the word below it says the same."""


def section(evaluation: Path, shards: Path, sheet: page.Page, *, seed: int = 0) -> list[str]:
    """Curves of encoder and ridge, and examples of the encoder with their nearest pictures.

    Args:
        evaluation: folder of ``ttd/eval.py``.
        shards: folder of the study; its ``images`` hold the pictures.
        sheet: the page that keeps the pictures.
        seed: of the bootstrap, and of the choice among equal ranks and at random.

    Raises:
        UserError: ``retrieval.jsonl`` is there but damaged.
    """
    path = Path(evaluation) / FILE
    records = read_lines(path, FIELDS, remedy=AGAIN) if path.is_file() else []
    if not records:
        return [page.missing(f"retrieval: not run (no {path})")]
    by_model = {name: [r for r in records if r["model"] == name] for name in dict.fromkeys(r["model"] for r in records)}
    name, mine = next(((n, rs) for n, rs in by_model.items() if n == "encoder"), next(iter(by_model.items())))
    gallery = max(int(r["gallery"]) for r in mine)
    many = sorted({int(r["repetitions"]) for r in mine})
    repetitions = str(many[0]) if len(many) == 1 else f"{many[0]} to {many[-1]}"
    intro = (
        f"Each EEG of the test part ({repetitions} repetitions averaged) ranks all {gallery} pictures of the gallery by "
        "cosine to what the model predicts. Rank 1: the picture that was seen is the nearest of all."
    )
    tables = {n: ranks(rs) for n, rs in by_model.items()}
    drawn = match_figure(tables, gallery=gallery, seed=seed)
    return [
        page.paragraph(intro),
        page.drawing(drawn, _curve_alt(tables, gallery), "Mean over subjects; band: 95 %, bootstrap over pictures."),
        page.table(*rank_cells(tables, gallery)),
        *examples(mine, name, ShardReader.open(Path(shards) / "images"), sheet, seed=seed),
    ]


def ranks(records: list[dict[str, Any]]) -> list[np.ndarray]:
    """Ranks by place: arrays [S, N], one per repeated showing of a picture to a subject, NaN where there was none."""
    subjects = sorted({str(r["subject"]) for r in records})
    pictures = sorted({r["image_sha256"] for r in records})
    row = {s: i for i, s in enumerate(subjects)}
    column = {p: i for i, p in enumerate(pictures)}
    out: list[np.ndarray] = []
    for record in records:
        place = row[str(record["subject"])], column[record["image_sha256"]]
        layer = next((table for table in out if np.isnan(table[place])), None)
        if layer is None:
            layer = np.full((len(subjects), len(pictures)), np.nan)
            out.append(layer)
        layer[place] = record["rank"]
    return out


def matched(tables: list[np.ndarray], k: int) -> np.ndarray:
    """Share [S, N] of a subject's epochs of a picture with a rank of at most ``k``; NaN where it has none."""
    layers = np.stack(tables)
    seen = np.isfinite(layers).sum(0)
    return np.where(seen, (layers <= k).sum(0) / np.maximum(seen, 1), np.nan)


def match_figure(tables: dict[str, list[np.ndarray]], *, gallery: int, seed: int) -> Figure:
    """Share of epochs with rank ≤ k against k, each model with its band, and chance k / M."""
    places = np.unique(np.geomspace(1, gallery, N_POINTS).round().astype(int))
    figure, axis = plt.subplots(figsize=(4.8, 3.5))
    for (name, layers), colour in zip(tables.items(), figures.COLOURS * len(tables), strict=False):
        shares = [matched(layers, int(k)) for k in places]
        line = "-" if colour == figures.COLOURS[0] else (0, (5, 1.5))  # told apart without colour as well
        axis.plot(places, [grand_mean(s) for s in shares], label=name, color=colour, linewidth=1.8, linestyle=line)
        if shares[0].shape[1] > 1:
            bands = np.array([bootstrap_interval(s, seed=seed) for s in shares])
            axis.fill_between(places, bands[:, 0], bands[:, 1], color=colour, alpha=0.16, linewidth=0)
    smooth = np.geomspace(1, gallery, 200)
    axis.plot(smooth, smooth / gallery, color="#8a5a00", linewidth=1.2, linestyle=(0, (2, 2)), label="chance, k/M")
    axis.set_xscale("log")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if k <= gallery]
    axis.set_xticks(ticks, [str(k) for k in ticks])
    axis.minorticks_off()
    axis.set(xlim=(1, gallery), ylim=(0, 1.01))
    axis.set_xlabel(f"k of {gallery} pictures", fontsize=11)
    axis.set_ylabel("share with rank ≤ k", fontsize=11)
    axis.tick_params(labelsize=10)
    axis.legend(fontsize=10, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, columnspacing=1.2)
    figures.tidy(axis)
    figure.tight_layout()
    return figure


def _curve_alt(tables: dict[str, list[np.ndarray]], gallery: int) -> str:
    said = [
        f"{name} {100 * grand_mean(matched(layers, 1)):.1f} % at rank 1, {100 * grand_mean(matched(layers, 5)):.1f} % up "
        "to rank 5"
        for name, layers in tables.items()
    ]
    return f"share of epochs by rank of the seen picture: {'; '.join(said)}; chance {100 / gallery:.1f} % at rank 1"


def rank_cells(tables: dict[str, list[np.ndarray]], gallery: int) -> tuple[list[str], list[list[str]]]:
    """Header and cells: the curve at a few ranks, and the median rank."""
    at = [k for k in (1, 5, 10, 50) if k < gallery]
    cells = [
        [name, *(f"{100 * grand_mean(matched(layers, k)):.1f} %" for k in at), f"{np.nanmedian(np.stack(layers)):g}"]
        for name, layers in tables.items()
    ]
    cells.append(["chance", *(f"{100 * k / gallery:.1f} %" for k in at), f"{(gallery + 1) / 2:g}"])
    return ["", *(f"rank ≤ {k}" if k > 1 else "rank 1" for k in at), "median rank"], cells


def choose(records: list[dict[str, Any]], *, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Epochs to show: some at random out of all, then the best, those nearest the median, and the worst of the rest.

    Which of several epochs with the same rank is shown is drawn by key, so nobody chose it.
    """

    def drawn(record: dict[str, Any]) -> int:
        return key(seed, "neighbours", str(record["subject"]), record["image_sha256"])

    rest = sorted(records, key=drawn)
    chance_ones, rest = rest[:AT_RANDOM], rest[AT_RANDOM:]
    median = float(np.median([r["rank"] for r in records]))
    orders = {
        "best": lambda r: r["rank"],
        "median": lambda r: abs(r["rank"] - median),
        "worst": lambda r: -r["rank"],
    }
    out: dict[str, list[dict[str, Any]]] = {}
    for name, order in orders.items():
        out[name] = sorted(rest, key=order)[:PER_KIND]  # stable: equal ranks stay in the drawn order
        rest = [r for r in rest if not any(r is other for other in out[name])]
    return {**{name: rows for name, rows in out.items() if rows}, "random": chance_ones}


def examples(
    records: list[dict[str, Any]], model: str, images: ShardReader, sheet: page.Page, *, seed: int
) -> list[str]:
    """Rows of pictures: the one that was seen, then the five nearest of the gallery."""
    titles = {
        "best": "Best ranks", "median": "Ranks nearest the median", "worst": "Worst ranks",
        "random": "Drawn at random from all epochs",
    }  # fmt: skip
    chosen = choose(records, seed=seed)
    note = (
        f"Model: {model}. Left: the picture that was seen. After it the five nearest pictures of the gallery, nearest "
        f"first; the right one is outlined and says so. Among epochs of the same rank the seed ({seed}) decides which is "
        "shown."
    )
    out = ["<h3>Seen, and nearest</h3>", page.paragraph(note)]
    for name, rows in chosen.items():
        sets = "".join(example(record, images, sheet) for record in rows)
        out.append(f'<h4>{titles[name]}</h4><div class="grid wide">{sets}</div>')
    return out


def example(record: dict[str, Any], images: ShardReader, sheet: page.Page) -> str:
    """One epoch as a figure: six pictures in a row, and a caption with subject, picture and rank."""
    cells = [_cell(record, f"seen: {_name(record)}", images, sheet, word="seen")]
    found = False
    for number, near in enumerate(record["nearest"], start=1):
        right = near["image_sha256"] == record["image_sha256"]
        found |= right
        about = f"nearest {number}: {_name(near)}, cosine {near['cosine']:.2f}" + (", the right one" if right else "")
        cells.append(_cell(near, about, images, sheet, word="✓ right" if right else str(number), right=right))
    where = "" if found else f", not among the {len(record['nearest'])} nearest"
    caption = f"Subject {record['subject']}, {_name(record)}: rank {record['rank']} of {record['gallery']}{where}"
    row = f'<div class="set">{"".join(cells)}</div>'
    return f'<figure class="card">{row}<figcaption>{page.escape(caption)}</figcaption></figure>'


def _name(record: dict[str, Any]) -> str:
    concept = record.get("concept")
    return f"{record['image_id']} ({concept})" if concept else str(record["image_id"])


def _cell(
    record: dict[str, Any], about: str, images: ShardReader, sheet: page.Page, *, word: str, right: bool = False
) -> str:
    name = str(record.get("concept") or record["image_id"])
    try:
        with Image.open(io.BytesIO(images.image(images.index.find(record["image_sha256"])))) as picture:
            shown = sheet.stimulus(np.asarray(picture.convert("RGB")), about, name, max_side=SIDE)
    except KeyError:
        shown = page.missing(f"{about}: not in the shards")
    mark = f' style="{RIGHT}"' if right else ""
    said = f"<b>{page.escape(word)}</b>" if right else page.escape(word)
    return f"<div><div{mark}>{shown}</div><span>{said}</span></div>"
