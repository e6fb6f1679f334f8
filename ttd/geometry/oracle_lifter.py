"""The upper bound: answers with the true solids of a simulated scene, and says that it is an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ttd.config import Config
from ttd.geometry.camera import Camera
from ttd.geometry.lifter import LifterInfo, LiftRequest, LiftResult, measured


class OracleConfig(Config):
    name: Literal["oracle"] = "oracle"

    def problems(self) -> list[str]:
        """Nothing can be missing."""
        return []


class OracleLifter:
    """Reads ``LiftRequest.truth`` and nothing else; what it scores is the most that the scores allow."""

    revision = "oracle"
    camera: Camera | None = None

    @classmethod
    def prepare(cls, config: OracleConfig, *, device: torch.device | str = "cpu") -> OracleLifter:
        """There is nothing to load."""
        return cls()

    def info(self) -> LifterInfo:
        """Name, version and domain."""
        return LifterInfo("oracle", "1", self.revision, "MIT", "simulated scenes of known solids", kind="oracle")

    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """The truth of every request; ``refused`` where none is known."""
        return [measured(self._lift, request) for request in requests]

    def close(self) -> None:
        """Nothing outlives it."""

    def _lift(self, request: LiftRequest) -> LiftResult:
        if request.truth is None:
            return LiftResult(request.key, "refused", "no true solids are known for this picture")
        return LiftResult(request.key, "ok", surface=request.truth)
