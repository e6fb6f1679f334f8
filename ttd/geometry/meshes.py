"""Surfaces as files and as points: GLB in and out, PLY of meshes and clouds, points spread evenly over a mesh.

Letters: N points, V vertices.
"""

from __future__ import annotations

import io

import numpy as np
import trimesh

from ttd.geometry.lifter import LiftResult
from ttd.metrics.geometry import SampledSurface


def to_trimesh(result: LiftResult) -> trimesh.Trimesh:
    """The surface of an ``ok`` result in the common frame, with its vertex colours and normals.

    Raises:
        ValueError: the result has no surface.
    """
    if result.surface is None:
        raise ValueError(f"item {result.key!r} has no surface: {result.status}, {result.reason}")
    s = result.surface
    mesh = trimesh.Trimesh(s.vertices, s.faces, vertex_colors=_opaque(s.colours), process=False)
    return mesh.apply_transform(result.to_frame)


def to_glb(mesh: trimesh.Trimesh, provenance: dict) -> bytes:
    """The mesh as GLB with normals; ``provenance`` goes into the ``extras``. The same mesh gives the same bytes."""
    scene = trimesh.Scene(mesh, metadata={"provenance": provenance})
    data = scene.export(file_type="glb", include_normals=True)
    assert isinstance(data, bytes)
    return data


def from_glb(data: bytes) -> trimesh.Trimesh:
    """The mesh of a GLB with its colours.

    Raises:
        ValueError: the bytes are no GLB, or hold no mesh.
    """
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)
        return scene.to_mesh()
    except Exception as error:  # trimesh raises whatever its parser stumbles on
        raise ValueError(f"not a readable GLB with a mesh ({error})") from error


def to_ply(mesh: trimesh.Trimesh) -> bytes:
    """The mesh as binary PLY with colours and normals at the vertices. The same mesh gives the same bytes."""
    plain = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=_opaque(vertex_colours(mesh)), process=False)
    data = plain.export(file_type="ply", vertex_normal=True)
    assert isinstance(data, bytes)
    return data


def from_ply(data: bytes) -> trimesh.Trimesh:
    """The mesh of a PLY.

    Raises:
        ValueError: the bytes are no PLY, or hold no faces.
    """
    try:
        mesh = trimesh.load_mesh(io.BytesIO(data), file_type="ply", process=False)
    except Exception as error:  # trimesh raises whatever its parser stumbles on
        raise ValueError(f"not a readable PLY with a mesh ({error})") from error
    if not len(getattr(mesh, "faces", ())):
        raise ValueError("the PLY holds no faces")
    return mesh


def cloud_to_ply(points: np.ndarray, colours: np.ndarray) -> bytes:
    """Points [N, 3] with RGB uint8 [N, 3] as binary PLY. The same points give the same bytes."""
    data = trimesh.PointCloud(points, colors=_opaque(colours)).export(file_type="ply")
    assert isinstance(data, bytes)
    return data


def cloud_from_ply(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] and RGB uint8 [N, 3] of a PLY, be it a cloud or the vertices of a mesh.

    Raises:
        ValueError: the bytes are no PLY, or hold no points.
    """
    try:
        loaded = trimesh.load(io.BytesIO(data), file_type="ply", process=False)
        if isinstance(loaded, trimesh.PointCloud):
            return np.asarray(loaded.vertices), np.asarray(loaded.colors)[:, :3]
        assert isinstance(loaded, trimesh.Trimesh)
        return np.asarray(loaded.vertices), vertex_colours(loaded)
    except Exception as error:  # as in from_glb
        raise ValueError(f"not a readable PLY with points ({error})") from error


def vertex_colours(mesh: trimesh.Trimesh) -> np.ndarray:
    """RGB of every vertex, uint8 [V, 3]: its own, or that of the texture there; grey where the mesh has no colours."""
    visual = mesh.visual
    if isinstance(visual, trimesh.visual.TextureVisuals):
        if visual.uv is None or len(visual.uv) != len(mesh.vertices):
            return np.full((len(mesh.vertices), 3), trimesh.visual.DEFAULT_COLOR[0], np.uint8)
        visual = visual.to_color()
    assert isinstance(visual, trimesh.visual.ColorVisuals)
    return np.asarray(visual.vertex_colors)[:, :3]


def sample_points(mesh: trimesh.Trimesh, n_points: int, *, seed: int) -> np.ndarray:
    """``n_points`` points spread evenly over the mesh's area [N, 3]; the same seed gives the same points."""
    return sample_surface(mesh, n_points, seed=seed).points


def sample_surface(mesh: trimesh.Trimesh, n_points: int, *, seed: int) -> SampledSurface:
    """The points of ``sample_points`` with the normals of the faces that they lie on."""
    points, faces = trimesh.sample.sample_surface(mesh, n_points, seed=np.random.default_rng(seed))[:2]
    return SampledSurface(mesh, np.asarray(points), np.asarray(mesh.face_normals)[faces])


def _opaque(colours: np.ndarray) -> np.ndarray:
    """RGBA from RGB uint8 [N, 3]."""
    return np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], axis=1)
