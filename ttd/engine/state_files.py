"""The files of one state, ``step-0004000/``: written so that it is complete or absent, and verified before it counts.

``weights.safetensors`` holds trainable parameters and persistent buffers by name, ``moments.safetensors``
``exp_avg.<name>``, ``exp_avg_sq.<name>``, ``step.<name>`` and, where an average is kept, ``ema.<name>``, ``state.json`` progress,
the hashes of both and its own.
A state is written aside, hashed, fsynced and renamed; read back from the disk; only then are older ones removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ttd.config import UserError

log = logging.getLogger(__name__)

SCHEMA = 2
KEEP = 2  # states besides the best: should the newest be damaged later, there is one to go back to


@dataclass
class TrainState:
    """Where a run stands; all a resumed run needs besides weights and moments."""

    step: int = 0
    samples_seen: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Snapshot:
    """One state in the memory of the CPU; training cannot change it any more."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """What ``state.json`` says of it: the fields of ``TrainState``, the data's fingerprint, the names of buffers."""


def step_folder(output_dir: Path, step: int) -> Path:
    """The folder of the state after ``step`` updates."""
    return output_dir / f"step-{step:07d}"


def step_folders(output_dir: Path) -> list[Path]:
    """All states of a run, oldest first, verified or not."""
    return sorted(p for p in output_dir.glob("step-[0-9]*") if p.is_dir())


# Writing


def write_state(folder: Path, snapshot: Snapshot) -> None:
    """Write a state, verify it, and remove all others but the one before it and the best.

    Raises:
        ValueError: a tensor is not finite (nothing was written), or other bytes are read back than were written.
        OSError, SafetensorError: it cannot be written. In every case the older states are untouched.
    """
    tensors = {**snapshot.weights, **snapshot.moments}
    damaged = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if damaged:
        raise ValueError(f"not finite: {', '.join(damaged[:5])}")
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        _write_aside(aside, snapshot)
        _publish(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    problem = damage(folder)
    if problem:
        with suppress(OSError):
            _remove(folder)
        raise ValueError(f"read back after writing: {problem}")
    try:
        _remove_others(folder, best_step=snapshot.facts["best_step"])
    except OSError as error:
        log.warning("%s: saved, but older states cannot be removed: %s", folder, error)


def _write_aside(aside: Path, snapshot: Snapshot) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    files = {}
    for name, tensors in (("weights.safetensors", snapshot.weights), ("moments.safetensors", snapshot.moments)):
        save_file(tensors, aside / name)
        files[name] = {"sha256": _sha256(aside / name), "bytes": (aside / name).stat().st_size}
        _fsync(aside / name)
    (aside / "state.json").write_bytes(_state_json({"schema": SCHEMA, **snapshot.facts, "files": files}))
    _fsync(aside / "state.json")
    _fsync(aside)


def _publish(aside: Path, folder: Path) -> None:
    if folder.exists():  # a damaged state of the same step, already passed over
        _remove(folder)
    aside.rename(folder)
    _fsync(folder.parent)


def _remove_others(folder: Path, *, best_step: int | None) -> None:
    states = step_folders(folder.parent)
    upto = [p for p in states if p.name <= folder.name]  # a later one was damaged: this run went back behind it
    keep = {*upto[-KEEP:], step_folder(folder.parent, best_step or 0)}
    for other in states:
        if other not in keep:
            _remove(other)
    for rest in folder.parent.glob(".step-[0-9]*"):  # of a run that was killed while it wrote or removed
        shutil.rmtree(rest)


def _remove(folder: Path) -> None:
    """Remove a state so that half of it is never seen."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def _fsync(path: Path) -> None:
    """Wait until the disk has it, and forget the cached pages, so that whoever reads it next reads the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if path.is_file() and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _state_json(content: dict[str, Any]) -> bytes:
    """``content`` with its own hash, byte for byte the same for the same content."""
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Reading


def damage(folder: Path) -> str | None:
    """What is wrong with a state, or None: every file is there, whole, and hashes to what was written."""
    try:
        raw = (folder / "state.json").read_bytes()
        content = json.loads(raw)
        digest = content.pop("sha256", None)
        if content["schema"] < SCHEMA and digest is None:
            return None  # of an older version: refused by read_state, not passed over
        if raw != _state_json(content):
            return "state.json is not what was written"
        if content["schema"] != SCHEMA:
            return None
        for name, facts in content["files"].items():
            if (folder / name).stat().st_size != facts["bytes"] or _sha256(folder / name) != facts["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"unreadable ({error})"
    return None


def read_state(folder: Path) -> tuple[TrainState, str]:
    """Progress and data fingerprint of a state.

    Raises:
        UserError: it was written with another schema.
    """
    content = json.loads((folder / "state.json").read_bytes())
    if content["schema"] != SCHEMA:
        raise UserError(
            f"{folder}: written with checkpoint schema {content['schema']}, this version reads {SCHEMA}; finish the run "
            "with the version that wrote it, then start from its export/"
        )
    return TrainState(**{key: content[key] for key in TrainState.__dataclass_fields__}), content["fingerprint"]
