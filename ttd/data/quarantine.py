"""``quarantine.json`` beside an index: samples that were found damaged, and are left out from the next start on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from ttd.config import UserError, write_json

Damage = Literal["fail", "quarantine"]
"""What a failed read does: ``fail`` stops the run; ``quarantine`` stops it too, but first writes the sample into the list."""

NAME = "quarantine.json"


def parse_quarantine(path: Path | str, content: str | bytes) -> set[str]:
    """The keys that ``content`` lists.

    Raises:
        UserError: it is not what ``add_to_quarantine`` writes.
    """
    try:
        return {str(entry["key"]) for entry in json.loads(content)["samples"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `python shards/verify.py` again") from error


def read_quarantine(folder: Path) -> set[str]:
    """Keys that are left out of ``folder``.

    Raises:
        UserError: the list is damaged.
    """
    path = folder / NAME
    return parse_quarantine(path, path.read_bytes()) if path.is_file() else set()


def add_to_quarantine(folder: Path, reasons: dict[str, str]) -> None:
    """Put samples {key: what is wrong} on the list of ``folder``; what stands there already keeps its reason."""
    read_quarantine(folder)  # a damaged list is an error, not an empty one
    path = folder / NAME
    old = (
        {entry["key"]: entry.get("reason", "") for entry in json.loads(path.read_text())["samples"]}
        if path.is_file()
        else {}
    )
    samples = [{"key": key, "reason": reason} for key, reason in sorted({**reasons, **old}.items())]
    write_json(path, {"samples": samples})
