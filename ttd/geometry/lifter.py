"""The contract of lifting: what every image-to-3D backend is asked and what it answers.

A backend is anything with ``info()`` and ``lift(requests)``. An image from which no surface comes out is an answer with
the status ``empty``, not an exception: a run over thousands of pictures counts it and goes on.

Shapes: H, W pixels; V vertices, F faces. Coordinates are in the frame of ``ttd.geometry.camera``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from ttd.geometry.camera import Camera

Status = Literal["ok", "empty", "failed"]


@dataclass(frozen=True)
class Surface:
    """A coloured triangle mesh: ``vertices`` float32 [V, 3], ``faces`` int32 [F, 3], ``colours`` uint8 [V, 3]."""

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class LiftRequest:
    """One picture to lift; what is ``None`` is unknown, and a backend uses of it what it can."""

    key: str
    """The item's name; results are matched by it."""
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    seed: int = 0
    """For backends that draw; the same seed gives the same surface."""
    mask: np.ndarray | None = None
    """bool [H, W], True on the object."""
    depth: np.ndarray | None = None
    """float32 [H, W], distance from the camera in scene units."""
    description: dict[str, Any] | None = None
    """The scene in words and integers, from a describer."""
    camera: Camera | None = None
    """The camera of the picture, where it is known."""


@dataclass(frozen=True)
class LiftResult:
    """The answer to one request."""

    key: str
    status: Status
    reason: str = ""
    """Why the status is not ``ok``, in one sentence."""
    surface: Surface | None = None
    """The geometry when the status is ``ok``."""
    to_frame: np.ndarray = field(default_factory=lambda: np.eye(4))
    """4 x 4 matrix from the surface's coordinates to the common frame."""
    seconds: float = 0.0
    """Time spent on this item."""


@dataclass(frozen=True)
class LifterInfo:
    """What a backend is, for the provenance of everything made with it."""

    name: str
    version: str
    revision: str
    """Hash of the weights."""
    licence: str
    domain: str
    """The pictures that it was trained for; outside of it a result means nothing."""


class Lifter(Protocol):
    """An image-to-3D backend."""

    def info(self) -> LifterInfo:
        """Name, version, weights, licence and domain."""
        ...

    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """One result per request, in the order of the requests."""
        ...
