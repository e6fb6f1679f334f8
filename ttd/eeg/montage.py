"""Electrode names and places: the caps this project knows, by name and never by position in a file.

Positions are those of MNE's ``standard_1005`` template head (``colin27_1005`` since MNE 1.13), in metres.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import mne
import numpy as np


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Grootswagers et al. (2022), OpenNeuro ds003825, in the order of the recordings. Cz was the reference, so it is absent.
THINGS_EEG1_63 = _names(
    "Fp1 Fz F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 C4 T8 FT10 FC6 FC2 F4 F8 Fp2 "
    "AF7 AF3 AFz F1 F5 FT7 FC3 C1 C5 TP7 CP3 P1 P5 PO7 PO3 POz PO4 PO8 P6 P2 CPz CP4 TP8 C6 C2 FC4 FT8 F6 AF8 AF4 "
    "F2 FCz"
)

# Gifford et al. (2022), in the order of the published arrays: Cz where the cap above has Fz.
THINGS_EEG2_63 = _names(
    "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7 C5 C3 C1 "
    "Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 "
    "O1 Oz O2"
)

# The same authors' preprocessed files at 100 Hz, in their order.
THINGS_EEG2_17 = _names("P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2")

# PhysioNet EEG Motor Movement/Imagery (Schalk et al., 2004), in the order of the EDF files.
EEGMMIDB_64 = _names(
    "FC5 FC3 FC1 FCz FC2 FC4 FC6 C5 C3 C1 Cz C2 C4 C6 CP5 CP3 CP1 CPz CP2 CP4 CP6 Fp1 Fpz Fp2 AF7 AF3 AFz AF4 AF8 "
    "F7 F5 F3 F1 Fz F2 F4 F6 F8 FT7 FT8 T7 T8 T9 T10 TP7 TP8 P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz "
    "O2 Iz"
)

MUSE_4 = ("TP9", "AF7", "AF8", "TP10")

CAPS = {
    "things-eeg1-63": THINGS_EEG1_63,
    "things-eeg2-63": THINGS_EEG2_63,
    "eegmmidb-64": EEGMMIDB_64,
    "muse-4": MUSE_4,
}


STANDARD = "colin27_1005"
"""MNE's name of the canonical 10-05 montage."""


@functools.cache
def _standard() -> dict[str, np.ndarray]:
    return mne.channels.make_standard_montage(STANDARD).get_positions()["ch_pos"]


@functools.cache
def _by_lower_case() -> dict[str, str]:
    return {name.lower(): name for name in _standard()}


def normalise_name(name: str) -> str:
    """The 10-05 name behind a recorder's spelling: ``"Fc5."`` → ``"FC5"``, ``"EEG F1-Ref"`` → ``"F1"``.

    A name that is no 10-05 electrode comes back as it was, without surrounding blanks and dots.
    """
    bare = name.strip().strip(".")
    short = bare[4:].strip() if bare.upper().startswith("EEG ") else bare
    head, sign, tail = short.rpartition("-")
    if sign and tail.upper() in ("REF", "LE", "AVG", "CAR"):
        short = head
    return _by_lower_case().get(short.lower(), bare)


def is_electrode(name: str) -> bool:
    """Whether ``standard_1005`` has a place for this (normalised) name."""
    return name in _standard()


def positions(ch_names: Sequence[str]) -> np.ndarray:
    """Places [C, 3] in metres of the named electrodes.

    Raises:
        ValueError: a name is not part of ``standard_1005``.
    """
    unknown = [name for name in ch_names if not is_electrode(name)]
    if unknown:
        raise ValueError(f"no standard_1005 position for {', '.join(unknown)}")
    return np.stack([_standard()[name] for name in ch_names])


def cap_name(ch_names: Sequence[str]) -> str:
    """The name of a known cap with exactly these electrodes in this order, else one made from their number and a
    hash."""
    for name, members in CAPS.items():
        if tuple(ch_names) == members:
            return name
    return f"cap-{len(ch_names)}-{hashlib.sha256(' '.join(ch_names).encode()).hexdigest()[:6]}"
