"""Shown and reconstructed: a strip that is not only the best, and every item as a card to order and filter.

Cards are plain HTML: without the script they stand in the order of the manifest and can be read and printed.
"""

from __future__ import annotations

import math
from functools import partial
from html import escape

from ttd.metrics.catalogue import METRICS
from ttd.metrics.manifest import CONTROL_NAMES
from ttd.metrics.row import MEAN, Row
from ttd.pages import page
from ttd.pages.items import PREFERRED, Item, metrics_of, picks

SIDE = 160
"""Pixels of a picture's longer side at most: cards show them at 80 to 110."""


def section(items: list[Item], sheet: page.Page, rows: list[Row], *, seed: int) -> list[str]:
    """The strip, the controls and the cards; ``rows`` of the evaluation say the score's chance level."""
    sheet.style("gallery.css")
    sheet.script("gallery.js")
    metrics = metrics_of(items)
    metric = next((name for name in PREFERRED if name in metrics), None)
    width = max(len(item.cells) for item in items) + 1
    repetitions = sorted({item.repetitions for item in items})
    one = partial(card, sheet=sheet, metrics=metrics, metric=metric, counted=len(repetitions) > 1)
    out = [
        *introduction(items, repetitions),
        "<h3>Best, median, worst and three at random</h3>" if metric else "<h3>Three at random</h3>",
        page.paragraph(said_of_strip(items, metric, rows, seed=seed), soft=True),
        cards([one(item, why=why) for why, item in picks(items, metric, seed=seed)], width, "strip"),
        f"<h3>All {len(items):,} items</h3>",
    ]
    if metric is None:
        out.append(page.missing("No items.jsonl beside the evaluation: cards have no scores and stand in their order."))
    out.append(controls(items, metrics, metric))
    return [*out, cards([one(item) for item in items], width, "all", name="all-items")]


def introduction(items: list[Item], repetitions: list[int]) -> list[str]:
    """What stands where in a card, and what to hold the control against."""
    cells = [cell for item in items for cell in item.cells]
    averaged = " or ".join(map(str, repetitions))
    said = f"Left what was shown, then what each run made of the EEG, with {averaged} repetitions averaged."
    samples = max(cell.samples for cell in cells)
    if samples > 1:
        said += f" Scores are means over up to {samples} pictures per item, of which the first is shown."
    wrong = CONTROL_NAMES["shuffled"]
    if not any(cell.label == wrong for cell in cells):
        return [
            page.paragraph(said),
            page.missing("The control from wrong EEG was not generated: nothing to compare with."),
        ]
    said += (
        f" “{wrong[0].upper()}{wrong[1:]}” was made by {items[0].cells[0].label} from the recording of another picture: "
        "what it shares with the picture shown is chance."
    )
    return [page.paragraph(said)]


def said_of_strip(items: list[Item], metric: str | None, rows: list[Row], *, seed: int) -> str:
    """Which score picked, its chance level and what the control reaches, and how the random ones came about."""
    drawn = f"The random ones are drawn by the report's seed ({seed}) before any score is looked at."
    if metric is None:
        return drawn
    first, facts = items[0].cells[0].label, METRICS[metric]
    row = next((r for r in rows if r.metric == metric and r.subject == MEAN and "minus" not in r.labels), None)
    chance = "chance: see the results" if row is None else "no chance level"
    if row is not None and row.chance is not None:
        chance = f"chance {row.chance:.3g}"
    controls = [
        cell.scores[metric]
        for item in items
        for cell in item.cells
        if cell.label == CONTROL_NAMES["shuffled"] and metric in cell.scores
    ]
    of_control = f"; wrong EEG reaches {sum(controls) / len(controls):.3f} on average" if controls else ""
    title = row.title if row else facts.title.replace(", {k}-way", "")
    return (
        f"Picked by {title} of {first} ({facts.direction} is better; {chance}{of_control}) over all subjects; items "
        f"with the same score stand in the order of the manifest. {drawn}"
    )


def cards(items: list[str], width: int, kind: str, *, name: str = "") -> str:
    """A list of cards, wide enough for ``width`` pictures side by side."""
    place = f' id="{name}"' if name else ""
    least = min(max(240, 82 * width), 530)  # two beside each other on a wide page, whatever the number of controls
    return f'<ul class="cards {kind}"{place} style="--card: {least}px">{"".join(items)}</ul>'


