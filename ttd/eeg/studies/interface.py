"""What every study offers: recordings that are read one at a time, and events that say which picture was seen when."""

from __future__ import annotations

import collections
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

from ttd.config import UserError
from ttd.eeg import files
from ttd.untrusted import RefusedError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """One presentation of one picture."""

    onset_s: float
    """Seconds after the first sample of the recording."""
    image_id: str
    concept: str
    image_path: Path | None
    label: str
    part: str | None = None
    """train, validation or test where the study itself says so."""
    pairing: str = "image"
    """``image``: this very picture was seen. ``class``: a picture of the class that was seen."""
    sequence: str = ""
    """Stream of pictures without a pause that it belongs to, where a recording has several."""


class Recording(ABC):
    """One continuous recording of one subject. Nothing is read before it is asked for."""

    def __init__(self, path: Path, *, subject: str, session: str = "", run: str = ""):
        self.path, self.subject, self.session, self.run = path, subject, session, run

    @property
    def name(self) -> str:
        """subject, session and run in one word, with the entities of BIDS."""
        parts = [
            f"sub-{self.subject}",
            f"ses-{self.session}" if self.session else "",
            f"run-{self.run}" if self.run else "",
        ]
        return "_".join(part for part in parts if part)

    @property
    def signal_files(self) -> list[Path]:
        """The files that hold the samples; their content is the identity of the recording."""
        if self.path.suffix.lower() == ".vhdr":
            return files.brainvision_companions(self.path)[:1]
        companion = self.path.with_suffix(".fdt")
        return [self.path, companion] if self.path.suffix.lower() == ".set" and companion.exists() else [self.path]

    def check(self) -> None:
        """Refuse absent or damaged files without reading the signals.

        Raises:
            UserError: naming the file and the remedy.
        """
        files.check_signal_file(self.path)

    def content_hash(self) -> str:
        """SHA-256 of the samples' files: two names for one recording are found out by it."""
        return files.content_hash(self.signal_files)

    @abstractmethod
    def raw(self) -> mne.io.BaseRaw:
        """The EEG channels alone, in volts, named by 10-05 where they can be; annotations ``BAD…`` mark what to leave
        out.

        Raises:
            UserError: the file cannot be read.
        """

    @abstractmethod
    def events(self) -> list[Event]:
        """What was seen, in the order of time; empty where nothing was recorded about it."""

    def ch_names(self) -> list[str]:
        """The electrodes that ``raw`` gives, in their order."""
        return self.raw().ch_names

    def left_out(self) -> collections.Counter[str]:
        """Presentations that ``events`` leaves out, counted by reason."""
        return collections.Counter()

    def remark(self) -> str:
        """What was found out about the recording that a user should read, in a few words; empty where nothing."""
        return ""


@dataclass(frozen=True)
class Epoched:
    """What a container of epochs holds: its grid in time, and the epochs of ``events`` in their order."""

    ch_names: list[str]
    sfreq: float
    tmin: float
    """Seconds of the first sample after the onset."""
    n_times: int
    unit: str
    """µV, or what else the study's preprocessing left: ``whitened``, ``standard deviations``."""
    data: Iterator[np.ndarray]
    """[C, T], one per event."""


class EpochedRecording(Recording):
    """Epochs that somebody else cut and preprocessed: there is no continuous signal any more.

    Where a container keeps no times, the onsets of its events are places in it, far enough apart not to overlap.
    """

    def check(self) -> None:
        files.check_present(self.path)

    def raw(self) -> mne.io.BaseRaw:
        raise UserError(
            f"{self.path}: holds epochs, not a recording; take it for pairs, and recordings for pretraining"
        )

    def ch_names(self) -> list[str]:
        return self.epoched().ch_names

    @abstractmethod
    def epoched(self) -> Epoched:
        """The epochs, read one after the other.

        Raises:
            UserError: the container is damaged or of another kind.
        """


class Study(ABC):
    """A set of recordings with a name, a source and a licence."""

    title: str
    """Author and year, as ``Grootswagers2022``."""
    citation: str
    licence: str
    download: str = "your own recordings"
    """Where to get it, in one sentence."""
    pictures: str = "put the stimuli there"
    """What to do where a picture is absent."""
    location: Path
    simulated: bool = False
    """No person was recorded."""

    @abstractmethod
    def recordings(self) -> list[Recording]:
        """All recordings, sorted by subject, session and run.

        Raises:
            UserError: the folder is missing or holds no recording.
        """

    def excluded(self) -> dict[str, str]:
        """Subjects that ``recordings`` leaves out although they are there, each with the reason."""
        return {}


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Turn the refusal of a pickled container, which names the file, into what users read."""
    try:
        yield
    except RefusedError as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on a foreign file into one sentence that names the file."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # readers of foreign formats raise anything, from KeyError to struct.error
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be read as a recording: {first_line}") from error


def eeg_only(raw: mne.io.BaseRaw, path: Path) -> mne.io.BaseRaw:
    """Keep channels typed EEG, say which were left out, and check that the signal files lie inside the recording's
    folder."""
    files.check_inside([Path(name) for name in raw.filenames if name is not None], path.parent)
    if "eeg" not in raw:
        raise UserError(f"{path}: holds no EEG channel (found {', '.join(sorted(set(raw.get_channel_types())))})")
    if raw.n_times == 0:
        raise UserError(f"{path}: holds no samples; the signals are missing")
    others = [name for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True) if kind != "eeg"]
    if others:
        log.info("%s: left out channels that are not EEG: %s", path.name, ", ".join(others))
    return raw.pick("eeg", exclude=[])


def read_signal_file(path: Path) -> mne.io.BaseRaw:
    """Open a loose recording with the MNE reader of its suffix, never with a guessed encoding."""
    readers = {
        ".vhdr": mne.io.read_raw_brainvision,
        ".edf": mne.io.read_raw_edf,
        ".bdf": mne.io.read_raw_bdf,
        ".set": mne.io.read_raw_eeglab,
        ".fif": mne.io.read_raw_fif,
    }
    with reading(path):
        return readers[path.suffix.lower()](path, verbose="ERROR")
