"""Pictures of meshes and clouds on the CPU, no OpenGL: posters, turntables, depth, silhouettes.

Meshes by ray casting (trimesh with embree), clouds by discs in a z-buffer.

Letters: S pixels, R rays that hit, N points.
"""

from __future__ import annotations

import io
import math

import numpy as np
import trimesh
from PIL import Image

from ttd.geometry.camera import Camera
from ttd.geometry.meshes import vertex_colours

BACKGROUND = (244, 244, 244)
LIGHT = np.array([0.35, 0.75, 0.56])  # unit length: from the upper right, in front; turns with the camera


def view(mesh: trimesh.Trimesh, camera: Camera, size: int = 128) -> np.ndarray:
    """The mesh seen by ``camera``: uint8 [S, S, 3], smooth normals, half ambient light, supersampled 2 x 2."""
    fine = 2 * size
    directions = camera.rays(fine)
    origins = np.tile(camera.eye, (len(directions), 1))
    image = np.tile(np.array(BACKGROUND, np.float64), (fine * fine, 1))
    points, ray, face = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    if len(ray):
        weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)[..., None]  # [R, 3, 1]
        corners = mesh.faces[face]
        colours = (vertex_colours(mesh)[corners] * weights).sum(1)
        normals = trimesh.util.unitize((mesh.vertex_normals[corners] * weights).sum(1))
        light = LIGHT @ camera.axes
        image[ray] = colours * (0.5 + 0.5 * np.clip(normals @ light, 0, 1))[:, None]
    return image.reshape(size, 2, size, 2, 3).mean((1, 3)).round().clip(0, 255).astype(np.uint8)


def depth(mesh: trimesh.Trimesh, camera: Camera, size: int = 128) -> np.ndarray:
    """Distance from the camera along the ray of each pixel's middle, float32 [S, S], inf where nothing is hit."""
    directions = camera.rays(size)
    origins = np.tile(camera.eye, (len(directions), 1))
    points, ray, _ = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    seen = np.full(size * size, np.inf, np.float32)
    if len(ray):
        seen[ray] = np.linalg.norm(points - camera.eye, axis=1)
    return seen.reshape(size, size)


def silhouette(mesh: trimesh.Trimesh, camera: Camera, size: int = 128) -> np.ndarray:
    """Pixels whose middle the mesh covers, bool [S, S]."""
    directions = camera.rays(size)
    hit = mesh.ray.intersects_any(np.tile(camera.eye, (len(directions), 1)), directions)
    return np.asarray(hit, bool).reshape(size, size)


def cloud_view(
    points: np.ndarray, colours: np.ndarray, camera: Camera, size: int = 128, *, radius: float = 0.02
) -> np.ndarray:
    """Points [N, 3] with RGB [N, 3] seen by ``camera``: uint8 [S, S, 3], each a disc in its own colour, no light.

    A disc has a ``radius`` in scene units, so it shrinks with distance, down to one pixel; near discs cover far ones. Points
    behind the camera are not seen.
    """
    image = np.tile(np.array(BACKGROUND, np.uint8), (size, size, 1))
    back = (points - camera.eye) @ camera.axes[2]
    points, colours, back = points[back < 0], colours[back < 0], back[back < 0]
    middle = (camera.project(points) + 1) / 2 * size - 0.5  # [N, 2] in pixels
    reach = np.maximum(radius * size / 2 / (np.tan(camera.half_fov) * -back), 0.5)  # [N]
    n = int(np.ceil(reach.max(initial=0)))
    near = np.full((size, size), np.inf)
    x, y = np.rint(middle).astype(int).T
    for dx, dy in np.ndindex(2 * n + 1, 2 * n + 1):
        column, row = x + dx - n, y + dy - n
        at_middle = (dx == n) & (dy == n)
        covered = at_middle | (np.hypot(column - middle[:, 0], row - middle[:, 1]) <= reach)
        covered &= (column >= 0) & (column < size) & (row >= 0) & (row < size)
        cells, distance = (row[covered], column[covered]), -back[covered]
        np.minimum.at(near, cells, distance)
        first = distance == near[cells]
        image[cells[0][first], cells[1][first]] = colours[covered][first]
    return image


def turntable(mesh: trimesh.Trimesh, camera: Camera, *, n_frames: int = 8, size: int = 96) -> list[np.ndarray]:
    """Views from ``n_frames`` places on a circle round the vertical axis, the first from ``camera`` itself."""
    return [view(mesh, camera.turned(2 * math.pi * i / n_frames), size) for i in range(n_frames)]


def to_png(image: np.ndarray) -> bytes:
    """uint8 [S, S, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def to_gif(frames: list[np.ndarray], *, seconds_per_frame: float = 0.2) -> bytes:
    """Frames [S, S, 3] as an endless animation."""
    buffer = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=int(1000 * seconds_per_frame), loop=0)
    return buffer.getvalue()
