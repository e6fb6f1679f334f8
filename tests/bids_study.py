"""A tiny BIDS study, written here by pybv, and the way to the real recordings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pybv
import pytest
from PIL import Image

CH_NAMES = ["Fp1", "Fz", "C3", "Cz", "C4", "Pz", "Oz"]


def write_run(folder: Path, stem: str, data_uv: np.ndarray, sfreq: float, rows: list[dict]) -> None:
    """One BrainVision recording [C, T] in int16 steps of 0.1 µV, with its channels and events."""
    folder.mkdir(parents=True, exist_ok=True)
    pybv.write_brainvision(
        data=data_uv * 1e-6,
        sfreq=sfreq,
        ch_names=CH_NAMES,
        fname_base=f"{stem}_eeg",
        folder_out=folder,
        resolution=0.1,
        unit="µV",
        fmt="binary_int16",
        overwrite=True,
    )
    channels = ["name\ttype\tunits", *(f"{name}\tEEG\tµV" for name in CH_NAMES)]
    (folder / f"{stem}_channels.tsv").write_text("\n".join(channels) + "\n")
    columns = list(rows[0])
    table = ["\t".join(columns), *("\t".join(str(row[c]) for c in columns) for row in rows)]
    (folder / f"{stem}_events.tsv").write_text("\ufeff" + "\n".join(table) + "\n", encoding="utf-8")
    (folder / f"{stem}_eeg.json").write_text(json.dumps({"TaskName": "things", "SamplingFrequency": sfreq}))


def write_study(root: Path, n_subjects: int = 2, sfreq: float = 250.0) -> Path:
    """Per subject three runs (train, validation, test); 4, 2, 2 pictures shown 2, 2, 3 times, one every 0.8 s."""
    root.mkdir(parents=True)
    facts = {"Name": "Tiny", "BIDSVersion": "1.9.0", "License": "CC0", "DatasetType": "raw", "Simulated": True}
    (root / "dataset_description.json").write_text(json.dumps(facts))
    rng, number = np.random.default_rng(0), 0
    for subject in range(1, n_subjects + 1):
        number = 0
        for run, (part, n_images, n_rep) in enumerate([("train", 4, 2), ("validation", 2, 2), ("test", 2, 3)], start=1):
            rows = []
            for trial in range(n_images * n_rep):
                name = f"{part}-{trial % n_images}"
                picture = root / "stimuli" / "solid" / f"{name}.png"
                if not picture.exists():
                    number += 1
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((8, 8, 3), number * 20, np.uint8)).save(picture)
                row = {
                    "onset": 2 + trial * 0.8,
                    "duration": 0.1,
                    "trial_type": "picture",
                    "stim_file": f"solid/{name}.png",
                }
                rows.append({**row, "image_id": name, "concept": "solid", "part": part})
            rows.append({**dict.fromkeys(rows[0], "n/a"), "onset": 1.0, "duration": 0, "trial_type": "pause"})
            data = rng.normal(0, 10, (len(CH_NAMES), int((4 + n_images * n_rep * 0.8) * sfreq)))
            stem = f"sub-{subject:02d}_task-things_run-{run:02d}"
            write_run(root / f"sub-{subject:02d}" / "eeg", stem, data, sfreq, rows)
    return root


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    """Root of a BIDS study of 2 subjects, 7 channels at 250 Hz."""
    return write_study(tmp_path / "study")


@pytest.fixture(scope="session")
def write_bids() -> Callable[..., Path]:
    """``write_study(root, n_subjects, sfreq)``."""
    return write_study


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Path of a folder of real recordings, or a skip that names it."""

    def find(name: str) -> Path:
        default = Path(__file__).parents[1] / "../shared/data"
        folder = Path(os.environ.get("TTD_REAL_DATA", default)) / name
        if not folder.exists():
            pytest.skip(f"real data are missing: {folder} (set TTD_REAL_DATA)")
        return folder

    return find
