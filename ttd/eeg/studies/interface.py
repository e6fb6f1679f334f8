"""What every study offers: recordings that are read one at a time, and events that say which picture was seen when."""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mne

from ttd.config import UserError
from ttd.eeg import files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
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


class Study(ABC):
    """A set of recordings with a name, a source and a licence."""

    title: str
    """Author and year, as ``Grootswagers2022``."""
    citation: str
    licence: str
    location: Path
    simulated: bool = False
    """No person was recorded."""

    @abstractmethod
    def recordings(self) -> list[Recording]:
        """All recordings, sorted by subject, session and run.

        Raises:
            UserError: the folder is missing or holds no recording.
        """


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
