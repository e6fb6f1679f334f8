"""Procedural scenes: one or two coloured solids on a table, from which everything else is known exactly.

A seed gives a scene; the scene gives its caption, its JSON description, its signed distance and its mesh (and
``ttd.simulation.render`` its picture, depth and mask).

Frame: right-handed, +X right, +Y up, +Z towards the camera, everything inside [-1, 1]³; the table is the plane y = TABLE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from torch import Tensor

from ttd.seeding import numpy_rng

KINDS = ("sphere", "box", "cylinder", "cone", "torus", "capsule")
COLOUR_RGB = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.60, 0.15),
    "blue": (0.12, 0.22, 0.85),
    "yellow": (0.92, 0.85, 0.10),
    "purple": (0.55, 0.12, 0.65),
    "orange": (0.95, 0.48, 0.05),
    "cyan": (0.10, 0.75, 0.80),
    "white": (0.95, 0.95, 0.95),
}
COLOURS = tuple(COLOUR_RGB)
SIZES = ("small", "large")
PLACES = ("left", "middle", "right")

TABLE = -0.5
RADIUS = {"small": (0.33, 0.37), "large": (0.46, 0.50)}
PAIR_SCALE = 0.9  # two solids are drawn a little smaller, so that both fit into the picture
# Between |x| = 0.2 and 0.4 no solid stands: a place word is never a near-tie.
PLACE_X = {"left": (-0.5, -0.42), "middle": (-0.18, 0.18), "right": (0.42, 0.5)}
GEOMETRY = {1: "one solid on a table", 2: "two solids on a table"}
MAX_YAW = {"torus": math.radians(35), "capsule": math.radians(50)}  # else a torus is seen edge-on, a capsule end-on


@dataclass(frozen=True)
class Solid:
    """One solid. ``radius`` is that of its bounding sphere (nearly); ``yaw`` turns it about the vertical, in radians."""

    kind: str
    colour: str
    size: str
    radius: float
    yaw: float
    x: float
    z: float

    @property
    def place(self) -> str:
        """The place word of its horizontal position."""
        return "middle" if abs(self.x) < 0.3 else ("left" if self.x < 0 else "right")

    @property
    def y(self) -> float:
        """Height of its centre, standing on the table."""
        return TABLE + self.radius * HALF_HEIGHT[self.kind]


# Half of each solid's height over its radius.
HALF_HEIGHT = {"sphere": 0.9, "box": 0.72, "cylinder": 0.85, "cone": 0.85, "torus": 0.95, "capsule": 0.45}


@dataclass(frozen=True)
class Scene:
    """One or two solids, sorted from left to right."""

    solids: tuple[Solid, ...]
    seed: int


def draw_scene(seed: int, n_solids: int | None = None) -> Scene:
    """The scene of a seed: every kind, colour, size and place equally likely. ``None`` draws one or two solids."""
    rng = numpy_rng(seed, "scene")
    n = int(rng.integers(1, 3)) if n_solids is None else n_solids
    if n not in (1, 2):
        raise ValueError(f"a scene holds 1 or 2 solids, got n_solids={n}")
    while True:
        places = rng.choice(3, size=n, replace=False)
        solids = []
        for place in places:
            kind, size = KINDS[rng.integers(6)], SIZES[rng.integers(2)]
            radius = rng.uniform(*RADIUS[size]) * (1.0 if n == 1 else PAIR_SCALE)
            yaw = rng.uniform(-1, 1) * MAX_YAW.get(kind, math.pi)
            x, z = rng.uniform(*PLACE_X[PLACES[place]]), rng.uniform(-1, 1) * (0.12 if n == 1 else 0.4)
            solids.append(Solid(kind, COLOURS[rng.integers(8)], size, float(radius), float(yaw), float(x), float(z)))
        if (
            n == 1
            or math.dist((solids[0].x, solids[0].z), (solids[1].x, solids[1].z)) > solids[0].radius + solids[1].radius
        ):
            return Scene(tuple(sorted(solids, key=lambda s: s.x)), seed)


def caption(scene: Scene) -> str:
    """``a large red cone left , a small blue torus right``: spaces round the comma keep every word one token."""
    return " , ".join(f"a {s.size} {s.colour} {s.kind} {s.place}" for s in scene.solids)


def describe(scene: Scene) -> dict:
    """The scene as ``ttd.geometry.description`` wants it: objects near to far, positions and extents in hundredths."""
    near_first = sorted(scene.solids, key=lambda s: -s.z)
    objects = []
    for rank, s in enumerate(near_first):
        low, high = mesh(Scene((s,), scene.seed)).bounds
        extent = np.rint((high - low) * 100).astype(int)
        position = np.rint(np.array([s.x, s.y, s.z]) * 100).astype(int)
        objects.append(
            {
                "id": f"o{rank}",
                "label": s.kind,
                "color": s.colour,
                "shape": s.kind,
                "size": s.size,
                "place": s.place,
                "position": dict(zip("xyz", position.tolist(), strict=True)),
                "extent": dict(zip("xyz", extent.tolist(), strict=True)),
                "depth_rank": rank,
            }
        )
    relations = []
    if len(near_first) == 2:
        a, b = near_first
        relations.append({"subject": "o0", "predicate": "left_of" if a.x < b.x else "right_of", "object": "o1"})
        relations.append({"subject": "o0", "predicate": "in_front_of", "object": "o1"})
    return {
        "schema_version": 1,
        "scene_type": "tabletop",
        "objects": objects,
        "relations": relations,
        "depth": {"near": ["o0"], "far": ["o1"][: len(near_first) - 1]},
        "geometry": GEOMETRY[len(near_first)],
        "confidence": 100,  # it is read from the scene itself
    }


# --- geometry -------------------------------------------------------------------------------------------------------


def _rect(q: Tensor) -> Tensor:
    """Signed distance of a box or capped shape from its per-axis excess ``q`` [..., k]."""
    return q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)


def solid_distance(kind: str, p: Tensor, r: Tensor) -> Tensor:
    """Exact signed distance [...] of points ``p`` [..., 3] in a solid's own frame; ``r`` [...] is its radius.

    Formulas after Quilez (iquilezles.org/articles/distfunctions). Box, cylinder and cone stand upright, the torus stands on
    its rim facing +Z, the capsule lies along X.
    """
    if kind == "sphere":
        return p.norm(dim=-1) - 0.9 * r
    if kind == "box":
        return _rect(p.abs() - 0.72 * r[..., None])
    if kind == "torus":
        ring = p[..., :2].norm(dim=-1) - 0.67 * r
        return torch.hypot(ring, p[..., 2]) - 0.28 * r
    if kind == "capsule":
        along = torch.minimum(p[..., 0].abs(), 0.55 * r)
        d = torch.stack([p[..., 0].abs() - along, p[..., 1], p[..., 2]], dim=-1)
        return d.norm(dim=-1) - 0.45 * r
    w = torch.stack([p[..., [0, 2]].norm(dim=-1), p[..., 1]], dim=-1)
    if kind == "cylinder":
        return _rect(w.abs() * w.new_tensor([1, 1]) - torch.stack([0.68 * r, 0.85 * r], dim=-1))
    if kind == "cone":  # apex up; in the half-plane (radius, height measured down from the apex)
        base = torch.stack([0.8 * r, 1.7 * r], dim=-1)
        w = torch.stack([w[..., 0], 0.85 * r - w[..., 1]], dim=-1)
        slope = ((w * base).sum(-1) / (base * base).sum(-1)).clamp(0, 1)
        a = w - base * slope[..., None]
        b = torch.stack([w[..., 0] - torch.minimum(w[..., 0], base[..., 0]), w[..., 1] - base[..., 1]], dim=-1)
        squared = torch.minimum((a * a).sum(-1), (b * b).sum(-1))
        outside = torch.maximum(w[..., 0] * base[..., 1] - w[..., 1] * base[..., 0], w[..., 1] - base[..., 1])
        return squared.sqrt() * torch.sign(outside)
    raise ValueError(f"unknown kind {kind!r}; known: {KINDS}")


def to_solid_frame(p: Tensor, centre: Tensor, yaw: Tensor) -> Tensor:
    """World points [..., 3] in the frame of a solid with ``centre`` [..., 3] and ``yaw`` [...]."""
    q = p - centre
    c, s = torch.cos(yaw), torch.sin(yaw)
    return torch.stack([c * q[..., 0] - s * q[..., 2], q[..., 1], s * q[..., 0] + c * q[..., 2]], dim=-1)


def signed_distance(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Exact signed distance [N] (negative inside) of world points [N, 3] to the scene's solids; the table is not part of it."""
    p = torch.as_tensor(points, dtype=torch.float64)
    distances = []
    for s in scene.solids:
        centre = p.new_tensor([s.x, s.y, s.z])
        local = to_solid_frame(p, centre, p.new_tensor(s.yaw))
        distances.append(solid_distance(s.kind, local, p.new_full(p.shape[:-1], s.radius)))
    return torch.stack(distances).amin(0).numpy()


