"""Pictures, depth and masks of scenes by sphere tracing on the CPU.

One fixed camera. Two looks differ in table and light: the tiny UNet is trained on ``base`` alone, the study is shown in
``study``, so that LoRA has a gap to close. Rays are traced only where they meet a solid's bounding sphere, solids of one
kind together.

Letters: N scenes, R rays of a supersampled picture, H = W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttd.simulation.scenes import COLOUR_RGB, KINDS, TABLE, Scene, solid_distance, to_solid_frame

EYE = (0.0, 1.85, 3.6)
TARGET = (0.0, -0.16, 0.0)
HALF_FOV = math.radians(14.8)
N_STEPS = 26  # converged to 1e-3 for all six kinds at these sizes; tests/simulation/test_render.py
SUPERSAMPLE = 2


@dataclass(frozen=True)
class Look:
    """Light and table of a picture; all colours are RGB in [0, 1]."""

    light: tuple[float, float, float]
    ambient: float
    diffuse: float
    specular: float
    table_near: tuple[float, float, float]
    table_far: tuple[float, float, float]
    shadow: float


LOOKS = {
    "base": Look((-0.45, 0.8, 0.45), 0.42, 0.62, 0.18, (0.62, 0.66, 0.72), (0.40, 0.44, 0.52), 0.45),
    "study": Look((0.60, 0.7, 0.25), 0.30, 0.78, 0.05, (0.50, 0.40, 0.30), (0.26, 0.20, 0.16), 0.65),
}


@dataclass
class Rendered:
    """Pictures of N scenes: ``image`` uint8 [N, H, W, 3], ``depth`` float32 [N, H, W] along the ray (inf on the table),
    ``mask`` int8 [N, H, W], the index of the solid, -1 on the table."""

    image: np.ndarray
    depth: np.ndarray
    mask: np.ndarray


def camera_axes() -> np.ndarray:
    """Rows right, up, backward of the camera in the world frame [3, 3]."""
    back = np.array(EYE) - np.array(TARGET)
    back /= np.linalg.norm(back)
    right = np.cross([0, 1, 0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back])


def project(points: Tensor) -> Tensor:
    """World points [..., 3] → picture coordinates [..., 2], x right and y down, both in [-1, 1] inside the picture."""
    axes = points.new_tensor(camera_axes())
    q = (points - points.new_tensor(EYE)) @ axes.T
    scale = 1 / (math.tan(HALF_FOV) * -q[..., 2:3])
    return torch.cat([q[..., :1], -q[..., 1:2]], dim=-1) * scale


def rays(size: int) -> Tensor:
    """Unit directions [size², 3] of the pixel centres, row by row from the top left."""
    u = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-u, u, indexing="ij")
    local = torch.stack([x, y, torch.full_like(x, -1 / math.tan(HALF_FOV))], dim=-1)
    world = local.reshape(-1, 3) @ torch.as_tensor(camera_axes(), dtype=torch.float32)
    return world / world.norm(dim=-1, keepdim=True)


def _trace(scenes: Sequence[Scene], directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [N, R] (inf where nothing is met), solid index [N, R] and normals [N, R, 3] of the nearest solids."""
    n, r = len(scenes), len(directions)
    depth, index = torch.full((n, r), math.inf), torch.full((n, r), -1)
    normal = torch.zeros(n, r, 3)
    eye = torch.tensor(EYE)
    for slot in range(2):
        for kind in KINDS:
            rows = [i for i, s in enumerate(scenes) if len(s.solids) > slot and s.solids[slot].kind == kind]
            if not rows:
                continue
            solids = [scenes[i].solids[slot] for i in rows]
            centre = torch.tensor([[s.x, s.y, s.z] for s in solids])
            radius, yaw = torch.tensor([s.radius for s in solids]), torch.tensor([s.yaw for s in solids])
            bound = 1.3 * radius  # a box's corner lies at 0.72·√3 = 1.25 radii
            offset = centre - eye
            along = offset @ directions.T  # [rows, R]
            miss = (offset * offset).sum(-1, keepdim=True) - along**2
            solid, ray = torch.nonzero(miss < bound[:, None] ** 2, as_tuple=True)
            d, c, y, rad = directions[ray], centre[solid], yaw[solid], radius[solid]
            t = along[solid, ray] - (bound[solid] ** 2 - miss[solid, ray]).sqrt()
            for _ in range(N_STEPS):
                t = t + solid_distance(kind, to_solid_frame(eye + t[:, None] * d, c, y), rad)
            point = eye + t[:, None] * d
            hit = solid_distance(kind, to_solid_frame(point, c, y), rad).abs() < 4e-3
            solid, ray, t, point, c, y, rad = (v[hit] for v in (solid, ray, t, point, c, y, rad))
            # Normal by the tetrahedron rule: four evaluations of the distance.
            corners = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
            grad = torch.zeros_like(point)
            for k in corners:
                grad += k * solid_distance(kind, to_solid_frame(point + 2e-3 * k, c, y), rad)[:, None]
            row = torch.tensor(rows)[solid]
            nearer = t < depth[row, ray]
            row, ray = row[nearer], ray[nearer]
            depth[row, ray], index[row, ray] = t[nearer], slot
            normal[row, ray] = torch.nn.functional.normalize(grad[nearer], dim=-1)
    return depth, index, normal


