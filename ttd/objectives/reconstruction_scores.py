"""What a masked reconstruction is worth: its error and its spectrum beside those of predictors that learn nothing.

Shapes: B windows, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ttd.baselines.interpolation import autocovariance
from ttd.metrics.spectrum import band_scores
from ttd.objectives.masked_reconstruction import hidden_samples, masked_mse


def errors(
    predicted: Mapping[str, Tensor], eeg: Tensor, mask: Tensor, present: Tensor | None = None
) -> dict[str, float]:
    """Mean squared error of every prediction [B, C, T] over the hidden samples of the electrodes that are present."""
    counted = hidden_samples(mask, present)
    return {name: float(masked_mse(p, eeg, counted)) for name, p in predicted.items()}


def errors_by_cap(
    predicted: Mapping[str, Tensor], eeg: Tensor, mask: Tensor, present: Tensor, caps: list[str]
) -> dict[str, dict[str, Any]]:
    """``errors`` for the windows of each cap (``caps`` names that of every window), with their number."""
    out: dict[str, dict[str, Any]] = {}
    for cap in dict.fromkeys(caps):
        rows = torch.tensor([name == cap for name in caps])
        mine = {name: p[rows] for name, p in predicted.items()}
        out[cap] = {"n_windows": int(rows.sum()), **errors(mine, eeg[rows], mask[rows], present[rows])}
    return out


def spectra(
    predicted: Mapping[str, Tensor],
    eeg: Tensor,
    mask: Tensor,
    *,
    sfreq: float,
    span: int,
    present: Tensor | None = None,
) -> dict[str, list[dict[str, float]]]:
    """``metrics.spectrum.band_scores`` of every prediction [B, C, T], as plain numbers."""
    return {
        name: [asdict(s) for s in band_scores(p, eeg, mask, sfreq=sfreq, length=span, present=present)]
        for name, p in predicted.items()
    }


def autocovariance_of_present(windows: Tensor, present: Tensor | None) -> Tensor:
    """``interpolation.autocovariance`` [C, T] from the windows [B, C, T] that have the electrode; white where none has."""
    covariance = autocovariance(windows)
    if present is None:
        return covariance
    share = present.double().mean(0)[:, None]  # [C, 1]
    white = torch.zeros_like(covariance)
    white[:, 0] = 1.0
    return torch.where(share > 0, covariance / share.clamp(min=1e-9), white)


def markdown(content: dict[str, Any]) -> str:
    """The report as Markdown; the Wiener predictor stands on fewer windows, so the others do a second time."""
    every, some = content["masked_mse"], content["masked_mse_on_wiener_windows"]
    lines = [
        f"Masked error on the {content['part']} part, runs {', '.join(content['runs'])}:",
        "",
        f"| predictor | {content['n_windows']} windows | {content['n_wiener']} of them |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {f'{every[n]:.3f}' if n in every else ''} | {value:.3f} |" for n, value in some.items()]
    if content.get("by_cap"):
        names = list(every)
        lines += ["", f"| cap | windows | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
        for cap, row in content["by_cap"].items():
            lines.append(f"| {cap} | {row['n_windows']} | {' | '.join(f'{row[name]:.3f}' for name in names)} |")
    bands = content["spectrum"]
    lines += ["", "Hidden spans by frequency, on the windows of the Wiener predictor:", ""]
    lines += [
        "| predictor | Hz | coherence | power of the prediction / of the truth | explained |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {s['low']:g} to {s['high']:g} | {s['coherence']:.3f} | {s['power_ratio']:.3f} | {s['explained']:.3f} |"
        for name, scores in bands.items()
        for s in scores
    ]
    return "\n".join(lines)
