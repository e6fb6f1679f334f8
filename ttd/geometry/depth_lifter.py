"""Depth Anything V2 (Yang et al., 2024, arXiv:2406.09414) through transformers: a picture → depth → its visible side as a mesh.

What comes out is 2.5D: the side that faces the camera, open at the back. A metric model gives metres; a relative one
gives inverse depth up to scale and shift, so how much farther the farthest point is than the nearest is *assumed*, and
so is the field of view where the camera is not known. Both assumptions stand in the result's facts.

Letters: H, W pixels of the picture, h, w of the grid, V vertices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from ttd.config import Config
from ttd.diffusion.targets import find_missing, identity, model_folder
from ttd.geometry import licences
from ttd.geometry.camera import Camera
from ttd.geometry.lifter import LifterInfo, LiftRequest, LiftResult, Surface, measured

RESTRICTED = re.compile(r"Depth-Anything-V2-(Metric-\w+-)?(Base|Large|Giant)", re.IGNORECASE)
"""Their weights are CC-BY-NC-4.0; those of the small models Apache-2.0 (the model pages)."""


class DepthConfig(Config):
    name: Literal["depth"] = "depth"
    model: str = "depth-anything/Depth-Anything-V2-Small-hf"
    """A folder that save_pretrained wrote, or a repository that was downloaded before (``hf download``)."""
    accept_license: str | None = None
    """Name of a restricted licence that you keep to: CC-BY-NC-4.0 for the models larger than Small."""
    grid: int = Field(default=128, ge=2)
    """Vertices along the longer side of the picture."""
    half_fov_deg: float = Field(default=27.5, gt=0, lt=89)
    """Assumed angle from the middle to the edge of the longer side, where no camera is known: a usual 55° lens."""
    far_over_near: float = Field(default=2.0, gt=1)
    """Assumed farthest over nearest distance in a picture, for models of relative depth."""
    cut: float = Field(default=0.08, gt=0)
    """Neighbours whose depths differ by more than this share are not joined: there one thing hides another."""

    def problems(self) -> list[str]:
        """What is missing or not accepted, found without loading anything."""
        missing = find_missing(self.model)
        found = licences.problems(licence_of(self.model), self.accept_license, self.model)
        return found + ([f"lifter.model: {missing}"] if missing else [])


class DepthLifter:
    """Any picture; the visible side only."""

    camera: Camera | None = None

    def __init__(self, model: Any, processor: Any, config: DepthConfig, *, revision: str = "untrained"):
        self.model, self.processor, self.config, self.revision = model, processor, config, revision
        self.device = next(model.parameters()).device
        self.metric = getattr(model.config, "depth_estimation_type", "relative") == "metric"

    @classmethod
    def prepare(cls, config: DepthConfig, *, device: torch.device | str = "cpu") -> DepthLifter:
        """Load the model.

        Raises:
            UserError: it is not here, or its licence is restricted and not accepted.
        """
        licences.require(licence_of(config.model), config.accept_license, config.model)
        folder = model_folder(config.model)
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        processor = AutoImageProcessor.from_pretrained(folder)
        model = AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return cls(
            model.eval().requires_grad_(False).to(device), processor, config, revision=identity(config.model)[:16]
        )

    def info(self) -> LifterInfo:
        """Name, version, weights, licence and domain."""
        licence, domain = licence_of(self.config.model), "any picture; the visible side only, at an assumed scale"
        return LifterInfo("depth", "1", self.revision, licence, domain, kind="2.5D", pretrained=True)

    @torch.no_grad()
    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """One result per request, each computed by itself."""
        return [measured(self._lift, request, self.device) for request in requests]

    def close(self) -> None:
        """Nothing outlives it."""

    def _lift(self, request: LiftRequest) -> LiftResult:
        image = np.ascontiguousarray(request.image[..., :3])
        inputs = self.processor(images=Image.fromarray(image), return_tensors="pt").to(self.device)
        predicted = self.model(**inputs).predicted_depth[:, None].float().cpu()  # [1, 1, ...]
        scale = self.config.grid / max(image.shape[:2])
        shape = [max(2, round(side * scale)) for side in image.shape[:2]]
        said = F.interpolate(predicted, size=shape, mode="bilinear", align_corners=False)[0, 0]  # [h, w]
        rgb = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        colours = F.interpolate(rgb, size=shape, mode="area")[0].permute(1, 2, 0)  # [h, w, 3]
        facts: dict[str, Any] = {"kind": "2.5D", "depth": "metric" if self.metric else "relative"}
        if request.camera is None:
            half_fov, facts["field_of_view"] = math.radians(self.config.half_fov_deg), "assumed"
        else:
            half_fov, facts["field_of_view"] = request.camera.half_fov, "known"
        facts["half_fov_deg"] = round(math.degrees(half_fov), 2)
        if self.metric:
            depth = said
        else:
            facts["far_over_near"] = self.config.far_over_near  # assumed
            depth = from_relative(said, self.config.far_over_near)
        if not torch.isfinite(depth).all() or depth.min() <= 0:
            return LiftResult(request.key, "empty", "the model gives no depth", facts=facts)
        surface = sheet(depth.numpy(), colours.numpy(), half_fov, cut=self.config.cut)
        if surface is None:
            reason = "no two neighbouring pixels are near enough in depth to be joined"
            return LiftResult(request.key, "empty", reason, facts=facts)
        to_frame = into_frame(surface.vertices, request.camera)
        return LiftResult(request.key, "ok", surface=surface, to_frame=to_frame, facts=facts)


def licence_of(model: str) -> str:
    """The licence of a published model by its name; a folder of another name is taken for the small one's."""
    return "CC-BY-NC-4.0" if RESTRICTED.search(model) else "Apache-2.0"


