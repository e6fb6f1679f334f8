"""How near a structured description is to the true one: objects are matched by position, then everything is compared.

Matching minimises the summed distance of the centres (Kuhn, 1955, the Hungarian method, by
``scipy.optimize.linear_sum_assignment``). Labels and colours take no part in it, else they would be flattered. A missing
or an invented object counts against F1. None of these has a closed chance level: it depends on how alike the scenes of a
study are, so a score stands beside the same score against the description of *another* picture.

Descriptions are of the schema of ``ttd.geometry.description``; positions are in hundredths of the scene's unit.
Letters: P predicted objects, T true objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

NAMES = (
    "valid", "count", "label_f1", "color_f1", "position_error", "relation_accuracy", "depth_order",
)  # fmt: skip
TOLERANCE = 5  # hundredths; two true positions nearer than this along an axis stand in no order there


def match(predicted: dict[str, Any], true: dict[str, Any]) -> dict[int, int]:
    """Index of the predicted object for each true one that has a partner: min(P, T) of them."""
    a, b = (np.array([[o["position"][axis] for axis in "xyz"] for o in d["objects"]], float) for d in (predicted, true))
    rows, columns = linear_sum_assignment(np.linalg.norm(a[:, None] - b[None], axis=-1))
    return dict(zip(columns.tolist(), rows.tolist(), strict=True))


def score_description(predicted: dict[str, Any] | None, true: dict[str, Any]) -> dict[str, float | None]:
    """Scores by name; ``predicted`` is None when no valid description came out, which loses every object.

    ``valid`` and ``count`` (as many objects) are 0 or 1. ``label_f1``, ``color_f1``: 2 * right / (P + T).
    ``position_error``: mean distance of matched centres, in scene units; None without a match. ``relation_accuracy``:
    share of the true orders left-right, below-above and behind-before of two objects that the predicted positions keep.
    ``depth_order``: the same for the stated ``depth_rank``. Both are None where the true scene orders nothing.
    """
    pairs = match(predicted, true) if predicted is not None else {}
    objects = predicted["objects"] if predicted is not None else []
    n = len(objects) + len(true["objects"])
    scores: dict[str, float | None] = {"valid": float(predicted is not None)}
    scores["count"] = float(len(objects) == len(true["objects"]))
    for name in ("label", "color"):
        right = sum(objects[i][name] == true["objects"][j][name] for j, i in pairs.items())
        scores[f"{name}_f1"] = 2 * right / n
    errors = [_distance(objects[i], true["objects"][j]) for j, i in pairs.items()]
    scores["position_error"] = float(np.mean(errors)) if errors else None
    kept: dict[str, list[bool]] = {"relation_accuracy": [], "depth_order": []}
    for j, k in combinations(range(len(true["objects"])), 2):
        a, b = true["objects"][j], true["objects"][k]
        both = (objects[pairs[j]], objects[pairs[k]]) if j in pairs and k in pairs else None
        for axis in "xyz":
            order = a["position"][axis] - b["position"][axis]
            if abs(order) >= TOLERANCE:
                kept["relation_accuracy"].append(
                    both is not None and (both[0]["position"][axis] - both[1]["position"][axis]) * order > 0
                )
        order = a["depth_rank"] - b["depth_rank"]
        kept["depth_order"].append(both is not None and (both[0]["depth_rank"] - both[1]["depth_rank"]) * order > 0)
    return scores | {name: float(np.mean(values)) if values else None for name, values in kept.items()}


def _distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Distance of two centres, in scene units."""
    return float(np.linalg.norm([a["position"][axis] - b["position"][axis] for axis in "xyz"])) / 100


def mean_scores(predicted: Sequence[dict[str, Any] | None], true: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of each score over the pairs that have it; NaN where none has.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(predicted) != len(true) or not len(true):
        raise ValueError(f"need as many predicted as true descriptions, got {len(predicted)} and {len(true)}")
    scores = [score_description(p, t) for p, t in zip(predicted, true, strict=True)]
    named = {name: [s[name] for s in scores if s[name] is not None] for name in NAMES}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in named.items()}  # type: ignore[arg-type]
