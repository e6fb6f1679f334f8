"""From picture to solid: figures of the lifting run, and solids that can be turned by hand.

Everybody sees turntable pictures; the viewer and a mesh load when a reader asks for them.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ttd.config import UserError
from ttd.geometry.lift_job import HEADLINE
from ttd.geometry.meshes import from_glb
from ttd.metrics.geometry import FRAMES, METRICS
from ttd.pages import page
from ttd.pages.page_mesh import simplified, to_page_glb

INPUTS = {"decoded": "from the reconstruction", "oracle": "from the picture shown", "own": "from the picture"}
"""What a solid was lifted from, in the order of the page."""
ROUTES = {"plain": "", "refined": ", drawn again under its description", "composed": ", object by object"}
"""How, in the order of the page."""

FSCORE = "raw_fscore@0.05"
"""The middle one of the thresholds that ttd/lift.py measures; the table has the others."""


@dataclass(frozen=True)
class Solid:
    """One lifted item as its folder describes it."""

    folder: Path
    item: str
    source: str
    route: str
    subject: str
    image_id: str
    metrics: dict[str, float | None]
    reason: str

    @property
    def mesh(self) -> Path | None:
        path = self.folder / "mesh.glb"
        return path if path.is_file() else None


def section(lift: Path, sheet: page.Page, names: dict[str, str]) -> list[str]:
    """The table of a lifting run and a card per item; ``names`` says what a picture shows, by its ``image_id``.

    Raises:
        UserError: a file of the run cannot be read.
    """
    summary = _json(lift / "lift.json")
    every = page.table(*lift_cells(summary, list(METRICS)))
    out = [
        page.table(*lift_cells(summary, HEADLINE)),
        f"<details><summary>every figure</summary>{every}</details>",
    ]
    items: dict[str, list[Solid]] = {}
    for solid in read_solids(lift):
        if solid.source == "oracle" and sheet.stimuli == "leave_out":
            continue  # a solid shows what the picture shows
        items.setdefault(solid.item, []).append(solid)
    if not items:
        return out
    sheet.style("gallery.css")
    if any(solid.mesh for group in items.values() for solid in group):
        sheet.script("viewer.js")
        for name in ("model-viewer-umd.min.js", "model-viewer.LICENSE"):
            sheet.asset(name)
    out.append(
        page.paragraph(
            f"All {len(items)} items in their order. The solid from the picture shown is what lifting reaches without EEG; "
            f"what the one from the reconstruction lacks beside it is the decoder's error. F is the F-score at "
            f"{FSCORE.partition('@')[2]} against the true solid, where it stands. Of pictures shown only the plain route is "
            "here, lift.json has the others. The viewer shows a mesh with fewer faces; the whole one lies beside it.",
            soft=True,
        )
    )
    cards = "".join(card(group, sheet, names) for group in items.values())
    return [*out, f'<ul class="cards solids">{cards}</ul>']


def read_solids(lift: Path) -> list[Solid]:
    """The items of a lifting run, those of one picture together, decoded before oracle."""
    solids = []
    for folder in sorted(path for path in (lift / "lift").glob("*") if path.is_dir()):
        record = (_json(folder / "status.json") or {}).get("record", {})
        source, route = str(record.get("input", "own")), str(record.get("route", "plain"))
        if source == "oracle" and route != "plain":
            continue
        scores = _json(lift / "score" / folder.name / "metrics.json") or {}
        solids.append(Solid(
            folder, str(record.get("item", folder.name)), source, route, str(record.get("subject", "")),
            str(record.get("image_id", "")), scores.get("metrics", {}), str(record.get("reason", "")),
        ))  # fmt: skip
    sources, routes = list(INPUTS), list(ROUTES)
    return sorted(solids, key=lambda s: (s.item, sources.index(s.source), routes.index(s.route)))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); run ttd/lift.py again") from error


def card(group: list[Solid], sheet: page.Page, names: dict[str, str]) -> str:
    """The solids of one item side by side."""
    first = group[0]
    told = " · ".join(filter(None, [first.image_id, f"subject {first.subject}" if first.subject else ""]))
    title = names.get(first.image_id, "") or first.item
    inner = "".join(half(solid, title, sheet) for solid in group)
    return f'<li class="item"><p class="about"><b>{escape(title)}</b> {escape(told)}</p><div class="pair">{inner}</div></li>'


def half(solid: Solid, title: str, sheet: page.Page) -> str:
    """One solid: the picture it was lifted from, the turntable, its F-score, the button, the whole mesh."""
    what = INPUTS[solid.source] + ROUTES[solid.route]
    score = solid.metrics.get(FSCORE)
    head = f"<div>{escape(what)}" + (f', F <b class="value">{score:.3f}</b></div>' if score is not None else "</div>")
    poster = solid.folder / "poster.png"
    views = f'<div class="views">{pictures(solid, title, sheet)}</div>' if poster.is_file() else ""
    if solid.mesh is None:
        reason = f": {solid.reason}" if solid.reason else ""
        return f'<div class="solid">{head}{views}<p class="says">no surface{escape(reason)}</p></div>'
    name, folder = solid.folder.name, sheet.folder
    assert folder is not None, "meshes lie beside the page"
    write_mesh(solid.mesh, name, folder)
    about = f"{title}, solid {what}"
    return (
        f'<div class="solid" data-mesh="{escape(name, quote=True)}" data-alt="{escape(about, quote=True)}">{head}{views}'
        f'<button type="button" aria-label="turn it: {escape(about, quote=True)}" hidden>turn it</button> '
        f'<a href="solids/{escape(name, quote=True)}.glb" download>whole mesh, '
        f'{solid.mesh.stat().st_size / 1000:.0f} kB</a><p class="says" role="status"></p></div>'
    )


def pictures(solid: Solid, title: str, sheet: page.Page) -> str:
    """The poster of a lifted item, cut where it is a strip: first the square it was lifted from, then the views."""
    try:
        with Image.open(solid.folder / "poster.png") as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{solid.folder / 'poster.png'}: not readable ({error}); run ttd/lift.py again") from error
    height, width = pixels.shape[:2]
    views = f"turntable of {title}"
    if width < 2 * height:
        return f"<div>{sheet.image(pixels, views, max_side=512)}</div>"
    source, turns = pixels[:, :height], pixels[:, height:]
    if solid.source == "oracle":
        picture = sheet.stimulus(source, f"shown: {title}", title, max_side=128)
    else:
        picture = sheet.image(source, f"reconstructed: {title}", max_side=128)
    return f'<div class="input">{picture}</div><div class="turns">{sheet.image(turns, views, max_side=512)}</div>'


def write_mesh(mesh: Path, name: str, folder: Path) -> None:
    """``meshes/<name>.js`` for the viewer, and the whole GLB as ``solids/<name>.glb``.

    Raises:
        UserError: the file holds no mesh.
    """
    try:
        small = to_page_glb(simplified(from_glb(mesh.read_bytes())))
    except ValueError as error:
        raise UserError(f"{mesh}: {error}; run ttd/lift.py again") from error
    for part in ("meshes", "solids"):
        (folder / part).mkdir(exist_ok=True)
    content = base64.b64encode(small).decode()
    (folder / "meshes" / f"{name}.js").write_text(f"ttdMesh({json.dumps(name)}, {json.dumps(content)});\n")
    shutil.copyfile(mesh, folder / "solids" / f"{name}.glb")


def lift_cells(summary: dict[str, Any], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of some ``metrics`` from the ``rows`` of ``lift.json``."""
    arrows = {"higher": " ↑", "lower": " ↓"}
    cells = []
    for row in sorted((r for r in summary.get("rows", []) if r["metric"] in metrics), key=_place(metrics)):
        value, control = (
            f"{row[name]:.3f} [{row[low]:.3f}, {row[high]:.3f}]" if name in row else "–"
            for name, low, high in (("value", "low", "high"), ("control", "control_low", "control_high"))
        )
        facts = METRICS[row["metric"]]
        title = facts.title.format(k=row.get("labels", {}).get("ways", "?"))
        if len(metrics) <= len(HEADLINE):
            title = title.removesuffix(f" ({FRAMES['raw_']})")
        named = title + arrows.get(facts.direction, "")
        cells.append([named, str(row["input"]), str(row["route"]), value, control, str(row["n"])])
    return ["metric", "input", "route", "value [95 %]", "re-paired control", "n"], cells


def _place(metrics: Sequence[str]) -> Callable[[dict[str, Any]], int]:
    return lambda row: metrics.index(row["metric"])
