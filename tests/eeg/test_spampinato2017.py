"""EEG-ImageNet40 from its two files, as torch writes them."""

import logging

import numpy as np
import pytest
import torch
from epoched_files import spampinato_trials, write_spampinato

from ttd.config import UserError
from ttd.eeg.studies import open_study
from ttd.eeg.studies import spampinato2017 as module
from ttd.eeg.studies.spampinato2017 import Spampinato2017Config


def test_trials_are_cropped_split_and_counted(tmp_path):
    study = open_study(Spampinato2017Config(root=write_spampinato(tmp_path), split=1))
    first, second = study.recordings()
    assert (first.subject, second.subject) == ("1", "2")
    assert first.left_out() == {"not 450 to 600 samples long": 2, "shorter than 460 samples": 1}
    assert second.left_out() == {"in no part of the split": 1}
    assert [event.part for event in first.events()] == ["train"] * 3
    assert [event.part for event in second.events()] == ["train", "train", "validation", "test", "test"]
    epoched = second.epoched()
    assert (epoched.sfreq, epoched.tmin, epoched.n_times, len(epoched.ch_names)) == (1000.0, 0.02, 440, 128)
    for i, eeg in zip((6, 7, 8, 10, 11), epoched.data, strict=True):
        assert np.array_equal(eeg, spampinato_trials()["dataset"][i]["eeg"].numpy()[:, 20:460])
    event = second.events()[3]
    assert (event.image_id, event.concept) == ("n02124075_14", "n02124075")
    assert event.image_path == tmp_path / "images" / "n02124075" / "n02124075_14.JPEG"
    assert first.content_hash() != second.content_hash()


def test_a_split_and_subjects_that_are_not_there_are_refused(tmp_path):
    write_spampinato(tmp_path)
    with pytest.raises(UserError, match=r"study\.split=2: .* has 2 splits"):
        open_study(Spampinato2017Config(root=tmp_path, split=2)).recordings()[0].check()
    with pytest.raises(UserError, match="no trials; there are 1, 2"):
        open_study(Spampinato2017Config(root=tmp_path, subjects=["7"])).recordings()
    assert len(open_study(Spampinato2017Config(root=tmp_path, subjects=["2"])).recordings()) == 1


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c["dataset"][0].update(eeg=torch.zeros(64, 500)), "trial 0: eeg is no array"),
    (lambda c: c["dataset"][1].update(image=6), "trial 1: image, label or subject"),
    (lambda c: c["dataset"][1].pop("label"), "not a file of EEG-ImageNet40: 'label'"),
    (lambda c: c.update(images=["../x"] * 6), "is no name of a picture"),
    (lambda c: c["dataset"][0].update(label=1), "trial 0 shows n02106662_10 under the label n02124075"),
])  # fmt: skip
def test_parts_that_do_not_fit_together_are_refused(tmp_path, change, message):
    content = spampinato_trials()
    change(content)
    write_spampinato(tmp_path, content)
    with pytest.raises(UserError, match=message):
        open_study(Spampinato2017Config(root=tmp_path, split=1)).recordings()[0].events()


def test_other_bands_and_splits_are_other_files(tmp_path):
    write_spampinato(tmp_path)
    (tmp_path / "eeg_5_95_std.pth").rename(tmp_path / "eeg_14_70_std.pth")
    (tmp_path / "block_splits_by_image_all.pth").rename(tmp_path / "block_splits_by_image_single.pth")
    names = {"signals": "eeg_14_70_std.pth", "splits": "block_splits_by_image_single.pth"}
    found = open_study(Spampinato2017Config(root=tmp_path, split=1, **names)).recordings()
    assert len(found[1].events()) == 5
    with pytest.raises(UserError, match=r"eeg_5_95_std\.pth: no such file"):
        open_study(Spampinato2017Config(root=tmp_path)).recordings()


def test_a_trial_in_two_parts_is_refused(tmp_path):
    write_spampinato(tmp_path, splits=[{"train": [0, 1], "val": [1], "test": [2]}])
    with pytest.raises(UserError, match="trial 1 does not exist or is in two parts"):
        open_study(Spampinato2017Config(root=tmp_path)).recordings()[0].check()


def test_the_block_design_is_warned_of_once(tmp_path, caplog):
    write_spampinato(tmp_path)
    module.warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            open_study(Spampinato2017Config(root=tmp_path))
    assert [record.message for record in caplog.records] == [module.WARNING]
    assert "shown in blocks of one class" in module.WARNING
