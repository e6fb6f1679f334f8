"""Surfaces as files and as points: GLB in and out, and points spread evenly over a mesh.

Letters: N sampled points, V vertices.
"""

from __future__ import annotations

import io

import numpy as np
import trimesh

from ttd.geometry.lifter import LiftResult


def to_trimesh(result: LiftResult) -> trimesh.Trimesh:
    """The surface of an ``ok`` result in the common frame, with its vertex colours and normals.

    Raises:
        ValueError: the result has no surface.
    """
    if result.surface is None:
        raise ValueError(f"item {result.key!r} has no surface: {result.status}, {result.reason}")
    s = result.surface
    colours = np.concatenate([s.colours, np.full((len(s.colours), 1), 255, np.uint8)], axis=1)
    mesh = trimesh.Trimesh(s.vertices, s.faces, vertex_colors=colours, process=False)
    return mesh.apply_transform(result.to_frame)


def to_glb(mesh: trimesh.Trimesh, provenance: dict) -> bytes:
    """The mesh as GLB with normals; ``provenance`` goes into the ``extras``. The same mesh gives the same bytes."""
    scene = trimesh.Scene(mesh, metadata={"provenance": provenance})
    data = scene.export(file_type="glb", include_normals=True)
    assert isinstance(data, bytes)
    return data


def from_glb(data: bytes) -> trimesh.Trimesh:
    """The mesh of a GLB with its vertex colours.

    Raises:
        ValueError: the bytes are no GLB, or hold no mesh.
    """
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)
        return scene.to_mesh()
    except Exception as error:  # trimesh raises whatever its parser stumbles on
        raise ValueError(f"not a readable GLB with a mesh ({error})") from error


def vertex_colours(mesh: trimesh.Trimesh) -> np.ndarray:
    """RGB of every vertex, uint8 [V, 3]; grey where the mesh has no colours of its own."""
    visual = mesh.visual
    assert isinstance(visual, trimesh.visual.ColorVisuals)
    return np.asarray(visual.vertex_colors)[:, :3]


def sample_points(mesh: trimesh.Trimesh, n_points: int, *, seed: int) -> np.ndarray:
    """``n_points`` points spread evenly over the mesh's area [N, 3]; the same seed gives the same points."""
    points, _ = trimesh.sample.sample_surface(mesh, n_points, seed=np.random.default_rng(seed))
    return np.asarray(points)
