"""Surfaces out of what backends give: values on a lattice, or a mesh of whatever make.

Marching cubes: Lewiner et al., 2003 (scikit-image).

Letters: K lattice points per axis, P points, V vertices.
"""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes
from torch import Tensor

from ttd.geometry.lifter import Surface
from ttd.geometry.meshes import vertex_colours


def lattice(k: int) -> Tensor:
    """The K^3 points [K^3, 3] of a lattice over [-1, 1]^3, x slowest, z fastest."""
    axis = torch.linspace(-1, 1, k)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)


def zero_level(field: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices float32 [V, 3] in [-1, 1]^3 and faces int32 where ``field`` [K, K, K] is zero, wound outwards.

    The field is negative inside. ``None`` when it has one sign alone: there is no surface.
    """
    if not field.min() < 0 < field.max():
        return None
    vertices, faces, _, _ = marching_cubes(field, 0.0, gradient_direction="descent")
    scale = 2 / (np.array(field.shape) - 1)
    return (vertices * scale - 1).astype(np.float32), faces.astype(np.int32)


def surface_of(mesh: trimesh.Trimesh) -> Surface:
    """A mesh as plain arrays, its colours as ``vertex_colours`` reads them."""
    return Surface(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32), vertex_colours(mesh))
