"""What a mesh encloses: its pieces, whether it is closed, the cells inside of it, and how much two insides overlap.

Inside is where the surface winds round a point (Jacobson et al., 2013, "Robust inside-outside segmentation using
generalized winding numbers"), counted along columns of cells: overlapping closed parts count as one solid. Columns of
all three directions vote, and a column that does not leave as often as it enters votes for nothing: a small hole does
no harm, a bowl holds its hollow up to the rim, a sheet holds nothing. An IoU of open surfaces is therefore an estimate;
``watertight`` says which ones are.

Letters: C cells per axis, F faces.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import trimesh

CELLS = 64
"""Cells per axis: the IoU of two overlapping spheres is then right to 0.002 (tests/metrics/test_volume.py)."""
ASIDE = 1e-4  # of a cell; columns stand this much off the middle, so that none runs along the edges of a regular mesh


def welded(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """A copy in which vertices at one place are one, whatever their texture coordinates: seams are no holes."""
    copy = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    copy.merge_vertices()
    copy.update_faces(copy.nondegenerate_faces())
    return copy


def pieces(mesh: trimesh.Trimesh, *, least_share: float = 0.0) -> list[trimesh.Trimesh]:
    """The connected parts of a mesh, largest area first, without those below ``least_share`` of the whole area."""
    whole = welded(mesh)
    label = _labels(whole)
    areas = np.bincount(label, weights=whole.area_faces)
    order = [int(part) for part in np.argsort(-areas, kind="stable") if areas[part] >= least_share * areas.sum()]
    parts = whole.submesh([np.flatnonzero(label == part) for part in order], append=False, repair=False)
    assert isinstance(parts, list)
    return parts


def surface_facts(mesh: trimesh.Trimesh | None) -> dict[str, float | None]:
    """``empty`` and ``watertight`` as 0 or 1 (their means are rates) and the number of ``components``.

    An empty surface has neither pieces nor an edge to be open at: both are ``None``.
    """
    if mesh is None:
        return {"empty": 1.0, "watertight": None, "components": None}
    whole = welded(mesh)
    return {"empty": 0.0, "watertight": float(whole.is_watertight), "components": float(_labels(whole).max() + 1)}


def grid(low: np.ndarray, high: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Middles of the cells of a box from corner ``low`` [3] to ``high`` [3]: [C, C, C, 3], indexed x, y, z."""
    steps = (np.arange(cells) + 0.5) / cells
    axes = [a + steps * (b - a) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def field_occupancy(
    distance: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, cells: int = CELLS
) -> np.ndarray:
    """Cells [C, C, C] whose middle is inside: where a signed distance of points [N, 3] → [N] is negative."""
    points = grid(low, high, cells)
    return np.asarray(distance(points.reshape(-1, 3)) < 0).reshape(points.shape[:3])


def mesh_occupancy(mesh: trimesh.Trimesh, low: np.ndarray, high: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Cells [C, C, C] whose middle is inside the mesh (to within ``ASIDE``).

    Raises:
        ValueError: the box has no volume.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (high > low).all():
        raise ValueError(f"the box from {low.tolist()} to {high.tolist()} has no volume")
    corners = (mesh.triangles - low) / (high - low) * cells - 0.5  # middles of cells are integers
    votes = np.zeros((cells,) * 3, np.uint8)
    for axis in range(3):  # a cyclic change of axes keeps the winding
        inside = _columns(np.roll(corners, axis, axis=2), cells)
        votes += np.moveaxis(inside, [0, 1, 2], [(i - axis) % 3 for i in range(3)])
    return votes >= 2


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Shared over joint size of two boolean arrays of one shape (cells or pixels), in 0..1; 0 where both are empty.

    Raises:
        ValueError: the shapes differ.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {first.shape} and {second.shape}")
    joint = (first | second).sum()
    return float((first & second).sum() / joint) if joint else 0.0


def mesh_iou(predicted: trimesh.Trimesh | None, true: trimesh.Trimesh, cells: int = CELLS) -> float:
    """IoU of what two meshes enclose, on the box round both; a surface that is empty or flat encloses nothing: 0."""
    if predicted is None:
        return 0.0
    bounds = np.stack([predicted.bounds, true.bounds])
    low, high = bounds[:, 0].min(0), bounds[:, 1].max(0)
    if not (high > low).all():
        return 0.0
    return iou(mesh_occupancy(predicted, low, high, cells), mesh_occupancy(true, low, high, cells))


def _labels(mesh: trimesh.Trimesh) -> np.ndarray:
    """The number of the connected part that each face belongs to [F]; faces are connected by edges."""
    return trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))


def _columns(corners: np.ndarray, cells: int) -> np.ndarray:
    """Cells inside [C, C, C] by columns along the last axis, for triangles [F, 3, 3] in units of cells."""
    flat = corners[..., :2] - ASIDE * np.array([1.0, np.sqrt(2)])
    first = np.ceil(flat.min(1)).clip(0).astype(int)  # [F, 2]
    width = (np.floor(flat.max(1)).clip(max=cells - 1).astype(int) - first + 1).clip(0)
    count = width[:, 0] * width[:, 1]
    face = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(face)) - np.repeat(count.cumsum() - count, count)
    x, y = first[face, 0] + place // width[face, 1], first[face, 1] + place % width[face, 1]
    a, b, c = (flat[face, i] - np.stack([x, y], 1) for i in range(3))
    weights = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)
    hit = (weights > 0).all(1) | (weights < 0).all(1)
    face, x, y, weights = face[hit], x[hit], y[hit], weights[hit]
    area = weights.sum(1)
    height = (weights * corners[face, :, 2]).sum(1) / area
    crossings = np.zeros(
        (cells, cells, cells + 1), np.int32
    )  # [..., k]: faces between the middles of cells k - 1 and k
    np.add.at(crossings, (x, y, np.ceil(height).clip(0, cells).astype(int)), np.sign(area).astype(np.int32))
    above = crossings[..., ::-1].cumsum(-1)[..., ::-1]
    return (above[..., 1:] != 0) & (above[..., :1] == 0)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
