"""Lifters that cannot share this environment (TRELLIS.2, SAM 3D Objects, TripoSR): a worker process lifts, we keep its file.

What a worker is sent and must answer: docs/external_lifters.md. Pictures and meshes travel as files, the pipe carries
their names. The worker's GLB is kept byte for byte; a copy of its geometry is read for scores and views.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field, ValidationError, field_validator

from ttd.config import Config, UserError
from ttd.geometry.background import isolate
from ttd.geometry.camera import Camera
from ttd.geometry.licences import require
from ttd.geometry.lifter import LifterInfo, LiftRequest, LiftResult
from ttd.geometry.meshes import from_glb
from ttd.geometry.surfaces import surface_of
from ttd.geometry.worker import Worker, WorkerError

PROTOCOL, VERSION = "ttd-lift", 1
MOST_FAILED_STARTS = 3  # in a row; then the command or its machine is broken, and waiting for each item helps nobody
OBJECT_SIZE = 512  # pixels of a cut-out; what TripoSR, TRELLIS.2 and SAM 3D resize to is not larger than 1024


class ExternalConfig(Config):
    name: Literal["external"] = "external"
    command: list[str] = Field(min_length=1)
    """Program and arguments of the worker, such as [/envs/trellis2/bin/python, workers/trellis2.py]."""
    accept_license: str | None = None
    """Name of a restricted licence that you keep to, spelt as the worker spells it."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """How long loading may take before the worker first speaks."""
    timeout_s: float = Field(default=600.0, gt=0)
    """How long one item may take."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Pause before a failed worker is started again; doubled from failure to failure, at most 60 s."""

    def problems(self) -> list[str]:
        """What is missing, found without starting the worker."""
        program = self.command[0]
        if shutil.which(program):
            return []
        return [f"lifter.command: {program} is not a program here; give the Python of the worker's own environment"]


class Hello(BaseModel):
    """What a worker says first."""

    protocol: Literal["ttd-lift"]
    version: Literal[1]
    name: str
    revision: str
    licence: str
    domain: str = "single objects"
    wants: Literal["object", "picture"] = "object"
    """object: the object cut out, with transparency; picture: the whole picture as it is."""
    to_frame: list[list[float]] = Field(default_factory=lambda: np.eye(4).tolist())
    """4 x 4 from the coordinates of its files to the common frame; glTF's own convention needs none."""

    @field_validator("to_frame")
    @classmethod
    def _four_by_four(cls, value: list[list[float]]) -> list[list[float]]:
        if [len(row) for row in value] != [4, 4, 4, 4] or value[3] != [0, 0, 0, 1]:
            raise ValueError("must be 4 rows of 4 numbers, the last 0 0 0 1")
        return value