def card(item: Item, *, sheet: page.Page, metrics: list[str], metric: str | None, counted: bool, why: str = "") -> str:
    """One item: the picture shown, and the pictures made with their score and what the judge calls them."""
    about = f"{item.name}, {item.image_id}"
    shown = sheet.stimulus(item.shown, f"shown: {about}", item.name, max_side=SIDE)
    cells = [f"<div>{shown}<span>shown</span></div>"]
    for cell in item.cells:
        alt = f"{cell.label}: {about}, subject {item.subject}"
        inner = sheet.image(cell.path, alt, max_side=SIDE) + f"<span>{escape(cell.label)}"
        if metric:
            inner += f' <b class="value">{_number(cell.scores.get(metric))}</b>'
        inner += "</span>" + (f"<span>“{escape(cell.named)}”</span>" if cell.named else "")
        numbers = " ".join(_number(cell.scores.get(name), "-", ".5g") for name in metrics)
        data = f' data-run="{escape(cell.label, quote=True)}" data-scores="{numbers}"' if metrics and not why else ""
        cells.append(f"<div{data}>{inner}</div>")
    told = f"{item.image_id} · subject {item.subject}" + (f" · {item.repetitions} repetitions" if counted else "")
    text = " ".join([item.name, item.concept, told]).lower()
    data = (
        ""
        if why
        else f' data-order="{item.order}" data-subject="{escape(item.subject, quote=True)}" '
        f'data-concept="{escape(item.concept, quote=True)}" data-text="{escape(text, quote=True)}"'
    )
    head = f'<span class="why">{why}</span>' if why else ""
    return (
        f'<li class="item"{data}>{head}<p class="about"><b>{escape(item.name)}</b> {escape(told)}</p>'
        f'<div class="set">{"".join(cells)}</div></li>'
    )


def controls(items: list[Item], metrics: list[str], metric: str | None) -> str:
    """The form above the cards; the script shows it, as nothing happens without."""
    orders = [("order", "as generated"), ("subject", "subject"), ("concept", "concept")]
    if metrics:
        orders[1:1] = [("best", "best first"), ("worst", "worst first")]
    fields = [_select("order", "Order", orders)]
    if metrics:
        fields.append(_select("metric", "Score", [(m, _title(m)) for m in metrics], chosen=metric))
        runs = list(dict.fromkeys(cell.label for item in items for cell in item.cells if cell.scores))
        fields.append(_select("run", "of", [(run, run) for run in runs]))
        fields += [_input("low", "Score at least", "number"), _input("high", "at most", "number")]
    subjects = sorted({item.subject for item in items})
    concepts = sorted({item.concept for item in items} - {""})
    fields.append(_select("subject", "Subject", [("", "all"), *((s, s) for s in subjects)]))
    fields.append(_select("concept", "Concept", [("", "all"), *((c, c.replace("_", " ")) for c in concepts)]))
    fields.append(_input("text", "Text", "search"))
    return (
        '<form class="controls" aria-label="order and filter the items" autocomplete="off" hidden>'
        f'{"".join(fields)}<button type="reset">Reset</button>'
        f'<output id="count" aria-live="polite">{len(items)} of {len(items)}</output></form>'
    )


def _select(name: str, label: str, options: list[tuple[str, str]], *, chosen: str | None = None) -> str:
    def option(value: str, text: str) -> str:
        lower = " data-lower" if value in METRICS and METRICS[value].direction == "lower" else ""
        return (
            f'<option value="{escape(value, quote=True)}"{" selected" if value == chosen else ""}{lower}>'
            f"{escape(text)}</option>"
        )

    return f'<label>{label}<select name="{name}">{"".join(option(*o) for o in options)}</select></label>'


def _input(name: str, label: str, kind: str) -> str:
    step = ' step="any"' if kind == "number" else ""
    return f'<label>{label}<input name="{name}" type="{kind}"{step}></label>'


def _title(metric: str) -> str:
    facts = METRICS[metric]
    arrow = "↑" if facts.direction == "higher" else "↓"
    return f"{facts.title.replace(', {k}-way', '')} {arrow}"


def _number(value: float | None, none: str = "–", form: str = ".3f") -> str:
    return none if value is None or math.isnan(value) else format(value, form)
