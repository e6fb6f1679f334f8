"""The two kinds of folder that the original preprocessing wrote."""

from pathlib import Path

import numpy as np
import pytest
import torch
from epoched_files import ttdnet_epochs

from ttd.config import UserError
from ttd.eeg.montage import EEGMMIDB_64, THINGS_EEG1_63
from ttd.eeg.studies import open_study
from ttd.eeg.studies.ttdnet import TTDnetConfig


def study(root: Path, **fields):
    return open_study(TTDnetConfig(root=root, **fields))


def test_epochs_keep_their_picture_and_concept_even_of_validation_trials(tmp_path):
    torch.save(ttdnet_epochs(), tmp_path / "sub-02_things_eeg.pth")
    (recording,) = study(tmp_path).recordings()
    recording.check()
    epoched, events = recording.epoched(), recording.events()
    assert (epoched.sfreq, epoched.tmin, epoched.n_times) == (512.0, -0.1, 512)
    assert epoched.ch_names == list(THINGS_EEG1_63)
    assert [(e.concept, e.image_id) for e in events][2:] == [("aardvark", "aardvark_02s"), ("zebra", "zebra_11n")]
    assert events[3].image_path == tmp_path / "images" / "zebra" / "zebra_11n.jpg"
    for row, eeg in zip(ttdnet_epochs()["dataset"], epoched.data, strict=True):
        assert np.array_equal(eeg, row["eeg"].numpy())
    assert study(tmp_path, images=tmp_path / "x").recordings()[0].events()[0].image_path.parts[-3] == "x"


def test_only_the_subjects_asked_for_are_read(tmp_path):
    for subject in (1, 2):
        torch.save(ttdnet_epochs(subject=subject), tmp_path / f"sub-{subject:02d}_things_eeg.pth")
    assert [r.subject for r in study(tmp_path, subjects=["02"]).recordings()] == ["02"]


@pytest.mark.parametrize(("content", "message"), [
    (ttdnet_epochs(n_channels=64), "64 channels without names"),
    (ttdnet_epochs(subject=3), "epoch 0 belongs to subject 3"),
    (ttdnet_epochs() | {"time_len": 500}, r"epoch 0 is no array \[63, 500\]"),
    (ttdnet_epochs() | {"dataset": []}, "no epochs"),
    ({"dataset": []}, "not a file of TTD-net's preprocessing"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "sub-02_things_eeg.pth")
    with pytest.raises(UserError, match=message):
        study(tmp_path).recordings()[0].check()


def test_windows_are_grouped_by_number_and_belong_to_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("ttd.eeg.studies.ttdnet.PER_RECORDING", 2)
    for i in range(5):
        np.save(tmp_path / f"seg_{i:06d}.npy", np.full((64, 512), i, np.float32))
    recordings = study(tmp_path).recordings()
    assert [(r.subject, r.run, len(r.signal_files)) for r in recordings] == [
        ("unknown", "000", 2), ("unknown", "001", 2), ("unknown", "002", 1),
    ]  # fmt: skip
    epoched = recordings[1].epoched()
    assert (epoched.sfreq, epoched.n_times, epoched.ch_names) == (160.0, 512, list(EEGMMIDB_64))
    assert [eeg[0, 0] for eeg in epoched.data] == [2, 3]
    assert recordings[1].events() == []
    np.save(tmp_path / "seg_000002.npy", np.zeros((64, 500), np.float32))
    with pytest.raises(UserError, match=r"seg_000002\.npy: not a window"):
        recordings[1].check()


def test_a_folder_with_neither_or_both_is_refused(tmp_path):
    with pytest.raises(UserError, match="must hold either"):
        study(tmp_path).recordings()
    torch.save(ttdnet_epochs(), tmp_path / "sub-02_things_eeg.pth")
    np.save(tmp_path / "seg_000000.npy", np.zeros((64, 512), np.float32))
    with pytest.raises(UserError, match="must hold either"):
        study(tmp_path).recordings()
    with pytest.raises(UserError, match="no such folder; written by"):
        study(tmp_path / "absent")
