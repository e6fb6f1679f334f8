"""Studies: where recordings and events come from. One module per way of storing them, one interface for all.

``open_study(config)`` gives a ``Study``: its ``recordings()`` are read one at a time, each knows its subject,
session and run, gives its EEG as an ``mne.io.Raw`` and its events with picture, concept, label and part.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ttd.eeg.studies.bids import BIDS, BIDSConfig
from ttd.eeg.studies.interface import Event, Recording, Study
from ttd.eeg.studies.muse import MuseP300, MuseP300Config
from ttd.eeg.studies.recordings import Recordings, RecordingsConfig

StudyConfig = Annotated[BIDSConfig | RecordingsConfig | MuseP300Config, Field(discriminator="name")]

__all__ = ["BIDS", "Event", "MuseP300", "Recording", "Recordings", "Study", "StudyConfig", "open_study"]


def open_study(config: BIDSConfig | RecordingsConfig | MuseP300Config) -> Study:
    """The study behind a configuration; finding its recordings is left to ``recordings()``."""
    if isinstance(config, BIDSConfig):
        return BIDS(config)
    return MuseP300(config) if isinstance(config, MuseP300Config) else Recordings(config)
