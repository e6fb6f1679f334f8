"""From scored epochs to the rows of a probe's table: figure, interval, chance and controls, per group and as their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ttd.metrics import detection
from ttd.metrics.uncertainty import bootstrap_interval
from ttd.seeding import key

Metric = Literal["auc", "accuracy"]
MANY = 8
"""Groups beyond which the printed table holds their mean alone; probe.json holds all."""


@dataclass(frozen=True)
class GroupScores:
    """What is needed of one group: for the AUC scores and labels in {0, 1}; for the accuracy predicted and true names."""

    found: np.ndarray
    labels: np.ndarray

    def value(self, metric: Metric) -> float:
        """The group's figure."""
        return detection.auc(self.found, self.labels) if metric == "auc" else float((self.found == self.labels).mean())

    def permuted(self, metric: Metric, seed: int) -> np.ndarray:
        """The same scores against 1,000 permutations of the labels."""
        draws = detection.permuted_aucs if metric == "auc" else detection.permuted_accuracies
        return draws(self.found, self.labels, seed=seed)


def rows_of(
    groups: dict[str, GroupScores], refits: list[float], *, metric: Metric, unit: Literal["epochs", "groups"], seed: int
) -> list[dict[str, Any]]:
    """One row per group and one for their mean.

    Args:
        refits: the mean's figure after each fit on permuted labels.
        unit: what the interval of the mean draws again; that of one group always speaks about its epochs.
    """
    seeds = {
        name: key(seed, "group", name) for name in groups
    }  # equal draws in all groups would widen the mean's spread
    permuted = {name: group.permuted(metric, seeds[name]) for name, group in groups.items()}
    values = {name: group.value(metric) for name, group in groups.items()}
    rows = []
    draws: list[np.ndarray] = []
    for name, group in groups.items():
        if metric == "auc":
            draws.append(detection.auc_draws(group.found, group.labels, seed=seeds[name]))
            interval = _quantiles(draws[-1])
        else:
            interval = detection.accuracy_interval(group.found == group.labels)
        rows.append(_row(name, len(group.labels), values[name], interval, _chance(metric, [group]), permuted[name]))
    every = list(groups.values())
    if unit == "groups":
        interval = bootstrap_interval(np.array(list(values.values())), seed=seed)
    elif metric == "auc":
        interval = _quantiles(np.mean(draws, axis=0))
    else:
        interval = detection.accuracy_interval(np.concatenate([group.found == group.labels for group in every]))
    control = np.mean(list(permuted.values()), axis=0)
    n, mean = sum(len(group.labels) for group in every), float(np.mean(list(values.values())))
    return [*rows, _row("mean", n, mean, interval, _chance(metric, every), control) | {"refits": refits}]


def _chance(metric: Metric, groups: list[GroupScores]) -> float:
    if metric == "auc":
        return detection.CHANCE
    return detection.largest_share(np.concatenate([group.labels for group in groups]))


def _quantiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _row(
    name: str, n: int, value: float, interval: tuple[float, float], chance: float, permuted: np.ndarray
) -> dict[str, Any]:
    control = {"control": float(permuted.mean()), "control_interval": list(_quantiles(permuted))}
    return {"group": name, "n": n, "value": value, "interval": list(interval), "chance": chance, **control}


def difference(a: dict[str, GroupScores], b: dict[str, GroupScores], *, metric: Metric, seed: int) -> dict[str, Any]:
    """Mean over the common groups of a's figure minus b's, with the interval over groups drawn again.

    Raises:
        ValueError: fewer than two groups in common.
    """
    both = [name for name in a if name in b]
    gains = np.array([a[name].value(metric) - b[name].value(metric) for name in both])
    if len(both) < 2:
        raise ValueError(f"a difference needs at least two groups in common, got {both}")
    low, high = bootstrap_interval(gains, seed=seed)
    return {
        "n_groups": len(both),
        "value": float(gains.mean()),
        "interval": [low, high],
        "above_0": int((gains > 0).sum()),
    }


def table(rows: list[dict[str, Any]], differences: list[dict[str, Any]], *, metric: Metric) -> str:
    """Both as Markdown; of many groups the mean alone."""
    title = "AUC" if metric == "auc" else "accuracy"
    lines = [
        f"| model | data | left out | epochs | {title} | 95 % interval | chance | permuted labels | fitted on permuted labels |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    n_groups = {(r["model"], r["data"]): 0 for r in rows}
    for r in rows:
        n_groups[r["model"], r["data"]] += r["group"] != "mean"
    for r in rows:
        many = n_groups[r["model"], r["data"]]
        if many > MANY and r["group"] != "mean":
            continue
        name = f"mean of {many}" if r["group"] == "mean" else r["group"]
        (low, high), (below, above) = r["interval"], r["control_interval"]
        refits = r.get("refits")
        refitted = (
            f"{np.mean(refits):.3f} ({min(refits):.3f} to {max(refits):.3f}, {len(refits)} fits)" if refits else ""
        )
        lines.append(
            f"| {r['model']} | {r['data']} | {name} | {r['n']} | {r['value']:.3f} | {low:.3f} to {high:.3f} "
            f"| {r['chance']:.3g} | {r['control']:.3f} ({below:.3f} to {above:.3f}) | {refitted} |"
        )
    if differences:
        lines += [
            "",
            f"| difference | groups | {title} | 95 % interval over groups | groups above 0 |",
            "|---|---|---|---|---|",
        ]
    for d in differences:
        low, high = d["interval"]
        lines.append(
            f"| {d['name']} | {d['n_groups']} | {d['value']:+.3f} | {low:+.3f} to {high:+.3f} | {d['above_0']} |"
        )
    return "\n".join(lines) + "\n"
