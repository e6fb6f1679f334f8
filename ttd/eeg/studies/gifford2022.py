"""THINGS-EEG2 (Gifford et al., 2022, NeuroImage 264:119754): ten subjects, four sessions, 5 pictures per second.

Raw files and both preprocessed ones are told apart by what is in them, for they share their names; all are pickles and
read without running them. Raw recordings go through the chain's own preprocessing, or through the published one.

Shapes: N pictures, R repetitions, C channels, T time points.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ttd.config import Config, UserError
from ttd.eeg import files, montage
from ttd.eeg.studies.gifford2022_raw import PublishedRecording, RawFile, RawRecording
from ttd.eeg.studies.interface import Epoched, EpochedRecording, Event, Recording, Study, foreign
from ttd.untrusted import RefusedError, read_npy

DROPPED = 50
"""Samples cut off the 250 Hz files at the front (-0.2 to 0 s), which their ``times`` still count."""
FOLDERS = {"training": "training_images", "test": "test_images"}
NAME = re.compile(r"[\w.+'-]+")


class Gifford2022Config(Config):
    """Where the recordings of THINGS-EEG2 and its pictures lie."""

    name: Literal["gifford2022"] = "gifford2022"
    root: Path
    """Holds sub-01/ … with raw (ses-01/raw_eeg_training.npy) or preprocessed (preprocessed_eeg_training.npy) files."""
    images: Path | None = None
    """Holds training_images/, test_images/ and image_metadata.npy; root/images where null."""
    subjects: list[str] | None = None
    """Labels without ``sub-``; all where null."""
    recipe: Literal["chain", "published"] = "chain"
    """What raw recordings go through. ``chain``: the ``preprocessing`` and ``epochs`` of this configuration.
    ``published``: epochs at 250 Hz from 0 to 1 s after the onset, whitened per session, as NICE and ATM use them."""
    validation: tuple[str, ...] = ()
    """Training concepts that form the validation part."""


class Picture(NamedTuple):
    """One stimulus: ``index`` i of the image list is code i + 1 of the recordings."""

    image_id: str
    concept: str
    path: Path
    part: str


class Gifford2022(Study):
    """The recordings of THINGS-EEG2, raw or preprocessed, split as the study itself is."""

    title = "Gifford2022"
    citation = "Gifford, Dwivedi, Roig and Cichy, 2022, NeuroImage 264:119754"
    licence = "CC-BY-4.0 (recordings); pictures under the terms of THINGS, for research"
    download = (
        "raw recordings: https://plus.figshare.com/articles/dataset/18470912; preprocessed recordings: https://osf.io/anp5v; "
        "pictures and image_metadata.npy: https://osf.io/y63gw"
    )
    pictures = "unpack training_images.zip and test_images.zip of https://osf.io/y63gw into study.images"

    def __init__(self, config: Gifford2022Config):
        self.config, self.location = config, config.root
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; get it: {self.download}")
        self.images = config.images or config.root / "images"
        self._files: dict[Path, RawFile] = {}

    @functools.cached_property
    def stimuli(self) -> dict[str, list[Picture]]:
        """The pictures of ``training`` and ``test`` in the order of the recordings' codes.

        Raises:
            UserError: there is no image list, or a concept for validation is not in it.
        """
        listed = _listed(self.images)
        known = {folder.partition("_")[2] for folder, _ in listed["training"]}
        unknown = sorted(set(self.config.validation) - known)
        if unknown:
            raise UserError(f"study.validation: {', '.join(unknown)}: no training concept of {self.images}")
        found: dict[str, list[Picture]] = {}
        for kind, rows in listed.items():
            found[kind] = []
            for folder, name in rows:
                concept = folder.partition("_")[2]
                part = "test" if kind == "test" else "validation" if concept in self.config.validation else "train"
                path = self.images / FOLDERS[kind] / folder / name
                found[kind].append(Picture(name.rpartition(".")[0], concept, path, part))
        return found

    def recordings(self) -> list[Recording]:
        """One per file: its session where it is raw, its run ``training`` or ``test``.

        Raises:
            UserError: there is none, files of a chosen subject are absent, or a folder holds raw and preprocessed files.
        """
        if absent := self._absent():
            raise UserError("\n".join(absent))
        found: list[Recording] = []
        for path in sorted([*self.config.root.glob("sub-*/*.npy"), *self.config.root.glob("sub-*/ses-*/*.npy")]):
            place = path.relative_to(self.config.root).parts
            subject, session = place[0][4:], place[1][4:] if len(place) == 3 else ""
            kind = next((kind for kind in FOLDERS if kind in path.stem), None)
            if kind and (self.config.subjects is None or subject in self.config.subjects):
                found.append(self._recording(path, subject, session, kind))
        raw = [recording for recording in found if not isinstance(recording, StoredRecording)]
        if not found or (raw and len(raw) < len(found)):
            what = "raw and preprocessed files; name the folder of one kind" if raw else f"no files; {self.download}"
            raise UserError(f"study.root={self.config.root}: holds {what}")
        return found

    def _absent(self) -> list[str]:
        """Everything that is not there: the pictures' list, and of each folder with files the other one of its two."""
        problems, chosen = [], self.config.subjects
        try:
            self.stimuli  # noqa: B018  read once, here
        except UserError as error:
            problems.append(str(error))
        paths = [*self.config.root.glob("sub-*/*.npy"), *self.config.root.glob("sub-*/ses-*/*.npy")]
        kinds: dict[Path, dict[str, Path]] = {}
        for path in sorted(paths):
            subject = path.relative_to(self.config.root).parts[0][4:]
            if (kind := next((kind for kind in FOLDERS if kind in path.stem), None)) and subject in (
                chosen or [subject]
            ):
                kinds.setdefault(path.parent, {})[kind] = path
        for folder, there in kinds.items():
            for kind in sorted(set(FOLDERS) - set(there)):
                (other, path), *_ = there.items()
                problems.append(f"{folder / path.name.replace(other, kind)}: is not there; {self.download}")
        known = {folder.relative_to(self.config.root).parts[0][4:] for folder in kinds}
        lacking = sorted(set(chosen or []) - known) if known else []
        if lacking:
            problems.append(
                f"study.subjects: {self.config.root} holds no files of {', '.join(lacking)}; {self.download}"
            )
        return problems

    def _recording(self, path: Path, subject: str, session: str, kind: str) -> Recording:
        try:
            content = read_npy(path)
        except RefusedError:  # the recording's own check says why
            content = None
        stimuli = self.stimuli[kind]
        if not isinstance(content, dict) or "raw_eeg_data" not in content:
            return StoredRecording(path, subject, session, kind, stimuli)
        file = self._files.setdefault(path, RawFile(path, stimuli))
        if self.config.recipe == "chain":
            return RawRecording(file, subject, session, kind)
        place = path.with_name(path.name.replace("test", "training"))
        training = self._files.setdefault(place, RawFile(place, self.stimuli["training"]))
        return PublishedRecording(file, subject, session, kind, training)


