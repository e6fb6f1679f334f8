"""The run folder: the resolved experiment, the environment it ran in, and the refusal to mix two experiments in one.

``config.yaml``, ``environment.json``, ``log.jsonl``, ``step-XXXXXXX/``, ``export/`` and ``outcome.json``.
"""

from __future__ import annotations

import copy
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from ttd.config import STYLE, Config, UserError, write_aside, write_json
from ttd.redaction import redact

FREE_TO_CHANGE = {
    "output_dir", "max_steps", "log_every", "checkpoint_every", "micro_batch_size", "compare_ranks_every", "watchdog_s",
    "schedule", "stale_after_s",
}  # fmt: skip
"""Last parts of keys that do not change what a step learns: length, intervals, the machine."""
FREE_SECTIONS = {"tracking", "samples"}
"""Sections that only look on."""
PACKAGES = (
    "ttd",
    "torch",
    "accelerate",
    "deepspeed",
    "diffusers",
    "transformers",
    "peft",
    "numpy",
    "mne",
    "webdataset",
)


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, (*path, str(key))).items()}
    return {path: tree}


def _read_today(tree: Any, schema: type[Config]) -> Any:
    """A configuration as today's schema completes it, without options that are gone; as it is where that fails."""
    known = copy.deepcopy(tree)
    try:
        schema.model_validate(known)
    except ValidationError as error:
        for gone in (problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"):
            place = known
            for part in gone[:-1]:
                place = place.get(part, place)  # the name of a union's variant is no key
            place.pop(gone[-1], None)
    try:
        return redact(schema.model_validate(known).model_dump(mode="json"))
    except ValidationError:
        return tree


def changed_keys(output_dir: Path, resolved: Config) -> list[str]:
    """Keys in which ``resolved`` differs from the experiment that ``output_dir`` holds, with both values.

    What an older version wrote is read with today's defaults: without an option that has been learnt since, all is as before.
    What it wrote of an option that is gone is a difference.
    """
    path = output_dir / "config.yaml"
    if not path.exists():
        return []
    written = yaml.safe_load(path.read_text())
    old, new = _flat(_read_today(written, type(resolved))), _flat(redact(resolved.model_dump(mode="json")))
    old = {key: value for key, value in _flat(written).items() if key not in new} | old
    return [
        f"{'.'.join(key)}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and key[-1] not in FREE_TO_CHANGE and not FREE_SECTIONS & set(key[:-1])
    ]


def check_resumable(output_dir: Path, resolved: Config) -> list[str]:
    """Why ``resolved`` may not go on in ``output_dir``; entries add it to their plan. Empty when it may."""
    changed = changed_keys(output_dir, resolved)
    if not changed:
        return []
    listed = "\n  ".join(changed)
    return [f"{output_dir} holds another experiment; choose another output_dir, or put back:\n  {listed}"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def environment() -> dict[str, Any]:
    """Versions, commit and hardware; neither arguments nor variables, which may hold secrets."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "commit": _commit(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
    }


def open_run_folder(output_dir: Path, resolved: Config, *, main: bool = True, **facts: Any) -> None:
    """Write ``config.yaml`` and ``environment.json`` (with ``facts``: world size, precision, ...).

    Raises:
        UserError: the folder holds another experiment; the message names the keys.
    """
    problems = check_resumable(output_dir, resolved)
    if problems:
        raise UserError(problems[0])
    if main:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "environment.json", {**environment(), **facts})
        text = yaml.safe_dump(redact(resolved.model_dump(mode="json")), **STYLE)
        write_aside(output_dir / "config.yaml", text)
