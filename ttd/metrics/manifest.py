"""A generation run as evaluation and report read it: its manifest, one JSON line per picture, and the pictures.

An item with a ``control`` was not made from the EEG of the picture it names.

Letters: N pictures of height H and width W.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ttd.config import UserError

CONTROL_NAMES = {
    "shuffled": "wrong EEG",
    "noise": "noise EEG",
    "pre_stimulus": "pre-stimulus window",
    "unconditional": "unconditional generation",
}
"""Controls that a generation run may hold, as tables and pages name them."""

FIELDS = (
    "key", "subject", "image_id", "image_sha256", "path", "seed", "n_repetitions", "candidates", "control", "shown_path",
)  # fmt: skip


def read_lines(path: Path, fields: Sequence[str], *, remedy: str) -> list[dict[str, Any]]:
    """The records of a file with one JSON object per line.

    Raises:
        UserError: a line is no JSON object, or lacks one of ``fields``; the message ends in the ``remedy``.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            missing = [name for name in fields if name not in record]
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); {remedy}") from error
        if missing:
            raise UserError(f"{path}, line {number}: lacks {', '.join(missing)}; {remedy}")
        records.append(record)
    return records


def read_manifest(folder: Path, *, all_samples: bool = False) -> list[dict[str, Any]]:
    """The items of a generation run, ``path`` and ``shown_path`` made absolute.

    With ``all_samples`` an item for which several pictures were kept occurs once for each of them.

    Raises:
        UserError: no manifest, a line that is not an item, a picture that is not there.
    """
    manifest = Path(folder) / "manifest.jsonl"
    if not manifest.is_file():
        raise UserError(f"{manifest}: not there; run ttd/generate.py first")
    items = []
    for number, item in enumerate(read_lines(manifest, FIELDS, remedy="run ttd/generate.py again"), start=1):
        paths = [item["path"], *(item.get("more_paths", []) if all_samples else [])]
        for path in paths:
            sample = item | {
                "path": Path(folder) / path,
                "shown_path": Path(folder) / item["shown_path"],
                "samples": len(paths),
            }
            for name in ("path", "shown_path"):
                if not sample[name].is_file():
                    raise UserError(f"{manifest}, line {number}: {name} {sample[name]} is not there")
            items.append(sample)
    if not items:
        raise UserError(f"{manifest}: holds no item; generate again")
    return items


def read_pictures(paths: list[Path]) -> np.ndarray:
    """RGB pictures of one size, float32 [N, H, W, 3] in [0, 1].

    Raises:
        UserError: a file that is no picture, or sizes that differ.
    """
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pictures.append(np.asarray(image.convert("RGB"), np.float32) / 255)
        except OSError as error:
            raise UserError(f"{path}: cannot be read as a picture ({error})") from error
        if pictures[-1].shape != pictures[0].shape:
            raise UserError(f"{path}: size {pictures[-1].shape[:2]} differs from {pictures[0].shape[:2]} of {paths[0]}")
    return np.stack(pictures)
