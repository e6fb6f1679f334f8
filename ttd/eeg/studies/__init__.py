"""Studies: where recordings and events come from. One module per way of storing them, one interface for all.

``open_study(config)`` gives a ``Study``: its ``recordings()`` are read one at a time, each knows its subject,
session and run, gives its EEG as an ``mne.io.Raw`` and its events with picture, concept, label and part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from ttd.eeg.studies.bids import BIDS, BIDSConfig
from ttd.eeg.studies.gifford2022 import Gifford2022, Gifford2022Config
from ttd.eeg.studies.grootswagers2022 import Grootswagers2022, Grootswagers2022Config
from ttd.eeg.studies.interface import Epoched, EpochedRecording, Event, Recording, Study
from ttd.eeg.studies.muse import MuseP300, MuseP300Config
from ttd.eeg.studies.recordings import Recordings, RecordingsConfig
from ttd.eeg.studies.schalk2004 import Schalk2004, Schalk2004Config
from ttd.eeg.studies.spampinato2017 import Spampinato2017, Spampinato2017Config
from ttd.eeg.studies.table import Table, TableConfig
from ttd.eeg.studies.ttdnet import TTDnet, TTDnetConfig

AnyConfig = (
    BIDSConfig
    | RecordingsConfig
    | MuseP300Config
    | Grootswagers2022Config
    | Gifford2022Config
    | Schalk2004Config
    | Spampinato2017Config
    | TTDnetConfig
    | TableConfig
)
StudyConfig = Annotated[AnyConfig, Field(discriminator="name")]

STUDIES: dict[type, Callable[[Any], Study]] = {
    BIDSConfig: BIDS,
    RecordingsConfig: Recordings,
    MuseP300Config: MuseP300,
    Grootswagers2022Config: Grootswagers2022,
    Schalk2004Config: Schalk2004,
    Gifford2022Config: Gifford2022,
    Spampinato2017Config: Spampinato2017,
    TTDnetConfig: TTDnet,
    TableConfig: Table,
}

__all__ = ["STUDIES", "Epoched", "EpochedRecording", "Event", "Recording", "Study", "StudyConfig", "open_study"]


def open_study(config: AnyConfig) -> Study:
    """The study behind a configuration; finding its recordings is left to ``recordings()``."""
    return STUDIES[type(config)](config)
