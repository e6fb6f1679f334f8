"""Where the data come from, and what a model that was trained on them is for.

The data card says what the shards know of themselves (Gebru et al., 2021, "Datasheets for Datasets", Communications of
the ACM 64:86-92). The intended use stands here once: in the report, and in the model card of every export (Mitchell et
al., 2019, "Model Cards for Model Reporting", arXiv:1810.03993).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.quarantine import read_quarantine
from ttd.data.splits import SplitManifest
from ttd.pages import page

PARTS = ("train", "validation", "test")

TWO_COLUMNS = "display: grid; grid-template-columns: fit-content(10em) 1fr; gap: 6px 18px; margin: 0 0 20px"
"""Names break between words on a phone, where a table would break within them."""

USE_TITLE = "Intended use and consent"

USE = (
    (
        "For",
        "research on decoding methods and on groups of people who agreed to it. What is drawn is the model's guess: most "
        "of a picture comes from the image model, which draws something plausible for any EEG, noise included. Hold it "
        "against its controls.",
    ),
    (
        "Not for",
        "diagnosis or treatment (it is no medical device), lie detection, interrogation, hiring, monitoring, or anyone who "
        "did not consent to this very use.",
    ),
    (
        "Consent",
        "names decoding of what was seen as a purpose, says who receives recordings, weights and pictures, and can be "
        "withdrawn without reason; what was trained on the recordings is then trained again without them. No secret "
        "recording, no secret decoding.",
    ),
    (
        "Privacy",
        "EEG is personal data: it can identify people and may speak of their health. Treat weights trained on it, and "
        "reconstructions of stimuli that are not public, as you must treat the recordings.",
    ),
)
"""What it is for, what not, and what the people who were recorded must have agreed to."""


def intended_use() -> list[str]:
    """The intended use as parts of a page."""
    return [f"<p><b>{page.escape(head)}:</b> {page.escape(text)}</p>" for head, text in USE]


def intended_use_markdown() -> str:
    """The same as a section of a model card in Markdown, without a line break at its end."""
    return "\n\n".join([f"## {USE_TITLE}", *(f"**{head}:** {text}" for head, text in USE)])


def data_card(shards: Path) -> list[str]:
    """Study, recordings, preprocessing, split, licences, and what was left out, as the shards tell it.

    Raises:
        UserError: the shards cannot be read.
    """
    shards = Path(shards)
    index = ShardIndex.read(shards / "train")
    build = _build(shards)
    pairs = "".join(
        f'<dt class="soft">{page.escape(name)}</dt><dd style="margin: 0">{page.escape(value)}</dd>'
        for name, value in facts(shards, index)
    )
    return [f'<dl style="{TWO_COLUMNS}">{pairs}</dl>', *parts(shards), "<h3>Left out</h3>", *left_out(shards, build)]


def _build(shards: Path) -> dict[str, Any]:
    path = shards / "build.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); build the shards again") from error


def facts(shards: Path, index: ShardIndex) -> list[list[str]]:
    """Name and value of what holds for the whole study.

    Images carry the licence of their study, which need not speak of them: THINGS-EEG1 is CC0, its pictures are not.
    """
    own = index.facts
    stop = index.tmin + (index.n_times - 1) / index.sfreq
    meta = index.meta(0)
    citation = str(own.source.get("citation") or "")
    cells = [["study", own.study + (" (simulated: nobody was recorded)" if own.simulated else "")]]
    cells += [["reference", citation]] if citation and citation != own.study else []
    cells += [["subjects in training", str(len(index.subjects))]]
    cells += [[f"electrodes, {cap}", f"{len(names)}: {', '.join(names)}"] for cap, names in sorted(own.caps.items())]
    cells += [
        ["sampling rate", f"{index.sfreq:g} Hz"],
        ["window", f"{1e3 * index.tmin:.0f} to {1e3 * stop:.0f} ms around each picture"],
        ["preprocessing", preprocessing(own.preprocessing) or "not stated"],
        ["when read", READ[own.normalise]],
    ]
    if meta.get("pairing") == "class":
        cells.append(["pairing", "by class: which picture was seen is not known, only its class"])
    licence = meta.get("licence") or "not stated"
    cells.append(["licence of the recordings", licence])
    if (shards / "images" / "index.json").is_file():
        pictures = ShardIndex.read(shards / "images").meta(0).get("licence") or "not stated"
        told = own.simulated or pictures != licence or "picture" in pictures.lower()
        cells.append(["licence of the pictures", pictures if told else "not stated apart from that of the recordings"])
    return cells


READ = {
    "channel": "z-score per channel, by the training part",
    "subject": "z-score per channel; per subject the mean response taken away and channels whitened, by the training part",
}
"""What the loader does to the EEG, by ``normalise`` of the index."""


def preprocessing(settings: dict[str, Any]) -> str:
    """The steps in words, in the order of the chain: filters, reference, epochs; other settings by their names."""
    known = {"sfreq", "l_freq", "h_freq", "notch", "reference", "channels", "epochs"}
    known |= {"interpolated"}  # by recording, among what was left out
    low, high, notch = (settings.get(name) for name in ("l_freq", "h_freq", "notch"))
    epochs = settings.get("epochs") or {}
    said = [f"high-pass {low:g} Hz"] if low else []
    said += [f"low-pass {high:g} Hz"] if high else []
    said += [f"notch {_value(notch)} Hz"] if notch else []
    said = said or ["no filter of this chain"]
    said += [f"reference: {_value(settings['reference'])}"] if settings.get("reference") else []
    if epochs.get("baseline"):
        start, stop = epochs["baseline"]
        said.append(f"baseline {_time(start, 'first sample')} to {_time(stop, 'last sample')}")
    if epochs:
        limit = epochs.get("reject_uv")
        said.append(f"epochs beyond ±{limit:g} µV left out" if limit else "no epoch left out for its amplitude")
    said += [f"{name.replace('_', ' ')}: {_value(v)}" for name, v in settings.items() if v and name not in known]
    return "; ".join(said)


def _time(seconds: float | None, otherwise: str) -> str:
    return otherwise if seconds is None else f"{1e3 * seconds:.0f} ms"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def parts(shards: Path) -> list[str]:
    """What was split by, and how much each part holds; of the test part only what the manifest says."""
    if not (shards / "split.json").is_file():
        return [page.missing("split: not stated (no split.json)")]
    manifest = SplitManifest.read(shards)
    by = {"given": "as the study gives it"}.get(manifest.by, f"by {manifest.by}")
    shared = (
        f"{manifest.shared_images:,} pictures are shown in more than one part."
        if manifest.shared_images
        else "No picture is shown in more than one part."
    )
    columns = ("repetitions", "recordings", "concepts", "images")
    lines = [
        [part, *(f"{getattr(manifest.counts[part], name):,}" for name in columns)]
        for part in PARTS
        if part in manifest.counts
    ]
    return [page.paragraph(f"Split {by}. {shared}"), page.table(["part", *columns], lines)]


def left_out(shards: Path, build: dict[str, Any]) -> list[str]:
    """Presentations, subjects, channels and damaged samples that are not used, each with its reason."""
    total = build.get("presentations")
    cells = [["presentations", f"{n:,} of {total:,}" if total else f"{n:,}", why] for why, n in _dropped(build)]
    cells += [["subject", name, why] for name, why in build.get("excluded", {}).items()]
    for name, report in build.get("channels", {}).items():
        cells += [[f"channels of {name}", ", ".join(report["bad"]), "bad"]] if report.get("bad") else []
        told = report.get("interpolated")
        cells += [[f"channels of {name}", ", ".join(told), "interpolated"]] if told else []
    for part in PARTS:
        listed = read_quarantine(shards / part)
        cells += [[f"samples of {part}", str(len(listed)), "damaged, in quarantine"]] if listed else []
    if cells:
        return [page.table(["what", "which", "why"], cells, wrap=True)]
    if not build:
        return [page.missing("not stated (no build.json); nothing is in quarantine")]
    every = f": all {total:,} presentations are in the shards" if total else ""
    return [page.paragraph(f"Nothing{every}; no sample is in quarantine.")]


def _dropped(build: dict[str, Any]) -> list[tuple[str, int]]:
    return [(why, int(n)) for why, n in build.get("dropped", {}).items() if n]
