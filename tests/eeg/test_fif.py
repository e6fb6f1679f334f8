"""MNE reads a damaged FIF file as a shorter recording; such files are refused before it sees them."""

from __future__ import annotations

import struct
from pathlib import Path

import mne
import numpy as np
import pytest

from ttd.config import UserError
from ttd.eeg import files


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    info = mne.create_info(["Cz", "Pz", "Oz"], 100.0, "eeg")
    path = tmp_path / "a_raw.fif"
    mne.io.RawArray(np.ones((3, 240)), info, verbose="ERROR").save(path, verbose="ERROR")
    return path


def buffers(content: bytes) -> list[int]:
    """Where the tags of the samples begin; they stand one behind the other."""
    found, position = [], 0
    while position < len(content):
        kind, _, n_bytes, _ = struct.unpack(">4i", content[position : position + 16])
        found += [position] if kind == 300 else []
        position += 16 + n_bytes
    return found


def test_a_whole_file_passes(recording):
    files.check_signal_file(recording)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_file_cut_between_two_buffers_reads_shorter_with_mne_and_is_refused(recording, keep):
    content = recording.read_bytes()
    recording.write_bytes(content[: buffers(content)[keep]])
    assert mne.io.read_raw_fif(recording, verbose="ERROR").n_times < 240
    with pytest.raises(UserError, match=r"a_raw\.fif: a damaged FIF recording: at byte \d+, the file is cut off"):
        files.check_signal_file(recording)


def test_a_buffer_that_lost_its_kind_is_named_by_its_place(recording):
    content = bytearray(recording.read_bytes())
    at = buffers(content)[1]
    content[at : at + 4] = struct.pack(">i", 299)
    recording.write_bytes(content)
    with pytest.raises(UserError, match=f"at byte {at}, a tag of kind 299 lies between the samples"):
        files.check_signal_file(recording)
