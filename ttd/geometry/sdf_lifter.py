"""The embedded lifter: a picture → the zero level of the signed-distance network → a coloured mesh.

The grid is refined where the surface is: a coarse lattice is asked everywhere, the next finer one only in cells that
the surface can cross. A picture that is not of the network's kind is refused (``ttd.geometry.domain``).

Letters: K lattice points per axis, P points.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttd.config import Config, UserError
from ttd.geometry.camera import Camera
from ttd.geometry.domain import Domain, features
from ttd.geometry.lifter import LifterInfo, LiftRequest, LiftResult, Surface, measured
from ttd.geometry.sdf_network import Features, SDFNetwork, load_network
from ttd.geometry.surfaces import lattice, zero_level
from ttd.untrusted.weights import find_tampered

CHUNK = 16384  # points asked at once: 12 MB per layer of width 192


class SDFLifterConfig(Config):
    name: Literal["ttd_sdf"] = "ttd_sdf"
    weights: Path = Path("weights/tiny/lifter")
    """Folder with config.json and model.safetensors."""
    cells: int = 64
    """Cells per axis of the finest grid over [-1, 1]^3; a multiple of 4."""

    def problems(self) -> list[str]:
        """What is missing, found without loading anything."""
        if (self.weights / "config.json").is_file() and (self.weights / "model.safetensors").is_file():
            return []
        return [f"lifter.weights: {self.weights} holds no lifter; train it with ttd/train_lift.py"]


class SDFLifter:
    """Lifts pictures of procedural solids seen by the camera of its ``config.json``; others are refused."""

    def __init__(
        self,
        network: SDFNetwork,
        *,
        cells: int = 64,
        facts: dict | None = None,
        revision: str = "untrained",
        domain: Domain | None = None,
    ):
        if cells < 8 or cells % 4:
            raise ValueError(f"cells must be a multiple of 4 and at least 8, got {cells}")
        self.network, self.cells, self.facts, self.revision = network, cells, facts or {}, revision
        self.domain = domain
        self.camera: Camera | None = network.config.camera
        self.device = next(network.parameters()).device

    @classmethod
    def prepare(cls, config: SDFLifterConfig, *, device: torch.device | str = "cpu") -> SDFLifter:
        """Load the weights (UserError names what is missing, or not what its list of hashes says)."""
        tampered = find_tampered(config.weights)
        if tampered:
            raise UserError(f"lifter.weights: {tampered}")
        network, facts = load_network(config.weights)
        digest = hashlib.sha256((config.weights / "model.safetensors").read_bytes()).hexdigest()
        domain = Domain.load(config.weights)
        return cls(network.to(device), cells=config.cells, facts=facts, revision=digest[:16], domain=domain)

    def info(self) -> LifterInfo:
        """Name, version, weights, licence and domain."""
        return LifterInfo("ttd_sdf", "2", self.revision, "MIT", "procedural-primitives")

    @torch.no_grad()
    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """One result per request, each computed by itself, so a result does not depend on its neighbours."""
        return [measured(self._lift, request, self.device) for request in requests]

    def close(self) -> None:
        """Nothing outlives it."""

    def _lift(self, request: LiftRequest) -> LiftResult:
        if request.camera not in (None, self.camera):
            reason = "the picture's camera is not the one this lifter was trained for"
            return LiftResult(request.key, "refused", reason)
        height, width = request.image.shape[:2]
        if height != width:
            return LiftResult(request.key, "refused", "the picture is not square, as all of the model's domain are")
        picture, facts = self._picture(request.image).to(self.device), {}
        if self.domain is not None:
            ratio = self.domain.distance(features(self.network, picture).cpu()).item() / self.domain.limit
            facts["domain_distance"] = round(ratio, 3)  # 1 is the limit
            if ratio > 1:
                reason = f"outside the embedded model's domain: {ratio:.2f} times the distance that its pictures keep"
                return LiftResult(request.key, "refused", reason, facts=facts)
        encoded = self.network.encode(picture)
        field, facts["n_asked"] = self.field(encoded)
        level = zero_level(field)
        if level is None:
            return LiftResult(request.key, "empty", "the network sees no surface in this picture", facts=facts)
        _, rgb = self.ask(encoded, torch.from_numpy(level[0]))
        surface = Surface(*level, (rgb * 255).round().to(torch.uint8).numpy())
        return LiftResult(request.key, "ok", surface=surface, facts=facts)

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

    def ask(self, encoded: Features, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [P] and colour [P, 3] at points [P, 3], in chunks; all on the CPU but the network."""
        parts = [self.network.query(encoded, chunk[None].to(self.device)) for chunk in points.split(CHUNK)]
        return torch.cat([d[0].cpu() for d, _ in parts]), torch.cat([rgb[0].cpu() for _, rgb in parts])

    def field(self, encoded: Features) -> tuple[np.ndarray, int]:
        """Signed distance on the lattice [K, K, K] (axes x, y, z), K = cells + 1, and how many points were asked.

        Far from the surface the distance is interpolated. A cell of side h can hold surface only if some corner is
        nearer to it than half its diagonal, h * sqrt(3) / 2; a fifth more is allowed for the network's error (at 64
        cells that is 0.13, still below the truncation).
        """
        stride, k = 4, self.cells // 4 + 1
        coarse, n_asked = self.ask(encoded, lattice(k))[0].view(k, k, k), k**3
        while stride > 1:
            reach = 1.2 * math.sqrt(3) / 2 * (2 / self.cells) * stride
            near = -F.max_pool3d(-coarse.abs()[None], 2, stride=1)[0] < reach  # cells whose nearest corner is near
            near |= F.max_pool3d(coarse[None], 2, 1)[0] * -F.max_pool3d(-coarse[None], 2, 1)[0] < 0
            stride //= 2
            k = self.cells // stride + 1
            chosen = torch.zeros(k, k, k, dtype=torch.bool)
            for corner in np.ndindex(3, 3, 3):  # a coarse cell covers 3 x 3 x 3 points of the finer lattice
                chosen[tuple(slice(c, c + 2 * n - 1, 2) for c, n in zip(corner, near.shape, strict=True))] |= near
            fine = F.interpolate(coarse[None, None], (k, k, k), mode="trilinear", align_corners=True)[0, 0]
            chosen[::2, ::2, ::2] = False  # the coarse lattice's own points are known
            rows = chosen.flatten().nonzero()[:, 0]
            if len(rows):
                fine.view(-1)[rows] = self.ask(encoded, lattice(k)[rows])[0]
            coarse, n_asked = fine, n_asked + len(rows)
        return coarse.numpy(), n_asked