def _shade(scenes: Sequence[Scene], look: Look, directions: Tensor, index: Tensor, normal: Tensor) -> Tensor:
    """Colours [N, R, 3]: Lambert and a small highlight on solids; a gradient with soft shadows on the table."""
    eye, light = torch.tensor(EYE), torch.nn.functional.normalize(torch.tensor(look.light), dim=0)
    table = eye + directions * ((TABLE - eye[1]) / directions[:, 1])[:, None]  # [R, 3]
    blend = ((table[:, 2] + 2) / 3.2).clamp(0, 1)[:, None]
    ground = torch.tensor(look.table_far) * (1 - blend) + torch.tensor(look.table_near) * blend  # [R, 3]
    colour = ground.expand(len(scenes), -1, -1).clone()
    for i, scene in enumerate(scenes):
        for s in scene.solids:
            # The shadow is a soft blob moved away from the light.
            dx = table[:, 0] - s.x + 0.55 * s.radius * light[0]
            dz = table[:, 2] - s.z + 0.55 * s.radius * light[2]
            colour[i] *= (1 - look.shadow * torch.exp(-(((dx**2 + dz**2) / (0.95 * s.radius) ** 2) ** 1.5)))[:, None]
        for slot, s in enumerate(scene.solids):
            on = index[i] == slot
            n = normal[i, on]
            half = torch.nn.functional.normalize(light - directions[on], dim=-1)
            lit = look.ambient + look.diffuse * (n @ light).clamp(min=0)
            shine = look.specular * (n * half).sum(-1).clamp(min=0) ** 24
            colour[i, on] = torch.tensor(COLOUR_RGB[s.colour]) * lit[:, None] + shine[:, None]
    return colour.clamp(0, 1)


@torch.no_grad()
def render(scenes: Sequence[Scene], look: str = "base", size: int = 64, chunk: int = 64) -> Rendered:
    """Render scenes as ``size`` × ``size`` pictures in one of the ``LOOKS``, supersampled 2 × 2.

    Depth and mask are those of the pixel's top left subsample.
    """
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}; known: {', '.join(LOOKS)}")
    fine, parts = size * SUPERSAMPLE, []
    directions = rays(fine)
    for start in range(0, len(scenes), chunk):
        some = scenes[start : start + chunk]
        depth, index, normal = _trace(some, directions)
        colour = _shade(some, LOOKS[look], directions, index, normal)
        colour = colour.view(len(some), size, SUPERSAMPLE, size, SUPERSAMPLE, 3).mean((2, 4))
        image = (colour * 255).round().to(torch.uint8).numpy()
        depth, index = (v.view(len(some), fine, fine)[:, ::SUPERSAMPLE, ::SUPERSAMPLE] for v in (depth, index))
        parts.append((image, depth.numpy(), index.to(torch.int8).numpy()))
    return Rendered(*(np.concatenate(v) for v in zip(*parts, strict=True)))


def dominant(mask: np.ndarray) -> int:
    """Index of the solid with more visible pixels in one picture's mask [H, W]."""
    return int(np.argmax([(mask == slot).sum() for slot in range(2)]))


def labels(scene: Scene, mask: np.ndarray) -> dict[str, str]:
    """Kind, colour, size and place of the solid with more visible pixels, as words."""
    s = scene.solids[dominant(mask)]
    return {"kind": s.kind, "colour": s.colour, "size": s.size, "place": s.place}