def solid_mesh(s: Solid) -> trimesh.Trimesh:
    """Watertight mesh of one solid in the world frame, with its colour on every vertex."""
    r, upright = s.radius, trimesh.transformations.rotation_matrix(-math.pi / 2, [1, 0, 0])  # Z axis → Y axis
    if s.kind == "sphere":
        body = trimesh.creation.icosphere(subdivisions=4, radius=0.9 * r)
    elif s.kind == "box":
        body = trimesh.creation.box(extents=[1.44 * r] * 3).subdivide().subdivide()
    elif s.kind == "cylinder":
        body = trimesh.creation.cylinder(radius=0.68 * r, height=1.7 * r, sections=64).apply_transform(upright)
    elif s.kind == "cone":
        body = trimesh.creation.cone(radius=0.8 * r, height=1.7 * r, sections=64).apply_transform(upright)
        body.apply_translation([0, -0.85 * r, 0])
    elif s.kind == "torus":
        body = trimesh.creation.torus(
            major_radius=0.67 * r, minor_radius=0.28 * r, major_sections=64, minor_sections=32
        )
    else:
        lying = trimesh.transformations.rotation_matrix(math.pi / 2, [0, 1, 0])
        body = trimesh.creation.capsule(height=1.1 * r, radius=0.45 * r, count=[32, 32])
        body.apply_translation(-body.bounds.mean(axis=0)).apply_transform(lying)
    body.apply_transform(trimesh.transformations.rotation_matrix(s.yaw, [0, 1, 0])).apply_translation([s.x, s.y, s.z])
    rgb = [round(255 * v) for v in COLOUR_RGB[s.colour]]
    return trimesh.Trimesh(
        body.vertices, body.faces, vertex_colors=np.tile([*rgb, 255], (len(body.vertices), 1)), process=False
    )


def mesh(scene: Scene) -> trimesh.Trimesh:
    """The scene's solids as one mesh in the world frame (without the table)."""
    whole = trimesh.util.concatenate([solid_mesh(s) for s in scene.solids])
    assert isinstance(whole, trimesh.Trimesh)
    return whole
