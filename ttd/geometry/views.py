"""Pictures of meshes by ray casting on the CPU (trimesh with embree): a poster and a turntable, no OpenGL.

Letters: S pixels, R rays that hit.
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
