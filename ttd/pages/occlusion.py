"""What the model uses: how far retrieval falls when electrodes or a stretch of time are hidden from it.

Occlusion (Zeiler & Fergus, 2014, arXiv:1311.2901, section 4.2) on EEG. It speaks about the model and not about the
brain: neighbouring electrodes carry the same sources by volume conduction, and weights of a decoder are no map of the
activity they read (Haufe et al., 2014, NeuroImage 87:96-110).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, no window

import matplotlib.pyplot as plt
import mne
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ttd.config import UserError
from ttd.eeg.montage import is_electrode
from ttd.pages import figures, page

FILE = "occlusion.json"
FIELDS = ("metric", "repetitions", "chance", "study", "intact", "time", "electrodes")
GREY = "#8b93a3"
N_STRONGEST = 10

MIN_MAP = 8
"""Electrodes that a map needs: with fewer it would be drawn mostly from extrapolation."""

TOLERANCE_S = 1e-6
"""A window that stops at the onset, up to rounding, lies before it."""


def section(evaluation: Path) -> list[str]:
    """Drop of the score by hidden time window and by hidden electrode, with a table of the strongest ones.

    Raises:
        UserError: ``occlusion.json`` is there but damaged.
    """
    path = Path(evaluation) / FILE
    if not path.is_file():
        return [page.missing(f"occlusion: not run (no {path})")]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        absent = [name for name in FIELDS if name not in content]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); run ttd/eval.py again") from error
    if absent:
        raise UserError(f"{path}: lacks {', '.join(absent)}; run ttd/eval.py again")
    score, intact = content["metric"].replace("_", " "), content["intact"]
    out = [
        page.paragraph(
            f"Part of the EEG is replaced by the mean of the training part, and the {score} is measured again "
            f"({content['repetitions']} repetitions averaged). Nothing hidden: {intact['value']:.3f} "
            f"[{intact['low']:.3f}, {intact['high']:.3f}], chance {content['chance']:.3f}. A drop says that the model "
            "uses what was hidden. It does not say that the brain holds the picture there: neighbouring electrodes and "
            "times carry the same signal, by volume conduction and because responses last, and what the model reads twice "
            "it can spare once."
        )
    ]
    out += hidden_time(content["time"], score) if content["time"] else [page.missing("windows of time: not hidden")]
    if not content["electrodes"]:
        return [*out, page.missing("electrodes: not hidden")]
    return out + hidden_electrodes(content["electrodes"], score, intact["value"])


def before_onset(window: dict[str, Any]) -> bool:
    """Whether a window ends before the picture appears, so that hiding it must change nothing."""
    return window["stop_s"] <= TOLERANCE_S


def hidden_time(windows: list[dict[str, Any]], score: str) -> list[str]:
    """Heading, figure and verdict of the control."""
    strongest = max(windows, key=lambda w: w["drop"])
    alt = (
        f"drop of the {score} by hidden time window; largest {strongest['drop']:.3f} "
        f"at {_span(strongest)}, {len(windows)} windows"
    )
    control = [w for w in windows if before_onset(w)]
    if control:
        kept = sum(w["low"] <= 0 <= w["high"] for w in control)
        largest = max(abs(w["drop"]) for w in control)
        caption = (
            f"Control, windows before onset, which cannot hold the picture: the interval includes 0 in {kept} of "
            f"{len(control)}, the largest change is {largest:.3f}. Lines: 95 % interval of the drop."
        )
    else:
        caption = "No window lies before onset, so there is no control. Lines: 95 % interval of the drop."
    return ["<h3>Hidden time</h3>", page.drawing(time_figure(windows, score), alt, caption)]


def _span(window: dict[str, Any]) -> str:
    return f"{1e3 * window['start_s']:.0f} to {1e3 * window['stop_s']:.0f} ms"


def _whiskers(entries: list[dict[str, Any]]) -> np.ndarray:
    """Lengths [2, N] of the lines below and above each drop."""
    below = [max(e["drop"] - e["low"], 0) for e in entries]
    above = [max(e["high"] - e["drop"], 0) for e in entries]
    return np.array([below, above])


def time_figure(windows: list[dict[str, Any]], score: str) -> Figure:
    """One bar per window, as wide as the window; grey before onset."""
    figure, axis = plt.subplots(figsize=(5.2, 3.3))
    starts = np.array([1e3 * w["start_s"] for w in windows])
    stops = np.array([1e3 * w["stop_s"] for w in windows])
    colours = [GREY if before_onset(w) else figures.COLOURS[0] for w in windows]
    drops = [w["drop"] for w in windows]
    axis.bar(starts, drops, 0.94 * (stops - starts), align="edge", color=colours, alpha=0.8)
    centres = starts + 0.47 * (stops - starts)
    axis.errorbar(centres, drops, _whiskers(windows), fmt="none", ecolor="#1d2330", elinewidth=1.1, capsize=2)
    axis.axhline(0, color="#1d2330", linewidth=0.9)
    axis.axvline(0, color="#8a5a00", linewidth=1.2, linestyle=(0, (4, 3)))
    axis.text(0, 0.99, " onset", color="#8a5a00", fontsize=10, va="top", transform=axis.get_xaxis_transform())
    if GREY in colours:
        axis.axvspan(starts.min(), 0, color=GREY, alpha=0.15, linewidth=0)
    named = {GREY: "before onset: control", figures.COLOURS[0]: "after onset"}
    handles = [Patch(color=colour, alpha=0.8, label=name) for colour, name in named.items() if colour in colours]
    axis.legend(
        handles=handles, fontsize=10, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2
    )  # fmt: skip
    axis.set_xlabel("hidden window, ms after onset", fontsize=11)
    axis.set_ylabel(f"drop of the\n{score}", fontsize=11)
    axis.tick_params(labelsize=10)
    axis.margins(y=0.16)
    figures.tidy(axis)
    figure.tight_layout()
    return figure


def hidden_electrodes(electrodes: list[dict[str, Any]], score: str, intact: float) -> list[str]:
    """Heading, map or bars, and the strongest electrodes in numbers."""
    ranked = sorted(electrodes, key=lambda e: -e["drop"])
    strongest = ", ".join(f"{e['ch_name']} {e['drop']:.3f}" for e in ranked[:3])
    placed = _placed(electrodes)
    many = len(electrodes)
    above, below = sum(e["low"] > 0 for e in electrodes), sum(e["high"] < 0 for e in electrodes)
    caption = (
        f"Each electrode is hidden with its neighbours. Of {many} intervals {above} lie above 0 and {below} below; about "
        f"{0.025 * many:.1f} would on either side by chance alone."
    )
    if len(placed) >= MIN_MAP:
        caption += " White dots: those whose interval lies above 0."
        elsewhere = [e["ch_name"] for e in electrodes if e not in placed]
        caption += f" Not on the map, without a known place: {', '.join(elsewhere)}." if elsewhere else ""
        alt = f"scalp map of the drop of the {score} by hidden electrode; strongest {strongest}"
        drawn = page.drawing(map_figure(placed, score), alt, caption, vector=False)
    else:
        alt = f"drop of the {score} by hidden electrode; strongest {strongest}"
        drawn = page.drawing(bar_figure(electrodes, score), alt, f"{caption} Too few electrodes for a map.")
    cells = [
        [e["ch_name"], ", ".join(e["with"]) or "–", f"{e['drop']:.3f} [{e['low']:.3f}, {e['high']:.3f}]",
         f"{100 * e['drop'] / intact:.0f} %" if intact else "–"]
        for e in ranked[:N_STRONGEST]
    ]  # fmt: skip
    header = ["electrode", "hidden with", "drop [95 %]", "of score"]
    return ["<h3>Hidden electrodes</h3>", drawn, page.table(header, cells)]


def _placed(electrodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose place on the head is known."""
    return [e for e in electrodes if is_electrode(e["ch_name"])]


