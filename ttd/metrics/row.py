"""One figure with all that belongs to it: interval, chance level, controls and the labels that it may be compared by."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttd.config import UserError
from ttd.metrics.catalogue import METRICS

MEAN = "mean"  # the subject of a row that averages over subjects


@dataclass(frozen=True)
class Row:
    """One figure. ``low`` and ``high`` bound 95 % of a bootstrap over pictures, ``concept_low`` and ``concept_high`` over
    concepts; ``control`` pairs predictions with wrong pictures; ``control_generated`` was made from wrong EEG;
    ``chance_low``, ``chance_high`` and ``p`` are those of ``rows.permutation_test``, in the mean over subjects; ``sd`` is
    over training seeds."""

    metric: str
    model: str
    subject: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    control: float
    control_low: float | None
    control_high: float | None
    n: int
    labels: dict[str, Any] = field(default_factory=dict)
    control_generated: float | None = None
    control_generated_low: float | None = None
    control_generated_high: float | None = None
    chance_low: float | None = None
    chance_high: float | None = None
    p: float | None = None
    concept_low: float | None = None
    concept_high: float | None = None
    sd: float | None = None

    def __post_init__(self) -> None:
        assert self.metric in METRICS, f"{self.metric} has no entry in METRICS"

    @property
    def title(self) -> str:
        """The printed name, with the number of ways where the metric has one."""
        return METRICS[self.metric].title.format(
            k=self.labels.get("gallery", "?"), features=self.labels.get("features", "?")
        )


def read_rows(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows and the rest of a ``metrics.json``.

    Raises:
        UserError: the file is missing or is not one of ours.
    """
    try:
        content = json.loads(Path(path).read_text())
        return [Row(**row) for row in content.pop("rows")], content
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; run ttd/eval.py first") from error
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        raise UserError(f"{path}: not a metrics.json of this version ({error}); run ttd/eval.py again") from error
