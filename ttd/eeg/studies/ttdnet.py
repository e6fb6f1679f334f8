"""Folders that the original TTD-net's preprocessing wrote: epochs of THINGS-EEG1 (.pth), windows of PhysioNet (.npy).

``sub-01_things_eeg.pth``: a dictionary with ``dataset``, a list of epochs (eeg [C, T], object, image_path, image_name,
subject), and ``time_len``, ``epoch_tmin``, ``epoch_tmax``. ``seg_000000.npy``: float32 [64, 512], one file per window.

What they lost cannot be restored: amplitudes (each epoch's channels, each window as a whole, are z-scored), the times and
sequences of the pictures, which trials were targets (they are among the epochs), and of windows also subject and run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from ttd.config import Config, UserError
from ttd.eeg import files, montage
from ttd.eeg.studies.interface import Epoched, EpochedRecording, Event, Recording, Study, foreign
from ttd.untrusted import read_npy, read_torch

CAPS = {63: montage.THINGS_EEG1_63}
"""By number of channels. Files with 64 come from the two subjects with 127 channels, of which the first 64 were taken,
whatever they were: those are refused."""
WINDOW_SFREQ, WINDOW = 160.0, (64, 512)
PER_RECORDING = 1000
"""Windows that count as one recording: their files know no runs, so they are split by number."""
_FOLDERS = re.compile(r"^(sub-\d+)_things_eeg\.pth$")


class TTDnetConfig(Config):
    """Where a folder of the original preprocessing lies, and the pictures of THINGS."""

    name: Literal["ttdnet"] = "ttdnet"
    root: Path
    """Holds sub-01_things_eeg.pth … or seg_000000.npy …"""
    images: Path | None = None
    """Holds the pictures as aardvark/aardvark_01b.jpg; root/images where null. Paths in the files are not followed."""
    subjects: list[str] | None = None
    """Labels without ``sub-``; all where null."""


class TTDnet(Study):
    """Epochs or windows of the original preprocessing, whichever the folder holds."""

    title = "TTDnet"
    citation = "TTD-net's preprocessing of Grootswagers et al., 2022, Sci Data 9:3, and of Schalk et al., 2004"
    licence = "CC0 (THINGS-EEG1), ODC-By 1.0 (PhysioNet)"
    download = (
        "written by preprocess_things_eeg.py and preprocess_edf_to_npy.py of https://github.com/P47Parzival/TTD-net"
    )
    pictures = "put the THINGS pictures under <concept>/<name>.jpg of study.images"

    def __init__(self, config: TTDnetConfig):
        self.config, self.location = config, config.root
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; {self.download}")

    def recordings(self) -> list[Recording]:
        """One per subject for epochs, one per thousand windows.

        Raises:
            UserError: there is neither, or both.
        """
        images = self.config.images or self.config.root / "images"
        found: list[Recording] = []
        for path in sorted(self.config.root.glob("sub-*.pth")):
            match = _FOLDERS.match(path.name)
            if match and (self.config.subjects is None or match[1][4:] in self.config.subjects):
                found.append(SubjectEpochs(path, match[1][4:], images))
        windows = sorted(self.config.root.glob("seg_*.npy"))
        if bool(found) == bool(windows):
            raise UserError(
                f"study.root={self.config.root}: must hold either sub-*_things_eeg.pth or seg_*.npy; {self.download}"
            )
        blocks = [windows[i : i + PER_RECORDING] for i in range(0, len(windows), PER_RECORDING)]
        return found or [Windows(block, f"{i:03d}") for i, block in enumerate(blocks)]


class SubjectEpochs(EpochedRecording):
    """Epochs of one subject, z-scored per channel. An event's onset is the place of its epoch in the file, in twice its
    length: neighbours overlapped when they were recorded, and nothing in the file tells by how much."""

    def __init__(self, path: Path, subject: str, images: Path):
        super().__init__(path, subject=subject)
        self._images = images

    def check(self) -> None:
        super().check()
        _ = self._content

    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        files.check_present(self.path)
        with foreign():
            found = read_torch(self.path)
        try:
            n_channels, n_times = int(found["n_channels"]), int(found["time_len"])
            if n_channels not in CAPS:
                raise ValueError(f"{n_channels} channels without names; only files with 63 are known by position")
            if not 0 < float(found["epoch_tmax"]) - float(found["epoch_tmin"]) < 100 or not found["dataset"]:
                raise ValueError("no epochs, or no window")
            for i, row in enumerate(found["dataset"]):
                eeg = row["eeg"]
                if not isinstance(eeg, np.ndarray) or eeg.shape != (n_channels, n_times) or eeg.dtype.kind != "f":
                    raise ValueError(f"epoch {i} is no array [{n_channels}, {n_times}] of numbers")
                if int(row["subject"]) != int(self.subject):
                    raise ValueError(f"epoch {i} belongs to subject {row['subject']}")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: not a file of TTD-net's preprocessing: {error}") from error
        return found

    def events(self) -> list[Event]:
        """The concept is the folder of the picture: ``object`` is "-1" for the 200 validation pictures."""
        found, spacing = [], 2 * (float(self._content["epoch_tmax"]) - float(self._content["epoch_tmin"]))
        for i, row in enumerate(self._content["dataset"]):
            place = PurePosixPath(str(row["image_path"]).replace("\\", "/"))
            concept, name = place.parent.name, place.name
            if not concept or concept == ".." or not name or row["object"] not in (concept, "-1"):
                raise UserError(f"{self.path}: epoch {i} shows {str(place)[-80:]!r} as {str(row['object'])[:40]!r}")
            path = self._images / concept / name
            found.append(Event(i * spacing - float(self._content["epoch_tmin"]), place.stem, concept, path, concept))
        return found

    def epoched(self) -> Epoched:
        """Stretched to 512 points by linear interpolation over both ends, so that the rate is 511.5 Hz for 999 ms; taken
        as the 512 Hz that were meant, which shifts the last sample by 1 ms."""
        tmin, tmax = float(self._content["epoch_tmin"]), float(self._content["epoch_tmax"])
        n_times, rows = int(self._content["time_len"]), (row["eeg"] for row in self._content["dataset"])
        names = list(CAPS[int(self._content["n_channels"])])
        return Epoched(names, round(n_times / (tmax - tmin), 3), tmin, n_times, "standard deviations", rows)


class Windows(EpochedRecording):
    """Consecutive windows of 3.2 s, z-scored as a whole; whose they are is not known."""

    def __init__(self, paths: list[Path], run: str):
        super().__init__(paths[0], subject="unknown", run=run)
        self._paths = paths

    @property
    def signal_files(self) -> list[Path]:
        return self._paths

    def check(self) -> None:
        for path in self._paths:
            self._read(path)

    def events(self) -> list[Event]:
        return []

    def epoched(self) -> Epoched:
        names = list(montage.EEGMMIDB_64)
        rows: Iterator[np.ndarray] = (self._read(path) for path in self._paths)
        return Epoched(names, WINDOW_SFREQ, 0.0, WINDOW[1], "standard deviations", rows)

    def _read(self, path: Path) -> np.ndarray:
        files.check_present(path)
        with foreign():
            found = read_npy(path)
        if not isinstance(found, np.ndarray) or found.shape != WINDOW or found.dtype != np.float32:
            raise UserError(f"{path}: not a window of TTD-net's preprocessing (float32 {list(WINDOW)})")
        return found
