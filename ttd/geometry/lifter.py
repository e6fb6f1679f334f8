"""The contract of lifting: what every image-to-3D backend is asked and what it answers.

A backend is anything with ``info()`` and ``lift(requests)``. An image from which no surface comes out is an answer with
a status, not an exception: a run over thousands of pictures counts it and goes on. ``empty``: the backend sees no
surface; ``refused``: the picture is not of the kind that the backend can lift; ``failed``: something went wrong.

Shapes: H, W pixels; V vertices, F faces. Coordinates are in the frame of ``ttd.geometry.camera``.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ttd.geometry.camera import Camera

Status = Literal["ok", "empty", "refused", "failed"]
Kind = Literal["surface", "2.5D", "oracle"]
"""What comes out: a whole surface; the side that faces the camera alone; or the truth itself, as an upper bound."""


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
    """uint8 [H, W, 3], RGB; object generators also take [H, W, 4] with alpha."""
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
    truth: Surface | None = None
    """The true solids in the common frame, where a study knows them; read by the oracle alone."""


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
    glb: bytes | None = None
    """The file that a backend wrote itself (materials and all), to be kept byte for byte in place of an own export."""
    picture: np.ndarray | None = None
    """What was lifted in place of the request's image: the object alone, uint8 [S, S, 3]."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the backend found or assumed for this item, as JSON: field of view, way of cutting out, questions asked."""
    log: str = ""
    """What a worker process said on its error stream about this item."""
    seconds: float = 0.0
    """Time spent on this item."""
    peak_memory_mb: float | None = None
    """Highest memory: of the GPU during this item; without one, of the process since its start."""


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
    kind: Kind = "surface"
    """What its results are; tables and galleries say it where it is not a whole surface."""
    pretrained: bool = False
    """Whether the weights come from elsewhere; False: trained by this project, or no weights at all."""


class Lifter(Protocol):
    """An image-to-3D backend; each class has ``prepare(config, *, device)``, see ``ttd.geometry.lifters``."""

    revision: str
    """Hash of the weights or version of the worker: part of what a result depends on."""
    camera: Camera | None
    """The one camera of its pictures, if it was trained for one."""

    def info(self) -> LifterInfo:
        """Name, version, weights, licence and domain."""
        ...

    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """One result per request, in the order of the requests."""
        ...

    def close(self) -> None:
        """Let go of what would outlive the lifter, such as a process; nothing is asked of it afterwards."""
        ...


def measured(
    lift: Callable[[LiftRequest], LiftResult], request: LiftRequest, device: torch.device | str = "cpu"
) -> LiftResult:
    """The answer of ``lift`` with the seconds and the memory that it took."""
    device, start = torch.device(device), time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result = lift(request)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:  # kilobytes on Linux, bytes on macOS
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return replace(result, seconds=time.perf_counter() - start, peak_memory_mb=round(peak / 1e6, 1))
