"""Figures of the report: training curves, evoked responses and their topographies.

Evoked responses average the training part only; the test part stays closed to everything but evaluation.

Shapes: S subjects, C channels, T time points.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # files only, no window

import matplotlib.pyplot as plt
import mne
import numpy as np
from matplotlib.figure import Figure

from ttd.pages.runs import curves

COMPONENTS_S = (0.10, 0.17, 0.22, 0.40)
"""P1, N1, P2 and the late component of the visual response, in seconds (Luck, 2014, chapter 3)."""

NO_LOSS = ("logit_scale",)
"""Logged numbers that are neither a loss nor a fraction of right answers (top1, top5)."""

COLOURS = ("#2f5d9b", "#b5532a", "#3b7d4f", "#7a4a93", "#8a7a1f", "#476a73")


def tidy(axes: plt.Axes) -> None:
    """No frame where there is nothing to bound."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e7e9ee", linewidth=0.8)
    axes.set_axisbelow(True)


def training_curves(log: list[dict]) -> Figure | None:
    """Losses and fractions against the step, in training and on the validation part; None for an empty log."""
    panels = []
    for event, title in (("train", "training"), ("validation", "validation")):
        series = curves(log, event)
        scores = {name: s for name, s in series.items() if "top" in name}
        losses = {name: s for name, s in series.items() if name not in scores and name not in NO_LOSS}
        panels += [(title, losses)] if losses else []
        panels += [(f"{title}, fractions", scores)] if scores else []
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(4.9 * len(panels), 2.9), squeeze=False)
    for axis, (title, group) in zip(axes[0], panels, strict=True):
        for (name, (steps, values)), colour in zip(group.items(), COLOURS * len(group), strict=False):
            few = "o" if len(steps) < 30 else None
            axis.plot(steps, values, label=name, color=colour, linewidth=1.4, marker=few, markersize=3)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("step")
        axis.legend(fontsize=7.5, frameon=False)
        tidy(axis)
    figure.tight_layout()
    return figure


def evoked(
    mean_uv: np.ndarray, ch_names: Sequence[str], sfreq: float, tmin: float, *, n_averaged: int
) -> mne.EvokedArray:
    """An MNE Evoked of a mean response [C, T] in µV, electrodes at their ``standard_1005`` places."""
    info = mne.create_info(list(ch_names), sfreq, "eeg", verbose="error")
    response = mne.EvokedArray(mean_uv * 1e-6, info, tmin=tmin, nave=n_averaged, verbose="error")
    response.set_montage("standard_1005", match_case=False, on_missing="warn", verbose="error")
    return response


def _times(response: mne.EvokedArray) -> list[float]:
    return [t for t in COMPONENTS_S if response.times[0] <= t <= response.times[-1]]


def evoked_figure(response: mne.EvokedArray) -> Figure:
    """All channels over time, and maps of the scalp at the visual components.

    Caps of fewer than 8 electrodes get no map: it would be drawn mostly from extrapolation.
    """
    times = _times(response)
    if len(response.ch_names) >= 8 and times:
        with mne.use_log_level("ERROR"):  # it tells that there are no projectors
            figure = response.plot_joint(times=times, title="", show=False)
        figure.set_size_inches(8.2, 4.4)
        return figure
    figure, axis = plt.subplots(figsize=(8.2, 3.0))
    axis.plot(1e3 * response.times, 1e6 * response.data.T, linewidth=1.2, label=response.ch_names)
    axis.set(xlabel="ms", ylabel="µV")
    axis.legend(fontsize=7.5, frameon=False)
    tidy(axis)
    return figure


def spectrum(freqs: np.ndarray, power: np.ndarray) -> Figure:
    """Power spectral density [C, F] in µV²/Hz of every channel, and their median."""
    figure, axis = plt.subplots(figsize=(8.2, 3.0))
    shown = freqs > 0
    for channel in power:
        axis.semilogy(freqs[shown], channel[shown], color="#a5abb6", linewidth=0.6)
    axis.semilogy(freqs[shown], np.median(power, axis=0)[shown], color=COLOURS[0], linewidth=1.8)
    axis.set(xlabel="Hz", ylabel="µV²/Hz")
    tidy(axis)
    return figure


