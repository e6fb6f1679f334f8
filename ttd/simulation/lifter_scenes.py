"""What the tiny lifter is trained on: pictures of procedural scenes, points with exact distance and colour, and rays.

A picture pool is rendered once; the points of a step are drawn anew, keyed by the step, so a resumed run sees the same.
Half of the points lie near a surface, where the shape is decided; the rest fill the solids' surroundings and the scene.

Letters: N scenes, P points per scene, R rays per scene, S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ttd.seeding import key, torch_rng
from ttd.simulation.render import LOOKS, SUPERSAMPLE, rays, render
from ttd.simulation.scenes import COLOUR_RGB, KINDS, Scene, draw_scene, solid_distance, to_solid_frame

NEAR = 0.08  # scene units; points nearer to a surface than this count as near it
AROUND = 9  # pixels: rays within 4 of a solid are drawn four times as often as others, so about half of them are there


class ScenePool:
    """``n_scenes`` scenes of a seed, their pictures in every look, and which solid each pixel shows.

    ``images`` are uint8 [N, 3, S, S] by look; ``masks`` int8 [N, S, S], -1 on the table.
    """

    def __init__(self, seed: int, purpose: str, n_scenes: int, size: int = 64):
        self.scenes = [draw_scene(key(seed, purpose, i)) for i in range(n_scenes)]
        rendered = {look: render(self.scenes, look, size) for look in LOOKS}
        self.images = {look: torch.from_numpy(r.image).permute(0, 3, 1, 2) for look, r in rendered.items()}
        self.masks = torch.from_numpy(next(iter(rendered.values())).mask)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows [n] of the pool, and their pictures [n, 3, S, S] in [0, 1], each in a look of its own."""
        rows = torch.randint(len(self.scenes), (n,), generator=generator)
        looks = torch.randint(len(self.images), (n,), generator=generator).tolist()
        pools = list(self.images.values())
        return rows, torch.stack([pools[look][row] for look, row in zip(looks, rows, strict=True)]).float() / 255

    def batch(self, seed: int, step: int, batch_size: int, n_points: int, n_rays: int = 0) -> dict[str, Tensor]:
        """Pictures, points and rays of one training step: a function of (seed, step) alone.

        Returns ``rows`` [N] of the pool, ``image`` [N, 3, S, S] in [0, 1] and what ``draw_points`` returns; with ``n_rays``
        also what ``draw_rays`` returns.
        """
        g = torch_rng(seed, "lifter-batch", step)
        rows, image = self.draw(batch_size, g)
        batch = {"rows": rows, "image": image, **draw_points([self.scenes[i] for i in rows], n_points, g)}
        if n_rays:  # from a generator of their own, so that the points are the same without them
            batch |= draw_rays(image, self.masks[rows], n_rays, torch_rng(seed, "lifter-rays", step))
        return batch


def distance_and_colour(scenes: Sequence[Scene], points: Tensor) -> tuple[Tensor, Tensor]:
    """Exact signed distance [N, P] and colour of the nearest solid [N, P, 3] of points [N, P, 3], row i in scene i.

    The same distance as ``ttd.simulation.scenes.signed_distance``, for many scenes at once.
    """
    distance = torch.full(points.shape[:2], torch.inf)
    rgb = torch.zeros_like(points)
    for slot in range(2):
        for kind in KINDS:
            rows = [i for i, s in enumerate(scenes) if len(s.solids) > slot and s.solids[slot].kind == kind]
            if not rows:
                continue
            solids = [scenes[i].solids[slot] for i in rows]
            centre = torch.tensor([[s.x, s.y, s.z] for s in solids])[:, None]  # [rows, 1, 3]
            yaw, radius = (torch.tensor([[getattr(s, name)] for s in solids]) for name in ("yaw", "radius"))
            d = solid_distance(
                kind, to_solid_frame(points[rows], centre, yaw), radius.expand(len(rows), points.shape[1])
            )
            colour = torch.tensor([COLOUR_RGB[s.colour] for s in solids])[:, None]
            rgb[rows] = torch.where((d < distance[rows])[..., None], colour, rgb[rows])
            distance[rows] = torch.minimum(distance[rows], d)
    return distance, rgb


def draw_points(scenes: Sequence[Scene], n_points: int, generator: torch.Generator) -> dict[str, Tensor]:
    """``n_points`` points per scene: half near a surface, a quarter around the solids, a quarter anywhere."""
    n, n_candidates, quarter = len(scenes), 4 * n_points, n_points // 4
    slots = torch.rand(n, n_candidates, generator=generator)
    solids = [[(s.x, s.y, s.z, s.radius) for s in scene.solids] for scene in scenes]
    first = torch.tensor([s[0] for s in solids])[:, None]
    last = torch.tensor([s[-1] for s in solids])[:, None]
    around = torch.where((slots < 0.5)[..., None], first, last)  # [N, candidates, 4]
    offset = torch.rand(n, n_candidates, 3, generator=generator) * 2 - 1
    candidates = around[..., :3] + 1.3 * around[..., 3:] * offset
    d, rgb = distance_and_colour(scenes, candidates)
    order = d.abs().clamp(min=NEAR) + 1e-3 * torch.rand(d.shape, generator=generator)  # random among the near ones
    near = order.topk(n_points - 2 * quarter, largest=False).indices
    pick = torch.cat([near, torch.arange(quarter).expand(n, -1)], dim=1)  # candidates are in random order
    anywhere = torch.rand(n, quarter, 3, generator=generator) * 2 - 1
    d_any, rgb_any = distance_and_colour(scenes, anywhere)
    index = pick[..., None].expand(-1, -1, 3)
    return {
        "points": torch.cat([candidates.gather(1, index), anywhere], dim=1),
        "distance": torch.cat([d.gather(1, pick), d_any], dim=1),
        "rgb": torch.cat([rgb.gather(1, index), rgb_any], dim=1),
    }


@cache
def pixel_rays(size: int) -> Tensor:
    """Unit directions [S * S, 3] through the part of each pixel that the mask of ``render`` speaks of: the top left one."""
    fine = rays(size * SUPERSAMPLE).view(size * SUPERSAMPLE, size * SUPERSAMPLE, 3)
    return fine[::SUPERSAMPLE, ::SUPERSAMPLE].reshape(-1, 3)


def draw_rays(images: Tensor, masks: Tensor, n_rays: int, generator: torch.Generator) -> dict[str, Tensor]:
    """``n_rays`` pixels of each picture [N, 3, S, S] with mask [N, S, S], about half of them on a solid or beside it.

    Returns ``directions`` [N, R, 3], ``jitter`` [N, R], ``pixels`` [N, R, 3], ``covered`` [N, R] (1 on a solid) and ``inner``
    [N, R] (1 where the eight neighbours show the same solid).
    """
    n, _, size, _ = images.shape
    index = masks.float()[:, None]
    near = F.max_pool2d((index >= 0).float(), AROUND, 1, AROUND // 2)
    chosen = torch.multinomial((1 + 3 * near).flatten(1), n_rays, generator=generator)  # [N, R]
    alike = (F.max_pool2d(index, 3, 1, 1) == -F.max_pool2d(-index, 3, 1, 1)) & (index >= 0)
    return {
        "directions": pixel_rays(size)[chosen],
        "jitter": torch.rand(n, n_rays, generator=generator),
        "pixels": images.flatten(2).gather(2, chosen[:, None].expand(-1, 3, -1)).transpose(1, 2),
        "covered": (index >= 0).float().flatten(1).gather(1, chosen),
        "inner": alike.float().flatten(1).gather(1, chosen),
    }
