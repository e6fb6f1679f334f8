"""The embedded lifter: a picture → the zero level of the signed-distance network → a coloured mesh.

The grid is refined where the surface is: a coarse lattice is asked everywhere, the next finer one only in cells that
the surface can cross. Marching cubes: Lewiner et al., 2003 (scikit-image).

Letters: K lattice points per axis, V vertices, F faces.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import marching_cubes
from torch import Tensor

from ttd.config import Config
from ttd.geometry.lifter import LifterInfo, LiftRequest, LiftResult, Surface
from ttd.geometry.sdf_network import Features, SDFNetwork, load_network

CHUNK = 16384  # points asked at once: 12 MB per layer of width 192


class SDFLifterConfig(Config):
    weights: Path = Path("weights/tiny/lifter")
    """Folder with config.json and model.safetensors."""
    cells: int = 64
    """Cells per axis of the finest grid over [-1, 1]^3; a multiple of 4."""


class SDFLifter:
    """Lifts pictures of procedural solids seen by the camera of its ``config.json``; others are outside its domain."""

    def __init__(self, network: SDFNetwork, *, cells: int = 64, facts: dict | None = None, revision: str = "untrained"):
        if cells < 8 or cells % 4:
            raise ValueError(f"cells must be a multiple of 4 and at least 8, got {cells}")
        self.network, self.cells, self.facts, self.revision = network, cells, facts or {}, revision

    @classmethod
    def prepare(cls, config: SDFLifterConfig) -> SDFLifter:
        """Load the weights (UserError names what is missing)."""
        network, facts = load_network(config.weights)
        digest = hashlib.sha256((config.weights / "model.safetensors").read_bytes()).hexdigest()
        return cls(network, cells=config.cells, facts=facts, revision=digest[:16])

    def info(self) -> LifterInfo:
        """Name, version, weights, licence and domain."""
        return LifterInfo("ttd_sdf", "1", self.revision, "MIT", "procedural-primitives")

    @torch.no_grad()
    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """One result per request, each computed by itself, so a result does not depend on its neighbours."""
        return [self._lift(request) for request in requests]

    def _lift(self, request: LiftRequest) -> LiftResult:
        start = time.perf_counter()
        if request.camera not in (None, self.network.config.camera):
            return LiftResult(request.key, "failed", "the picture's camera is not the one this lifter was trained for")
        features = self.network.encode(self._picture(request.image))
        field = self.field(features)  # [K, K, K]
        if not (field.min() < 0 < field.max()):
            reason = "the network sees no surface in this picture"
            return LiftResult(request.key, "empty", reason, seconds=time.perf_counter() - start)
        vertices, faces, _, _ = marching_cubes(field, 0.0, gradient_direction="descent")
        vertices = (vertices * (2 / self.cells) - 1).astype(np.float32)
        _, rgb = self._ask(features, torch.from_numpy(vertices))
        colours = (rgb * 255).round().to(torch.uint8).numpy()
        surface = Surface(vertices, faces.astype(np.int32), colours)
        return LiftResult(request.key, "ok", surface=surface, seconds=time.perf_counter() - start)

    def _picture(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] → [1, 3, S, S] in [0, 1].

        Raises:
            ValueError: not a square RGB picture in uint8.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
            raise ValueError(f"a picture must be uint8 [S, S, 3], got {image.dtype} {image.shape}")
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        size = self.network.config.image_size
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
        return x

    def _ask(self, features: Features, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [P] and colour [P, 3] at points [P, 3], in chunks."""
        parts = [self.network.query(features, chunk[None]) for chunk in points.split(CHUNK)]
        return torch.cat([d[0] for d, _ in parts]), torch.cat([rgb[0] for _, rgb in parts])

    def field(self, features: Features) -> np.ndarray:
        """Signed distance on the lattice [K, K, K] (axes x, y, z), K = cells + 1; far from the surface interpolated.

        A cell of side h can hold surface only if some corner is nearer to it than half its diagonal, h * sqrt(3) / 2;
        a fifth more is allowed for the network's error (at 64 cells that is 0.13, still below the truncation).
        """
        stride, coarse = 4, None
        values = torch.empty(0)
        while stride:
            k = self.cells // stride + 1
            axis = torch.linspace(-1, 1, k)
            points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
            if coarse is None:
                values = self._ask(features, points)[0].view(k, k, k)
            else:
                reach = 1.2 * math.sqrt(3) / 2 * (2 / self.cells) * (2 * stride)
                near = -F.max_pool3d(-coarse.abs()[None], 2, stride=1)[0] < reach  # cells whose nearest corner is near
                near |= F.max_pool3d(coarse[None], 2, 1)[0] * -F.max_pool3d(-coarse[None], 2, 1)[0] < 0
                ask = torch.zeros(k, k, k, dtype=torch.bool)
                for corner in np.ndindex(3, 3, 3):  # a coarse cell covers 3 x 3 x 3 points of the finer lattice
                    ask[tuple(slice(c, c + 2 * n - 1, 2) for c, n in zip(corner, near.shape, strict=True))] |= near
                size = (k, k, k)
                values = F.interpolate(coarse[None, None], size, mode="trilinear", align_corners=True)[0, 0]
                chosen = ask.flatten().nonzero()[:, 0]
                if len(chosen):
                    values.view(-1)[chosen] = self._ask(features, points[chosen])[0]
            coarse, stride = values, stride // 2
        return values.numpy()