def reconstructed_bands(spectra: dict[str, list[dict[str, float]]]) -> Figure:
    """Coherence, power and explained power of predictions of hidden EEG in each band (``pretrain_report.json``)."""
    titles = {"coherence": "coherence", "power_ratio": "power, prediction / truth", "explained": "explained power"}
    figure, axes = plt.subplots(1, len(titles), figsize=(3.2 * len(titles), 2.7), squeeze=False)
    for axis, (name, title) in zip(axes[0], titles.items(), strict=True):
        for i, (predictor, bands) in enumerate(spectra.items()):
            places = np.arange(len(bands)) + 0.8 * (i - (len(spectra) - 1) / 2) / len(spectra)
            values = [band[name] for band in bands]
            colour = COLOURS[i % len(COLOURS)]
            axis.bar(places, values, 0.8 / len(spectra), label=predictor, color=colour)
            axis.set_xticks(range(len(bands)), [f"{b['low']:g}–{b['high']:g}" for b in bands], fontsize=7.5)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("Hz")
        axis.set_ylim(bottom=-0.5 if name == "explained" else 0)
        tidy(axis)
    axes[0, 0].legend(fontsize=7.5, frameon=False)
    figure.tight_layout()
    return figure


def ranges(values: dict[str, list[float]], *, ylabel: str) -> Figure:
    """Median and range of each name's values, side by side."""
    figure, axis = plt.subplots(figsize=(8.2, 2.8))
    places = np.arange(len(values))
    axis.vlines(places, [min(v) for v in values.values()], [max(v) for v in values.values()], color="#a5abb6")
    axis.plot(places, [np.median(v) for v in values.values()], "o", color=COLOURS[0], markersize=3)
    axis.set_xticks(places, list(values), rotation=90, fontsize=6.5)
    axis.set(xlim=(-0.8, len(values) - 0.2), ylabel=ylabel)
    axis.set_ylim(bottom=0)
    tidy(axis)
    return figure


def topographies(responses: dict[str, mne.EvokedArray]) -> Figure | None:
    """Scalp maps [subject, component] on one scale; None without a full cap."""
    responses = {n: r for n, r in responses.items() if len(r.ch_names) >= 8 and _times(r)}
    if not responses:
        return None
    times = _times(next(iter(responses.values())))
    columns = [[1e6 * r.data[:, r.time_as_index(t)[0]] for t in times] for r in responses.values()]
    limit = float(np.quantile(np.abs(columns), 0.98))
    size = (1.5 * len(times) + 1.2, 1.5 * len(columns))
    figure, axes = plt.subplots(len(columns), len(times), figsize=size, squeeze=False)
    for row, (name, response), values in zip(axes, responses.items(), columns, strict=True):
        for axis, value in zip(row, values, strict=True):
            image, _ = mne.viz.plot_topomap(
                value, response.info, axes=axis, show=False, vlim=(-limit, limit), contours=4
            )
        row[0].set_ylabel(name, fontsize=9)
    for axis, time in zip(axes[0], times, strict=True):
        axis.set_title(f"{1e3 * time:.0f} ms", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.6, label="µV")
    return figure


def result_figure(rows: Sequence, *, metrics: Sequence[str]) -> Figure | None:
    """Values with their intervals, the controls beside them, chance as a line; one panel per metric. No differences."""
    rows = [r for r in rows if "minus" not in r.labels]
    present = [m for m in metrics if any(r.metric == m for r in rows)]
    if not present:
        return None
    figure, axes = plt.subplots(1, len(present), figsize=(2.6 * len(present) + 0.6, 2.7), squeeze=False)
    for axis, metric in zip(axes[0], present, strict=True):
        mine = [r for r in rows if r.metric == metric]
        for i, row in enumerate(mine):
            for shift, colour, value, low, high in (
                (-0.12, COLOURS[0], row.value, row.low, row.high),
                (0.12, "#a5abb6", row.control, row.control_low, row.control_high),
            ):
                axis.errorbar(i + shift, value, [[value - low], [high - value]], fmt="o", color=colour, markersize=4.5)
        for i, row in enumerate(mine):
            if row.chance is not None:
                axis.hlines(row.chance, i - 0.4, i + 0.4, color="#8a5a00", linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(mine[0].title, fontsize=8.5, loc="left")
        axis.set_xticks(range(len(mine)), [r.model for r in mine], fontsize=8, rotation=20, ha="right")
        axis.set_xlim(-0.6, len(mine) - 0.4)
        tidy(axis)
    figure.tight_layout()
    return figure