def from_relative(said: Tensor, far_over_near: float) -> Tensor:
    """Depth [h, w] from 1 (nearest) to ``far_over_near`` of inverse depth [h, w] that is known up to scale and shift."""
    low, high = said.min(), said.max()
    nearness = (said - low) / (high - low) if high > low else torch.ones_like(said)
    return 1 / (1 / far_over_near + (1 - 1 / far_over_near) * nearness)


def sheet(depth: np.ndarray, colours: np.ndarray, half_fov: float, *, cut: float) -> Surface | None:
    """The mesh of a depth map [h, w] (along the optical axis) with colours [h, w, 3] of 0..255; None if it falls apart.

    Camera's own frame: at the origin, looking along -Z, +Y up. Two triangles per square of neighbours, facing the
    camera, none where the depths of the square differ by more than the share ``cut``.
    """
    h, w = depth.shape
    slope = math.tan(half_fov) / max(h, w)
    x = (np.arange(w) * 2 + 1 - w) * slope
    y = -(np.arange(h) * 2 + 1 - h) * slope
    points = np.stack([x[None] * depth, y[:, None] * depth, -depth], axis=-1).reshape(-1, 3)
    index = np.arange(h * w).reshape(h, w)
    corners = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], axis=-1).reshape(-1, 4)
    around = depth.reshape(-1)[corners]  # anticlockwise from the top left
    corners = corners[around.max(1) <= (1 + cut) * around.min(1)]
    if len(corners) == 0:
        return None
    faces = np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    used, faces = np.unique(faces, return_inverse=True)
    rgb = colours.reshape(-1, 3)[used].round().clip(0, 255).astype(np.uint8)
    return Surface(points[used].astype(np.float32), faces.reshape(-1, 3).astype(np.int32), rgb)


def into_frame(vertices: np.ndarray, camera: Camera | None) -> np.ndarray:
    """4 x 4 from the camera's own frame to the common one, vertices [V, 3] deciding the scale that no picture tells.

    Camera known: its place and direction, and the middle depth at the distance of its target. Unknown: the camera
    looks straight along -Z, and the sheet is centred and fills [-1, 1]^3.
    """
    matrix = np.eye(4)
    if camera is None:
        low, high = vertices.min(0), vertices.max(0)
        scale = 2 / float((high - low).max())
        matrix[:3, :3] *= scale
        matrix[:3, 3] = -scale * (low + high) / 2
        return matrix
    scale = math.dist(camera.eye, camera.target) / float(np.median(-vertices[:, 2]))
    matrix[:3, :3] = scale * camera.axes.T
    matrix[:3, 3] = camera.eye
    return matrix