def map_figure(electrodes: list[dict[str, Any]], score: str) -> Figure:
    """Scalp map of the drops, colours symmetric around 0; white dots where the interval lies above 0."""
    drops = np.array([e["drop"] for e in electrodes])
    names = [e["ch_name"] for e in electrodes]
    info = figures.evoked(drops[:, None], names, 1.0, 0.0, n_averaged=1).info  # for the places of the electrodes
    limit = float(np.abs(drops).max()) or 1.0
    figure, axis = plt.subplots(figsize=(3.9, 3.1))
    sure = np.array([e["low"] > 0 for e in electrodes])
    image, _ = mne.viz.plot_topomap(
        drops, info, axes=axis, show=False, vlim=(-limit, limit), contours=4, cmap="RdBu_r", sensors="k,", mask=sure,
        mask_params={"marker": "o", "markerfacecolor": "white", "markeredgecolor": "#1d2330", "markersize": 3.6},
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axis, shrink=0.75, pad=0.03)
    bar.set_label(f"drop of the {score}", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def bar_figure(electrodes: list[dict[str, Any]], score: str) -> Figure:
    """One bar per electrode with its interval, for caps that are too small for a map."""
    figure, axis = plt.subplots(figsize=(4.8, 3.2))
    places = np.arange(len(electrodes))
    axis.bar(places, [e["drop"] for e in electrodes], 0.7, color=figures.COLOURS[0], alpha=0.8)
    axis.errorbar(
        places, [e["drop"] for e in electrodes], _whiskers(electrodes), fmt="none", ecolor="#1d2330", capsize=3
    )
    axis.axhline(0, color="#1d2330", linewidth=0.9)
    axis.set_xticks(places, [e["ch_name"] for e in electrodes])
    axis.set_ylabel(f"drop of the\n{score}", fontsize=11)
    axis.tick_params(labelsize=10)
    figures.tidy(axis)
    figure.tight_layout()
    return figure
