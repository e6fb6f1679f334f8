"""``quarantine.json`` beside an index: samples that were found damaged, and are left out from the next start on."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from ttd.config import UserError, write_json
from ttd.data.members import DamageError

Damage = Literal["fail", "quarantine"]
"""What a failed read does: ``fail`` stops the run; ``quarantine`` stops it too, but first writes the sample into the list."""

NAME = "quarantine.json"


@contextlib.contextmanager
def on_damage(policy: Damage) -> Iterator[None]:
    """With ``quarantine``, the sample whose read fails in here is on the list of its folder when the error goes on."""
    try:
        yield
    except DamageError as error:
        folder = error.folder
        if policy == "fail" or folder is None:
            raise
        add_to_quarantine(folder, {error.key: error.reason})
        note = f"{error}; it is in {folder / NAME} now, the next start leaves it out"
        raise DamageError(note, folder=folder, key=error.key, reason=error.reason) from error


def guards_data(main: Callable[[Any], None]) -> Callable[[Any], None]:
    """Decorator of a command: ``on_damage(config.data.damage)`` holds for everything it reads."""

    @functools.wraps(main)
    def guarded(config: Any) -> None:
        with on_damage(config.data.damage):
            main(config)

    return guarded


def parse_quarantine(path: Path | str, content: str | bytes) -> dict[str, str]:
    """{key: what is wrong} as ``content`` lists them.

    Raises:
        UserError: it is not what ``add_to_quarantine`` writes.
    """
    try:
        return {str(entry["key"]): str(entry.get("reason", "")) for entry in json.loads(content)["samples"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `python shards/verify.py` again") from error


def read_quarantine(folder: Path) -> dict[str, str]:
    """{key: what is wrong} of the samples that are left out of ``folder``.

    Raises:
        UserError: the list is damaged.
    """
    path = folder / NAME
    return parse_quarantine(path, path.read_bytes()) if path.is_file() else {}


def add_to_quarantine(folder: Path, reasons: dict[str, str]) -> None:
    """Put samples {key: what is wrong} on the list of ``folder``; what stands there already keeps its reason."""
    listed = {**reasons, **read_quarantine(folder)}
    write_json(folder / NAME, {"samples": [{"key": key, "reason": why} for key, why in sorted(listed.items())]})
