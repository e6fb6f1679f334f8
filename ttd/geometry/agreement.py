"""Does a lifted surface agree with the description it was lifted beside? Relations, from the geometry alone.

The description is read and never changed: what does not hold is counted, not put right. It is the check of the two answers
about one picture against each other and not against the truth; both can be wrong in the same way.

Frame: +X right, +Y up, +Z towards the camera; positions in a description are integers in hundredths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import trimesh
from scipy.optimize import linear_sum_assignment

from ttd.metrics.volume import pieces

AXES: dict[str, tuple[int, int]] = {
    "right_of": (0, 1),
    "left_of": (0, -1),
    "above": (1, 1),
    "below": (1, -1),
    "in_front_of": (2, 1),
    "behind": (2, -1),
}
"""Predicates that two centres decide: the axis along which they differ, and in which direction."""
LEAST_SHARE = 0.02
"""Of the whole area: smaller pieces are crumbs of the marching cubes and no objects."""


@dataclass(frozen=True)
class Agreement:
    """The figures of one item by the names of ``ttd.metrics.geometry.METRICS`` (None: nothing to check), and the relations.

    ``broken`` are relations that do not hold, among them those of objects without surface; ``unchecked`` are those that
    centres cannot decide (on, inside, near).
    """

    scores: dict[str, float | None]
    broken: list[dict[str, str]]
    unchecked: list[dict[str, str]]


def agreement(description: Mapping[str, Any], surface: trimesh.Trimesh | Mapping[str, trimesh.Trimesh]) -> Agreement:
    """How much of ``description`` holds in the geometry.

    ``surface`` is the whole mesh, whose connected parts are paired with the objects by position
    (``parts_by_object``), or a mesh per object id where the lifter keeps them apart.
    """
    parts = parts_by_object(description, surface) if isinstance(surface, trimesh.Trimesh) else surface
    centres = {name: _centre(part) for name, part in parts.items()}
    checked = [r for r in description["relations"] if r["predicate"] in AXES]
    broken = [r for r in checked if not _holds(r, centres)]
    objects = description["objects"]
    errors = [np.linalg.norm(_position(o) - centres[o["id"]]) for o in objects if o["id"] in centres]
    scores = {
        "relations_held": 1 - len(broken) / len(checked) if checked else None,
        "objects_found": len(errors) / len(objects) if objects else None,
        "position_error": float(np.mean(errors)) if errors else None,
    }
    return Agreement(scores, broken, [r for r in description["relations"] if r["predicate"] not in AXES])


def parts_by_object(description: Mapping[str, Any], mesh: trimesh.Trimesh) -> dict[str, trimesh.Trimesh]:
    """The connected parts of a mesh by the id of the described object each belongs to.

    Every object gets at most one part at first, so that the distances from described to lifted centres add up to the least;
    parts that are left go to the nearest object. Objects that have melted into one part leave all but one of them
    without.
    """
    parts, objects = pieces(mesh, least_share=LEAST_SHARE), description["objects"]
    if not parts or not objects:
        return {}
    centres = np.array([_centre(part) for part in parts])
    distances = np.linalg.norm(centres[:, None] - np.array([_position(o) for o in objects]), axis=-1)
    owner = distances.argmin(axis=1)
    rows, columns = linear_sum_assignment(distances)
    owner[rows] = columns
    found = {}
    for number in sorted(set(owner.tolist())):
        whole = trimesh.util.concatenate([parts[i] for i in np.flatnonzero(owner == number)])
        assert isinstance(whole, trimesh.Trimesh)
        found[objects[number]["id"]] = whole
    return found


def _holds(relation: Mapping[str, str], centres: Mapping[str, np.ndarray]) -> bool:
    if relation["subject"] not in centres or relation["object"] not in centres:
        return False
    axis, sign = AXES[relation["predicate"]]
    return bool(sign * (centres[relation["subject"]][axis] - centres[relation["object"]][axis]) > 0)


def _centre(part: trimesh.Trimesh) -> np.ndarray:
    """The middle of its extent, which is what a description gives as position; that of a cone is above its centroid."""
    return np.asarray(part.bounds.mean(axis=0))


def _position(described: Mapping[str, Any]) -> np.ndarray:
    return np.array([described["position"][axis] for axis in "xyz"]) / 100
