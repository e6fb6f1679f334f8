"""How like its picture a lifted surface is, where nobody knows the true solid.

CLIP similarity of views to the picture, and what decoding cost: the surface lifted from the decoded picture against the one that
the same backend lifted from the picture shown, which is no truth. Both stand beside the same figures with other items.

Letters: V views, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import trimesh

from ttd.diffusion.targets import ClipTargets, find_missing
from ttd.geometry.camera import Camera
from ttd.geometry.views import turntable
from ttd.metrics.geometry import lift_consistency
from ttd.metrics.surface_views import N_VIEWS, clip_views
from ttd.metrics.volume import surface_facts

VIEW_SIZE = 128  # pixels; CLIP resizes to 224 and sees the shape, not the edges


class Likeness:
    """Scores one lifted item against pictures and surfaces of its own and of other items.

    Args:
        clip: folder or repository of a CLIP; None leaves its scores out.
        camera: of the first view.
    """

    def __init__(self, clip: str | None, *, device: torch.device, camera: Camera):
        self.clip = None if clip is None else ClipTargets(clip, device=device)
        self.camera = camera

    def scores(
        self, mesh: trimesh.Trimesh | None, points: np.ndarray | None, own: tuple[np.ndarray, np.ndarray | None],
        others: Sequence[tuple[np.ndarray, np.ndarray | None]],
    ) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:  # fmt: skip
        """Figures by the names of ``ttd.metrics.geometry.METRICS``, and the same of each other item.

        Args:
            mesh, points: the surface and points [P, 3] on it, None where nothing came out.
            own: the picture uint8 [H, W, 3], and points of the surface from the picture shown (None: nothing to compare with).
            others: the same of other items.
        """
        views = None
        if self.clip is not None and mesh is not None:
            views = self._embed(turntable(mesh, self.camera, n_frames=N_VIEWS, size=VIEW_SIZE))
        first, *rest = [self._beside(views, points, picture, partner) for picture, partner in [own, *others]]
        return surface_facts(mesh) | first, rest

    def _beside(
        self, views: np.ndarray | None, points: np.ndarray | None, picture: np.ndarray, partner: np.ndarray | None
    ) -> dict[str, float | None]:
        out: dict[str, float | None] = {}
        if self.clip is not None:
            out |= clip_views(views, self._embed([picture])[0])
        if partner is not None:
            out |= lift_consistency(points, partner)
        return out

    def _embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings float32 [V, F] of pictures uint8 [H, W, 3]."""
        assert self.clip is not None
        planes = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) for image in images]
        return self.clip.embed(planes).float().cpu().numpy()


def problems(clip: str | None) -> list[str]:
    """What is missing, found without loading anything."""
    missing = find_missing(clip) if clip is not None else None
    return [f"scoring.clip: {missing}"] if missing else []


def control_of(wrong: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of each figure over other items; None where none has it."""
    out: dict[str, float | None] = {}
    for name in dict.fromkeys(name for w in wrong for name in w):
        known = [w[name] for w in wrong if w.get(name) is not None]
        out[name] = float(np.mean(known)) if known else None
    return out