class ExternalLifter:
    """Hands every picture to a worker; an item that the worker fails on fails alone."""

    camera: Camera | None = None

    def __init__(self, config: ExternalConfig, *, device: torch.device | str = "cpu"):
        self.config = config
        self.worker = Worker(
            config.command,
            start_timeout_s=config.start_timeout_s,
            timeout_s=config.timeout_s,
            backoff_s=config.backoff_s,
            device=device,
        )
        self.hello: Hello | None = None
        self.asked = 0

    @classmethod
    def prepare(cls, config: ExternalConfig, *, device: torch.device | str = "cpu") -> ExternalLifter:
        """Start the worker and hear what it is.

        Raises:
            UserError: it does not start or speaks another protocol, or its licence is restricted and not accepted.
        """
        lifter = cls(config, device=device)
        try:
            hello = lifter._start()
        except WorkerError as error:
            log = lifter.worker.log().strip()
            said = f"; it said:\n{log}" if log else ""
            raise UserError(f"lifter.command: {' '.join(config.command)}: {error}{said}") from error
        try:
            require(hello.licence, config.accept_license, hello.name)
        except UserError:
            lifter.close()
            raise
        return lifter

    @property
    def revision(self) -> str:
        """Name and version of what the worker runs."""
        assert self.hello is not None
        return f"{self.hello.name}@{self.hello.revision}"

    def info(self) -> LifterInfo:
        """As the worker states it."""
        assert self.hello is not None
        h = self.hello
        return LifterInfo(f"external:{h.name}", str(h.version), h.revision, h.licence, h.domain, pretrained=True)

    def lift(self, requests: Sequence[LiftRequest]) -> list[LiftResult]:
        """One result per request, one after the other."""
        return [self._lift(request) for request in requests]

    def close(self) -> None:
        """Stop the worker; it also stops with this process."""
        self.worker.stop()

    def _start(self) -> Hello:
        """Start the worker and check its first words.

        Raises:
            WorkerError: it does not start, or is not what it was.
        """
        said = self.worker.start()
        try:
            hello = Hello.model_validate(said)
        except ValidationError as error:
            self.close()
            what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise WorkerError(f"the worker does not speak {PROTOCOL} {VERSION} ({what})") from error
        if self.hello is not None and hello != self.hello:
            self.close()
            raise WorkerError(f"the worker came back as {hello.name}@{hello.revision} instead of {self.revision}")
        self.hello = hello
        return hello

    def _lift(self, request: LiftRequest) -> LiftResult:
        start, picture = time.perf_counter(), None
        facts: dict[str, Any] = {}
        self.worker.log()  # what it said between two items belongs to neither
        folder = Path(tempfile.mkdtemp(prefix="ttd-lift-"))
        try:
            if self.worker.failed_starts >= MOST_FAILED_STARTS:
                raise WorkerError(f"given up after the worker failed to start {MOST_FAILED_STARTS} times")
            hello = self.hello if self.worker.running and self.hello else self._start()
            image = request.image
            if hello.wants == "object":
                cut = isolate(request, size=OBJECT_SIZE)
                image, picture, facts = cut.rgba, cut.on(255), {"background": cut.method}
            Image.fromarray(image).save(folder / "image.png")
            self.asked += 1
            question = {
                "id": self.asked,
                "key": request.key,
                "image": str(folder / "image.png"),
                "seed": request.seed % 2**31,  # more than numpy's and other generators take is of no use
                "description": request.description,
                "output": str(folder / "mesh.glb"),
            }
            answer = self.worker.ask(question)
            fields = self._read(answer, folder / "mesh.glb", hello)
        except (WorkerError, ValueError) as error:
            fields = {"status": "failed", "reason": str(error)}
        finally:
            shutil.rmtree(folder)
        seconds = time.perf_counter() - start
        return LiftResult(
            request.key, **fields, picture=picture, facts=facts, log=self.worker.log(), seconds=seconds
        )  # fmt: skip

    def _read(self, answer: dict[str, Any], path: Path, hello: Hello) -> dict[str, Any]:
        """The fields of a result from an answer and the file that it speaks of.

        Raises:
            ValueError: the answer or the file is none.
        """
        status, peak = answer.get("status"), answer.get("peak_memory_mb")
        peak = float(peak) if isinstance(peak, int | float) else None
        if status in ("empty", "refused", "failed"):
            reason = str(answer.get("reason") or "the worker gave no reason")
            return {"status": status, "reason": reason, "peak_memory_mb": peak}
        if status != "ok":
            raise ValueError(f"the worker answered with the status {status!r}")
        if not path.is_file() or path.is_symlink():
            raise ValueError("the worker said ok and wrote no file")
        glb = path.read_bytes()
        surface = surface_of(from_glb(glb))
        if len(surface.faces) == 0:
            return {"status": "empty", "reason": "the worker's mesh has no faces", "peak_memory_mb": peak}
        if not np.isfinite(surface.vertices).all():
            raise ValueError("the worker's mesh holds vertices that are not finite")
        to_frame = np.array(hello.to_frame)
        return {"status": "ok", "surface": surface, "glb": glb, "to_frame": to_frame, "peak_memory_mb": peak}
