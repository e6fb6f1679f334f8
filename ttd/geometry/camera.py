"""The camera of a picture: where a point of the scene appears.

One frame for all of lifting: right-handed, +X right, +Y up, the camera on the +Z side looking towards -Z, the scene
inside [-1, 1]^3. A picture is square; picture coordinates run over [-1, 1], x to the right and y *down*.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

from ttd.config import Config

Points = TypeVar("Points", np.ndarray, torch.Tensor)


class Camera(Config):
    """A pinhole camera that looks from ``eye`` at ``target`` with +Y up."""

    eye: tuple[float, float, float]
    """Its place in the frame of the scene."""
    target: tuple[float, float, float]
    """The point in the middle of the picture."""
    half_fov: float
    """Angle from the middle of the picture to the middle of an edge, in radians."""

    @property
    def axes(self) -> np.ndarray:
        """Rows right, up and backward in the frame of the scene [3, 3]."""
        back = np.subtract(self.eye, self.target)
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(back, right), back])

    def project(self, points: Points) -> Points:
        """Picture coordinates [..., 2] of points [..., 3]; arrays stay arrays, tensors stay tensors."""
        x, y, z = (points[..., i] - self.eye[i] for i in range(3))
        right, up, back = ((x * a[0] + y * a[1] + z * a[2]) for a in self.axes.tolist())
        scale = -1 / (math.tan(self.half_fov) * back)
        stack = torch.stack if isinstance(points, torch.Tensor) else np.stack
        return stack([right * scale, -up * scale], -1)  # type: ignore[return-value, operator]

    def rays(self, size: int) -> np.ndarray:
        """Unit directions [size * size, 3] through the pixel centres, row by row from the top left."""
        u = (np.arange(size) + 0.5) / size * 2 - 1
        x, y = np.meshgrid(u, -u)
        local = np.stack([x, y, np.full_like(x, -1 / math.tan(self.half_fov))], axis=-1)
        world = local.reshape(-1, 3) @ self.axes
        return world / np.linalg.norm(world, axis=-1, keepdims=True)

    def turned(self, angle: float) -> Camera:
        """The same camera carried round the vertical axis of the scene by ``angle`` radians (towards +X)."""
        c, s = math.cos(angle), math.sin(angle)
        (x, y, z), (tx, ty, tz) = self.eye, self.target
        eye, target = (c * x + s * z, y, c * z - s * x), (c * tx + s * tz, ty, c * tz - s * tx)
        return Camera(eye=eye, target=target, half_fov=self.half_fov)


DEFAULT_CAMERA = Camera(eye=(0.0, 1.2, 4.5), target=(0.0, 0.0, 0.0), half_fov=0.27)
"""From a little above, so that [-1, 1]^3 fills the picture: of views, and of composition, where nobody knows a better one."""
