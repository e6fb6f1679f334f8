"""What a run folder left behind: configuration, environment, log, outcome. Reading only; a missing piece is None.

A folder that was never written is a run that was not run; a folder whose file is damaged is an error.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ttd.config import UserError
from ttd.engine.tracking import read_log

PROGRESS = (
    "step", "samples_seen", "lr", "grad_norm", "samples_per_second", "data_wait_s", "step_s", "gpu_peak_gib",
)  # fmt: skip
"""Keys of a log line that are no measured curve."""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); run its entry again") from error


@dataclass(frozen=True)
class RunFolder:
    """One finished or unfinished run."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any] | None
    outcome: dict[str, Any] | None
    log: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunFolder | None:
        """The run in ``folder``, or None if there is no such folder.

        Raises:
            UserError: a file of it cannot be read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            return None
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text()) if (folder / "config.yaml").is_file() else {}
        except yaml.YAMLError as error:
            raise UserError(f"{folder / 'config.yaml'}: not valid YAML ({error})") from error
        return cls(
            folder, config or {}, _json(folder / "environment.json"), _json(folder / "outcome.json"), read_log(folder)
        )

    def json(self, name: str) -> Any:
        """The content of a JSON file of the run, or None if there is none.

        Raises:
            UserError: it is damaged.
        """
        return _json(self.folder / name)

    @property
    def state(self) -> str:
        """``done``, or why not, in a few words."""
        if self.outcome is None:
            return "unfinished"
        status, message = self.outcome.get("status"), str(self.outcome.get("message", ""))
        return "done" if status == 0 else f"status {status}: {message.splitlines()[0] if message else ''}"

    @property
    def duration(self) -> str:
        """Time of the last start, as text."""
        seconds = (self.outcome or {}).get("seconds")
        if seconds is None:
            return "–"
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def curves(log: list[dict[str, Any]], event: str) -> dict[str, tuple[list[float], list[float]]]:
    """Every measured number in the lines of one ``event`` (train, validation) as (steps, values)."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in log:
        for name, value in line.items() if line["event"] == event else ():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and name not in PROGRESS and math.isfinite(value):
                steps, values = series.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(float(value))
    return series
