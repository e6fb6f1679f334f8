"""Raw recordings of THINGS-EEG2, as recorded and through the published recipe.

``raw_eeg_training.npy`` is a dictionary saved with ``np.save``: 63 EEG channels and ``stim`` at 1000 Hz in volts. Code i of
``stim`` is picture i - 1 of the image list, 99999 a target that was answered. The recipe is that of NICE (Song et al., 2024,
ICLR), after Gifford et al. (2022): docs/studies.md goes through it step by step.

Shapes: C channels, T time points.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mne
import numpy as np
from sklearn.utils import shuffle

from ttd.config import UserError
from ttd.eeg import files, montage, mvnn
from ttd.eeg.studies.interface import Epoched, EpochedRecording, Event, Recording, foreign, reading
from ttd.untrusted import read_npy

if TYPE_CHECKING:
    from ttd.eeg.studies.gifford2022 import Picture

TARGET = 99999
TMIN_S, TMAX_S, SFREQ, SKIPPED = -0.2, 1.0, 250.0, 50
"""Epochs are cut and corrected by their baseline with 0.2 s before the onset, which then goes: 50 samples at 250 Hz."""
SEED = 20200220
KEPT = {"training": 2, "test": 20}
"""Repetitions of a picture that a session may contribute."""
AT_ONCE = 32


class RawFile:
    """One file with its markers; the samples stay in the file until they are asked for."""

    def __init__(self, path: Path, stimuli: Sequence[Picture]):
        self.path, self.stimuli = path, stimuli

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """The dictionary, if its parts fit together.

        Raises:
            UserError: the file is damaged or another one.
        """
        files.check_npy(self.path)
        with foreign():
            found = read_npy(self.path)
        try:
            data, names, kinds, sfreq = (found[k] for k in ("raw_eeg_data", "ch_names", "ch_types", "sfreq"))
            fits = isinstance(data, np.ndarray) and data.ndim == 2 and data.dtype.str in ("<f4", "<f8")
            fits = fits and len(data) == len(names) == len(kinds) == len(set(names)) and "stim" in names
            if not fits or not 0 < float(sfreq) < 1e5 or set(kinds) - {"eeg", "stim"}:
                raise ValueError("its channels, their names and types do not fit together")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: not a raw recording of THINGS-EEG2: {error}") from error
        return {"data": data, "names": [str(n) for n in names], "kinds": list(kinds), "sfreq": float(sfreq)}

    @functools.cached_property
    def markers(self) -> np.ndarray:
        """(sample, code) [M, 2] of all that was presented, targets included.

        Raises:
            UserError: the trigger channel cannot be understood, or names a picture that the image list has not.
        """
        content = self.content
        info = mne.create_info(["stim"], content["sfreq"], ["stim"])
        stim = np.asarray(content["data"][[content["names"].index("stim")]], np.float64)
        with reading(self.path):
            found = mne.find_events(mne.io.RawArray(stim, info, verbose="ERROR"), stim_channel="stim", verbose="ERROR")
        codes = found[found[:, 2] != TARGET, 2]
        if len(codes) and not 1 <= codes.min() <= codes.max() <= len(self.stimuli):
            raise UserError(
                f"{self.path}: shows pictures {codes.min()} to {codes.max()}, the image list has {len(self.stimuli):,}"
            )
        return found[:, [0, 2]]

    @property
    def n_targets(self) -> int:
        return int((self.markers[:, 1] == TARGET).sum())

    @property
    def shown(self) -> np.ndarray:
        """(sample, code) [P, 2] of the pictures."""
        return self.markers[self.markers[:, 1] != TARGET]

    def event(self, sample: int, code: int) -> Event:
        picture = self.stimuli[code - 1]
        return Event(
            onset_s=sample / self.content["sfreq"],
            image_id=picture.image_id,
            concept=picture.concept,
            image_path=picture.path,
            label=picture.concept,
            part=picture.part,
        )


class RawRecording(Recording):
    """A raw file for the preprocessing of the chain."""

    def __init__(self, file: RawFile, subject: str, session: str, kind: str):
        super().__init__(file.path, subject=subject, session=session, run=kind)
        self._file = file

    def check(self) -> None:
        files.check_present(self.path)
        _ = self._file.content

    def ch_names(self) -> list[str]:
        content = self._file.content
        rows = zip(content["names"], content["kinds"], strict=True)
        return [montage.normalise_name(name) for name, kind in rows if kind == "eeg"]

    def raw(self) -> mne.io.BaseRaw:
        content = self._file.content
        rows = [i for i, kind in enumerate(content["kinds"]) if kind == "eeg"]
        info = mne.create_info(self.ch_names(), content["sfreq"], "eeg")
        return mne.io.RawArray(np.asarray(content["data"][rows], np.float64), info, verbose="ERROR")

    def events(self) -> list[Event]:
        return [self._file.event(sample, code) for sample, code in self._file.shown.tolist()]

    def left_out(self) -> collections.Counter[str]:
        return +collections.Counter({"target": self._file.n_targets})


class PublishedRecording(EpochedRecording):
    """A raw file through the published recipe: whitened epochs of 0 to 1 s at 250 Hz."""

    def __init__(self, file: RawFile, subject: str, session: str, kind: str, training: RawFile):
        super().__init__(file.path, subject=subject, session=session, run=kind)
        self._file, self._training, self._kind = file, training, kind

    def check(self) -> None:
        for file in (self._file, self._training):
            files.check_present(file.path)
            _ = file.content

    def events(self) -> list[Event]:
        chosen, _ = choose(self._file, KEPT[self._kind])
        return [self._file.event(sample, code) for sample, code in chosen.tolist()]

    def left_out(self) -> collections.Counter[str]:
        _, why = choose(self._file, KEPT[self._kind])
        return +(collections.Counter({"target": self._file.n_targets}) + why)

    def epoched(self) -> Epoched:
        chosen, _ = choose(self._file, KEPT[self._kind])
        n_times = round((TMAX_S - TMIN_S) * SFREQ) - SKIPPED

        def whitened() -> Iterator[np.ndarray]:
            matrix = whitener(self._training)
            for eeg in cut(self._file, chosen):
                yield (matrix @ eeg).astype(np.float32)

        return Epoched(list(montage.THINGS_EEG2_63), SFREQ, 0.0, n_times, "whitened", whitened())


@functools.lru_cache(maxsize=4)
def choose(file: RawFile, n: int) -> tuple[np.ndarray, collections.Counter[str]]:
    """At most n presentations of each picture, (sample, code) [P, 2] in the order of time, and why others are left out.

    Which ones: the first n of the shuffle of scikit-learn with the published seed, drawn anew for every picture.
    """
    sfreq, n_samples = file.content["sfreq"], file.content["data"].shape[1]
    samples = file.shown[:, 0]
    whole = (samples + round(TMIN_S * sfreq) >= 0) & (samples + round(TMAX_S * sfreq) < n_samples)
    shown = file.shown[whole]
    order = np.argsort(shown[:, 1], kind="stable")  # presentations grouped by picture, each in the order of time
    groups = np.split(order, np.flatnonzero(np.diff(shown[order, 1])) + 1) if len(order) else []
    kept = [shuffle(group, random_state=SEED, n_samples=min(n, len(group))) for group in groups]
    chosen = np.sort(np.concatenate(kept)) if kept else np.empty(0, int)
    why = {"outside the recording": int((~whole).sum()), f"beyond {n} repetitions": len(shown) - len(chosen)}
    return shown[chosen], collections.Counter(why)


def cut(file: RawFile, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Epochs [C, T] in volts of the published 63 electrodes: baseline up to the onset, MNE's resampling, 0 to 1 s.

    Raises:
        UserError: an electrode is missing.
    """
    content = file.content
    rows = {montage.normalise_name(name): i for i, name in enumerate(content["names"])}
    missing = [name for name in montage.THINGS_EEG2_63 if name not in rows]
    if missing:
        raise UserError(f"{file.path}: lacks {', '.join(missing)}, which the published recipe uses; take recipe=chain")
    picks, sfreq = [rows[name] for name in montage.THINGS_EEG2_63], content["sfreq"]
    before, after = round(-TMIN_S * sfreq), round(TMAX_S * sfreq)
    for start in range(0, len(chosen), AT_ONCE):
        samples = chosen[start : start + AT_ONCE, 0]
        eeg = np.stack([content["data"][picks, s - before : s + after + 1] for s in samples]).astype(np.float64)
        eeg -= eeg[:, :, : before + 1].mean(axis=2, keepdims=True)
        if sfreq > SFREQ:
            eeg = mne.filter.resample(eeg, up=SFREQ, down=sfreq, npad="auto", pad="edge", verbose="ERROR")
        yield from eeg[:, :, SKIPPED:]


@functools.lru_cache(maxsize=2)
def whitener(training: RawFile) -> np.ndarray:
    """Σ^(-1/2) [C, C] of a session, from its training pictures without those for validation.

    Raises:
        UserError: there is nothing to estimate it from.
    """
    chosen, _ = choose(training, KEPT["training"])
    fitted = np.array([training.stimuli[code - 1].part == "train" for code in chosen[:, 1]], dtype=bool)
    codes = chosen[fitted, 1].tolist()
    try:
        return mvnn.whitener(zip(codes, cut(training, chosen[fitted]), strict=True))
    except ValueError as error:
        raise UserError(f"{training.path}: {error}") from error
