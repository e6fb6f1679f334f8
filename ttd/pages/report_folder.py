"""A folder that appears whole or not at all: it is built aside and renamed into its place.

Only a folder that a report was written into is ever replaced, and what lies in it besides is carried over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttd.config import UserError, write_json

MARKER = "report.json"
"""Written into every report; a folder with it may be replaced."""

OURS = (MARKER, "index.html", "assets", "pictures", "meshes", "solids")
"""What a report consists of; anything else in its folder (outcome.json, logs of Slurm) is not ours."""


def problem(folder: Path) -> str | None:
    """Why ``folder`` cannot become a report, or None: it is new, empty, or a report."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())) or (folder / MARKER).is_file():
        return None
    outcome = folder / "outcome.json"  # of a run of the entry, also of versions whose report had no marker
    try:
        if json.loads(outcome.read_text())["entry"] == "report.py":
            return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return f"output_dir={folder}: holds something that is no report; give a new folder, or empty this one"


@contextmanager
def replaced(folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Yields an empty folder; after a body that ends well it stands in the place of ``folder``, with ``facts`` in it.

    Raises:
        UserError: there is something in ``folder`` that is no report.
    """
    folder = Path(folder).resolve()
    refused = problem(folder)
    if refused:
        raise UserError(refused)
    aside, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # a run was killed between the two renames below
    for left in (aside, old):
        if left.exists():
            if not (left / MARKER).is_file():
                raise UserError(f"{left}: in the way of the report; move it")
            shutil.rmtree(left)
    aside.mkdir(parents=True)
    write_json(aside / MARKER, facts)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside)
        raise
    if not folder.exists():
        aside.rename(folder)
        return
    for path in folder.iterdir():
        if path.name in OURS:
            continue
        if path.is_dir():
            shutil.copytree(path, aside / path.name, symlinks=True)
        else:
            shutil.copy2(path, aside / path.name)
    write_json(
        folder / MARKER, facts
    )  # an earlier version's, so that a crash below leaves nothing that nobody may remove
    folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old)
