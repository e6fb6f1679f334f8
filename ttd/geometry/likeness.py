"""How like its picture a lifted surface is, where nobody knows the true solid.

CLIP similarity of views to the picture; how often CLIP names the item's picture among others of the run when it sees the views;
and what decoding cost: the surface lifted from the decoded picture against the one that the same backend lifted from the picture
shown, which is no truth. All stand beside the same figures with other items.

Letters: V views, F features, K pictures of the gallery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import trimesh

from ttd.diffusion.targets import ClipTargets, find_missing
from ttd.geometry.camera import Camera
from ttd.geometry.views import turntable
from ttd.metrics.geometry import lift_consistency
from ttd.metrics.surface_views import N_VIEWS, N_WAY_VIEWS, clip_views, n_way_views
from ttd.metrics.volume import surface_facts

VIEW_SIZE = 128  # pixels; CLIP resizes to 224 and sees the shape, not the edges


@dataclass(frozen=True)
class Beside:
    """What a lifted item is held against."""

    picture: np.ndarray
    """uint8 [H, W, 3]."""
    points: np.ndarray | None = None
    """On the surface from the picture that was shown [P, 3]; None: nothing to compare with."""
    place: int | None = None
    """Of the picture that was shown, in the gallery."""


class Likeness:
    """Scores one lifted item against pictures and surfaces of its own and of other items.

    Args:
        clip: folder or repository of a CLIP; None leaves its scores out.
        camera: of the first view.
        gallery: the pictures shown in the run, no two alike, uint8 [H, W, 3] each; fewer than 2 leave the n-way score out.
        ways: of that score; of a smaller gallery all.
    """

    def __init__(
        self,
        clip: str | None,
        *,
        device: torch.device,
        camera: Camera,
        gallery: Iterable[np.ndarray] = (),
        ways: int = 10,
    ):
        self.clip = None if clip is None else ClipTargets(clip, device=device)
        embedded = [self._embed([image]) for image in gallery] if self.clip is not None else []
        self.gallery = _unit(np.concatenate(embedded)) if len(embedded) > 1 else None
        self.camera, self.ways = camera, min(ways, len(embedded))

    def scores(
        self, mesh: trimesh.Trimesh | None, points: np.ndarray | None, own: Beside, others: Sequence[Beside], *, seed: int
    ) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:  # fmt: skip
        """Figures by the names of ``ttd.metrics.geometry.METRICS``, and the same of each other item.

        Args:
            mesh, points: the surface and points [P, 3] on it, None where nothing came out.
            own: what the item is held against.
            others: the same of other items.
            seed: of the draws of the n-way score.
        """
        views = self._views(mesh, N_VIEWS)
        named = None if self.gallery is None else self._views(mesh, N_WAY_VIEWS)
        logits = None if named is None or self.gallery is None else _unit(named) @ self.gallery.T  # [V, K]
        first, *rest = [self._beside(views, logits, points, beside, seed) for beside in [own, *others]]
        return surface_facts(mesh) | first, rest

    def _views(self, mesh: trimesh.Trimesh | None, n: int) -> np.ndarray | None:
        """Embeddings [V, F] of ``n`` views."""
        if self.clip is None or mesh is None:
            return None
        return self._embed(turntable(mesh, self.camera, n_frames=n, size=VIEW_SIZE))

    def _beside(
        self, views: np.ndarray | None, logits: np.ndarray | None, points: np.ndarray | None, beside: Beside, seed: int
    ) -> dict[str, float | None]:
        out: dict[str, float | None] = {}
        if self.clip is not None:
            out |= clip_views(views, self._embed([beside.picture])[0])
        if self.gallery is not None and beside.place is not None:
            out |= n_way_views(logits, np.full(N_WAY_VIEWS, beside.place), ways=self.ways, seed=seed)
        if beside.points is not None:
            out |= lift_consistency(points, beside.points)
        return out

    def _embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings float32 [V, F] of pictures uint8 [H, W, 3]."""
        assert self.clip is not None
        planes = [torch.tensor(image).permute(2, 0, 1) for image in images]
        return self.clip.embed(planes).float().cpu().numpy()


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Rows of [N, F] at length 1."""
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


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