class StoredRecording(EpochedRecording):
    """``preprocessed_eeg_*.npy``: all epochs of a subject's training or test pictures, [N, R, C, T].

    Both published kinds are whitened per session. The file keeps no times: the onsets of its events are places in it.
    """

    def __init__(self, path: Path, subject: str, session: str, kind: str, stimuli: list[Picture]):
        super().__init__(path, subject=subject, session=session, run=kind)
        self._stimuli = stimuli

    def check(self) -> None:
        super().check()
        self._read()

    def events(self) -> list[Event]:
        """Picture by picture, repetition by repetition."""
        eeg, _, times = self._read()
        n_repetitions, step = eeg.shape[1], times[-1] - times[0] + 1.0
        return [
            Event(
                onset_s=float(step * (i * n_repetitions + r) - times[0]),
                image_id=picture.image_id,
                concept=picture.concept,
                image_path=picture.path,
                label=picture.concept,
                part=picture.part,
            )
            for i, picture in enumerate(self._stimuli)
            for r in range(n_repetitions)
        ]

    def epoched(self) -> Epoched:
        eeg, ch_names, times = self._read()
        sfreq = round((len(times) - 1) / float(times[-1] - times[0]), 3)
        rows = (np.asarray(eeg[i, r]) for i in range(len(eeg)) for r in range(eeg.shape[1]))
        return Epoched(ch_names, sfreq, float(round(times[0], 6)), len(times), "whitened", rows)

    def _read(self) -> tuple[np.ndarray, list[str], np.ndarray]:
        """(epochs [N, R, C, T], electrodes [C], seconds after the onset [T])."""
        files.check_npy(self.path)
        with foreign():
            content = read_npy(self.path)
        try:
            eeg, ch_names, times = _checked(content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: not a preprocessed file of THINGS-EEG2: {error}") from error
        if len(eeg) != len(self._stimuli):
            raise UserError(f"{self.path}: holds {len(eeg):,} pictures, the image list {len(self._stimuli):,}")
        return eeg, ch_names, times


def _checked(content: Any) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The three parts of a preprocessed file, if they fit together."""
    if not isinstance(content, dict):
        raise ValueError("it holds no dictionary")
    eeg, times = content["preprocessed_eeg_data"], np.asarray(content["times"])
    names = [montage.normalise_name(str(name)) for name in content["ch_names"]]
    if not isinstance(eeg, np.ndarray) or eeg.ndim != 4 or eeg.dtype.str not in ("<f4", "<f8") or not eeg.size:
        raise ValueError("preprocessed_eeg_data is no array [pictures, repetitions, channels, times] of numbers")
    if eeg.shape[2] != len(names) or sorted(names) not in (
        sorted(montage.THINGS_EEG2_17),
        sorted(montage.THINGS_EEG2_63),
    ):
        raise ValueError(
            f"{eeg.shape[2]} channels, {len(names)} names; known are the 17 posterior and the 63 electrodes"
        )
    if times.dtype.kind != "f" or times.ndim != 1 or len(times) - eeg.shape[3] not in (0, DROPPED) or len(times) < 2:
        raise ValueError(f"{times.shape} times for {eeg.shape[3]} samples")
    steps = np.diff(times)
    if not (np.isfinite(times).all() and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-4)):
        raise ValueError("its times are not evenly spaced")
    return eeg, names, times[len(times) - eeg.shape[3] :]


def _listed(images: Path) -> dict[str, list[tuple[str, str]]]:
    """(folder, file) of each picture in the order of the codes, by image_metadata.npy, else by the sorted folders.

    Raises:
        UserError: there is neither, or a name is no plain name.
    """
    path = images / "image_metadata.npy"
    if path.is_file():
        files.check_npy(path)
        with foreign():
            content = read_npy(path)
        try:
            listed = {
                kind: list(zip(content[f"{key}_img_concepts"], content[f"{key}_img_files"], strict=True))
                for kind, key in (("training", "train"), ("test", "test"))
            }
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the image list of THINGS-EEG2: {error}") from error
    else:
        listed = {
            kind: [(p.parent.name, p.name) for p in sorted((images / folder).glob("*/*.jpg"))]
            for kind, folder in FOLDERS.items()
        }
    strange = [str(name) for rows in listed.values() for row in rows for name in row if not NAME.fullmatch(str(name))]
    if strange or not all(listed.values()):
        why = f"{strange[0]!r} is no name of a file" if strange else "no image_metadata.npy and no pictures"
        raise UserError(f"{images}: {why}; {Gifford2022.pictures}")
    return listed
