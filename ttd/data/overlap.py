"""What THINGS-EEG1 and THINGS-EEG2 have in common, and the lists of concepts that follow from it.

Both studies show pictures of the same 1,854 concepts (Hebart et al., 2019, PLoS ONE 14:e0223792). All 200 test concepts
of THINGS-EEG2 and most of its test pictures occur in THINGS-EEG1: a model trained there without leaving them out has seen
what it is tested on. ``concept_lists`` are the concepts to leave out; they are checked in as ``configs/splits/*.json``
and named by ``parts.unseen`` of the shards' configuration.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ttd.config import Config, UserError, write_json

REPETITIONS = {"THINGS-EEG1 main": 1, "THINGS-EEG1 validation": 12}
"""How often each subject of THINGS-EEG1 sees a picture."""


class LeakTableConfig(Config):
    """Lists of the pictures that both studies show, and where the lists of concepts go."""

    lists: Path
    """Holds things_eeg1_images.tsv and things_eeg1_validation200.tsv (columns object, stimname), and
    things_eeg2_stimulus_alignment.csv (columns split, image_path)."""
    splits: Path | None = None
    """Receives the lists of concepts, as configs/splits; nothing is written where null."""


class Overlap(NamedTuple):
    """One line of the table: how much of a list of THINGS-EEG2 is found in one part of THINGS-EEG1."""

    what: str
    n: int
    within: str
    shared: int
    trials: int
    """Presentations of each subject of THINGS-EEG1 that show one of the shared."""


def read_concepts(path: Path) -> tuple[str, ...]:
    """The concepts of a list of ``configs/splits``.

    Raises:
        ValueError: there is no such list.
    """
    try:
        concepts = json.loads(path.read_text())["concepts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of concepts, as configs/splits holds them") from error
    if not isinstance(concepts, list) or not all(isinstance(concept, str) for concept in concepts):
        raise ValueError(f"{path}: concepts must be a list of names")
    return tuple(concepts)


def read_lists(folder: Path) -> dict[str, dict[str, str]]:
    """{part of a study: {picture: concept}} from the lists named in ``LeakTableConfig``.

    Raises:
        UserError: a list is missing or has other columns.
    """
    found: dict[str, dict[str, str]] = {}
    for part, name in (("main", "things_eeg1_images.tsv"), ("validation", "things_eeg1_validation200.tsv")):
        rows = _rows(folder / name, "\t", ("object", "stimname"))
        found[f"THINGS-EEG1 {part}"] = {row["stimname"]: row["object"] for row in rows}
    for row in _rows(folder / "things_eeg2_stimulus_alignment.csv", ",", ("split", "image_path")):
        path = PurePosixPath(row["image_path"])
        part = {"seen": "THINGS-EEG2 training", "unseen": "THINGS-EEG2 test"}[row["split"]]
        found.setdefault(part, {})[path.name] = path.parent.name.partition("_")[2]  # "00001_aircraft_carrier"
    return found


def leak_table(lists: dict[str, dict[str, str]]) -> list[Overlap]:
    """Pictures and concepts of THINGS-EEG2 that THINGS-EEG1 shows as well."""
    table = []
    for kind in ("pictures", "concepts"):
        for part in ("THINGS-EEG2 training", "THINGS-EEG2 test"):
            theirs = set(lists[part]) if kind == "pictures" else set(lists[part].values())
            for within, n_repetitions in REPETITIONS.items():
                shown = [name if kind == "pictures" else concept for name, concept in lists[within].items()]
                trials = n_repetitions * sum(value in theirs for value in shown)
                table.append(Overlap(f"{part} {kind}", len(theirs), within, len(theirs & set(shown)), trials))
    return table


def concept_lists(lists: dict[str, dict[str, str]]) -> dict[str, tuple[str, list[str]]]:
    """{name of the list: (what it is, concepts)} for tests on one study or the other, or on both."""
    eeg1 = set(lists["THINGS-EEG1 validation"].values())
    eeg2 = set(lists["THINGS-EEG2 test"].values())
    return {
        "things_eeg1": ("concepts of the 200 validation pictures of THINGS-EEG1", sorted(eeg1)),
        "things_eeg2": ("the 200 test concepts of THINGS-EEG2", sorted(eeg2)),
        "things_eeg1_eeg2": ("concepts that either study tests on", sorted(eeg1 | eeg2)),
    }


def write_lists(lists: dict[str, dict[str, str]], folder: Path) -> None:
    """Write the lists of concepts as JSON files."""
    for name, (about, concepts) in concept_lists(lists).items():
        write_json(folder / f"{name}.json", {"about": about, "concepts": concepts})


def _rows(path: Path, delimiter: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such list; give the folder that holds it as lists=FOLDER")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}")
    return rows
