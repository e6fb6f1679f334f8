"""THINGS-EEG2 from each of its containers, and its published recipe against a re-computation by other means."""

import csv
import pickle
import shutil
from pathlib import Path

import mne
import numpy as np
import pytest
from epoched_files import (
    nice_dictionary,
    osf_dictionary,
    write_pictures,
    write_preprocessed,
    write_raw,
)
from scipy.linalg import fractional_matrix_power
from sklearn.discriminant_analysis import _cov
from sklearn.utils import shuffle

from ttd.config import UserError
from ttd.eeg.montage import THINGS_EEG2_17, THINGS_EEG2_63
from ttd.eeg.studies import EpochedRecording, open_study
from ttd.eeg.studies.gifford2022 import Gifford2022Config, Picture
from ttd.eeg.studies.gifford2022_raw import RawFile, choose


@pytest.fixture(scope="module")
def raw_folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_raw(root)
    write_pictures(root / "images")
    return root


def study(root: Path, **fields):
    return open_study(Gifford2022Config(root=root, **fields))


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("make", "n_chans", "sfreq", "tmin", "n_times"), [
    (osf_dictionary, 17, 100.0, -0.2, 100), (nice_dictionary, 63, 250.0, 0.0, 250),
])  # fmt: skip
def test_both_preprocessed_files_are_told_by_content(tmp_path, make, pickled, n_chans, sfreq, tmin, n_times):
    """The same file names, and either way of saving a dictionary."""
    content = write_preprocessed(tmp_path, make, pickled=pickled)
    write_pictures(tmp_path / "images")
    test, training = study(tmp_path).recordings()
    for recording, n_pictures, repetitions in ((training, 20, 4), (test, 2, 80)):
        recording.check()
        assert isinstance(recording, EpochedRecording)
        epoched, events = recording.epoched(), recording.events()
        assert (len(epoched.ch_names), epoched.sfreq, epoched.tmin, epoched.n_times) == (n_chans, sfreq, tmin, n_times)
        assert (epoched.ch_names == list(THINGS_EEG2_17)) == (n_chans == 17)
        expected = content[recording.run]["preprocessed_eeg_data"]
        assert len(events) == n_pictures * repetitions
        for i, (event, eeg) in enumerate(zip(events, epoched.data, strict=True)):
            assert np.array_equal(eeg, expected[i // repetitions, i % repetitions])
            assert event.image_path.is_file()
        assert len({event.image_id for event in events}) == n_pictures
    assert [e.image_id for e in training.events()[::40]] == ["aardvark_00s", "abacus_00s"]
    assert {e.part for e in training.events()} == {"train"}
    assert {e.part for e in test.events()} == {"test"}
    starts = [event.onset_s + tmin for event in training.events()]
    assert min(np.diff(starts)) >= n_times / sfreq  # as places in the file they do not overlap


def test_only_the_subjects_asked_for_are_read(tmp_path):
    for subject in ("01", "02"):
        write_preprocessed(tmp_path, osf_dictionary, pickled=False, subject=subject)
    write_pictures(tmp_path / "elsewhere")
    found = study(tmp_path, subjects=["02"], images=tmp_path / "elsewhere").recordings()
    assert [(r.subject, r.run) for r in found] == [("02", "test"), ("02", "training")]
    with pytest.raises(UserError, match="holds no files; raw recordings: https"):
        study(tmp_path, subjects=["03"], images=tmp_path / "elsewhere").recordings()


def test_the_list_of_pictures_is_the_same_without_its_file(tmp_path):
    write_preprocessed(tmp_path, osf_dictionary, pickled=False)
    write_pictures(tmp_path / "images")
    listed = study(tmp_path).stimuli
    (tmp_path / "images" / "image_metadata.npy").unlink()
    assert study(tmp_path).stimuli == listed
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"no image_metadata\.npy and no pictures; unpack training_images\.zip"):
        study(tmp_path).recordings()


def test_a_picture_outside_its_folder_is_refused(tmp_path):
    write_preprocessed(tmp_path, osf_dictionary, pickled=False)
    write_pictures(tmp_path / "images")
    path = tmp_path / "images" / "image_metadata.npy"
    content = np.load(path, allow_pickle=True).item()
    content["test_img_files"][0] = "../../secret.jpg"
    np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match="is no name of a file"):
        study(tmp_path).recordings()


def test_concepts_for_validation_are_taken_from_training(tmp_path):
    write_preprocessed(tmp_path, osf_dictionary, pickled=True)
    write_pictures(tmp_path / "images")
    _, training = study(tmp_path, validation=("abacus",)).recordings()
    parts = {event.concept: event.part for event in training.events()}
    assert parts == {"aardvark": "train", "abacus": "validation"}
    with pytest.raises(UserError, match=r"study\.validation: zebra: no training concept"):
        study(tmp_path, validation=("zebra",)).recordings()


def damaged(content: dict, what: str) -> dict:
    eeg = content["preprocessed_eeg_data"]
    return {
        "a channel less": content | {"preprocessed_eeg_data": eeg[:, :, :-1]},
        "a sample less": content | {"preprocessed_eeg_data": eeg[..., :-1]},
        "a picture less": content | {"preprocessed_eeg_data": eeg[:-1]},
        "averaged": content | {"preprocessed_eeg_data": eeg.mean(1)},
        "no electrode": content | {"ch_names": ["A1x", *content["ch_names"][1:]]},
        "another electrode": content | {"ch_names": ["Fz", *content["ch_names"][1:]]},
        "times in samples": content | {"times": np.r_[content["times"][:-1], 7.0]},
        "no times": {key: value for key, value in content.items() if key != "times"},
        "integers": content | {"preprocessed_eeg_data": eeg.astype(np.int64)},
    }[what]


@pytest.mark.parametrize("what", ["a channel less", "a sample less", "a picture less", "averaged", "no electrode",
                                  "another electrode",
                                  "times in samples", "no times", "integers"])  # fmt: skip
def test_parts_that_do_not_fit_together_are_refused(tmp_path, what):
    write_preprocessed(tmp_path, nice_dictionary, pickled=True)
    write_pictures(tmp_path / "images")
    path = tmp_path / "sub-01" / "preprocessed_eeg_training.npy"
    path.write_bytes(pickle.dumps(damaged(nice_dictionary(20, 4), what), protocol=4))
    _, training = study(tmp_path).recordings()
    with pytest.raises(UserError, match=r"preprocessed_eeg_training\.npy: (not a preprocessed file|holds 19 pictures)"):
        training.check()


def test_a_folder_with_both_kinds_is_refused(tmp_path, raw_folder):
    shutil.copytree(raw_folder, tmp_path / "both")
    write_preprocessed(tmp_path / "both", osf_dictionary, pickled=False)
    with pytest.raises(UserError, match="raw and preprocessed files"):
        study(tmp_path / "both").recordings()


# ------------------------------------------------------------------------------------------------------ raw recordings


def test_raw_events_are_those_that_mne_finds_without_targets(raw_folder):
    recordings = study(raw_folder).recordings()
    assert [(r.session, r.run) for r in recordings] == [
        ("01", "test"), ("01", "training"), ("02", "test"), ("02", "training"),
    ]  # fmt: skip
    for recording in recordings:
        content = np.load(recording.path, allow_pickle=True).item()
        info = mne.create_info(content["ch_names"], 1000.0, content["ch_types"])
        raw = mne.io.RawArray(content["raw_eeg_data"], info, verbose="ERROR")
        found = mne.find_events(raw, stim_channel="stim", verbose="ERROR")
        expected = found[found[:, 2] != 99999]
        events = recording.events()
        assert [round(e.onset_s * 1000) for e in events] == expected[:, 0].tolist()
        stimuli = study(raw_folder).stimuli[recording.run]
        assert [e.image_id for e in events] == [stimuli[code - 1].image_id for code in expected[:, 2]]
        assert recording.left_out() == {"target": 4}
        assert recording.ch_names() == recording.raw().ch_names == content["ch_names"][:-1]
        np.testing.assert_array_equal(recording.raw().get_data(), content["raw_eeg_data"][:-1])


def test_a_code_beyond_the_list_of_pictures_is_refused(raw_folder, tmp_path):
    shutil.copytree(raw_folder, tmp_path / "raw")
    path = tmp_path / "raw" / "sub-01" / "ses-01" / "raw_eeg_test.npy"
    content = np.load(path, allow_pickle=True).item()
    stim = content["raw_eeg_data"][-1]
    stim[stim == 2] = 3
    np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=r"raw_eeg_test\.npy: shows pictures 1 to 3, the image list has 2"):
        study(tmp_path / "raw").recordings()[0].events()


def published(session: Path) -> tuple[dict, dict]:
    """{(sample, code): whitened epoch} of training and test, by MNE's epochs and scikit-learn's covariance."""
    chosen = {}
    for kind, limit in (("training", 2), ("test", 20)):
        content = np.load(session / f"raw_eeg_{kind}.npy", allow_pickle=True).item()
        info = mne.create_info(content["ch_names"], content["sfreq"], content["ch_types"])
        raw = mne.io.RawArray(content["raw_eeg_data"], info, verbose="ERROR")
        events = mne.find_events(raw, stim_channel="stim", verbose="ERROR")
        events = np.delete(events, np.where(events[:, 2] == 99999)[0], 0)
        raw.pick(list(THINGS_EEG2_63))
        raw.reorder_channels(list(THINGS_EEG2_63))
        cut = mne.Epochs(raw, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), preload=True, verbose="ERROR")
        samples, codes = cut.events[:, 0].copy(), cut.events[:, 2].copy()
        cut.resample(250, verbose="ERROR")
        data = cut.get_data(copy=False)
        assert data.shape[1:] == (63, 300)
        chosen[kind] = {
            code: [(samples[i], data[i, :, 50:]) for i in
                   shuffle(np.where(codes == code)[0], random_state=20200220, n_samples=min(limit, (codes == code).sum()))]
            for code in np.unique(codes)
        }  # fmt: skip
    sigma = np.mean(
        [np.mean([_cov(e.T, shrinkage="auto") for _, e in rows], axis=0) for rows in chosen["training"].values()],
        axis=0,
    )
    white = fractional_matrix_power(sigma, -0.5)
    return tuple(
        {(int(s), int(code)): (e.T @ white).T for code, rows in chosen[kind].items() for s, e in rows}
        for kind in ("training", "test")
    )


def test_the_published_recipe_gives_what_mne_and_scikit_learn_give(raw_folder):
    recordings = study(raw_folder, recipe="published").recordings()
    expected = published(raw_folder / "sub-01" / "ses-01")
    for recording, rows in zip(recordings[:2], reversed(expected), strict=True):
        epoched, events = recording.epoched(), recording.events()
        assert (epoched.sfreq, epoched.tmin, epoched.n_times) == (250.0, 0.0, 250)
        assert epoched.ch_names == list(THINGS_EEG2_63)
        assert len(events) == len(rows) == {"training": 40, "test": 40}[recording.run]
        stimuli = [picture.image_id for picture in study(raw_folder).stimuli[recording.run]]
        for event, eeg in zip(events, epoched.data, strict=True):
            key = (round(event.onset_s * 1000), stimuli.index(event.image_id) + 1)
            np.testing.assert_allclose(eeg, rows[key], atol=2e-4)
        assert recording.left_out()["target"] == 4
        assert recording.left_out()[f"beyond {2 if recording.run == 'training' else 20} repetitions"] in (20, 4)


def test_validation_concepts_do_not_fit_the_whitening(raw_folder):
    def first(**fields):
        return next(iter(study(raw_folder, recipe="published", **fields).recordings()[1].epoched().data))

    assert np.array_equal(first(), first())
    assert not np.allclose(first(), first(validation=("abacus",)))


def test_epochs_that_leave_the_recording_are_counted(raw_folder):
    path = raw_folder / "sub-01" / "ses-01" / "raw_eeg_training.npy"
    file = RawFile(path, study(raw_folder).stimuli["training"])
    whole = len(file.shown)
    file.content["data"] = file.content["data"][:, : file.shown[-1, 0] + 1000]  # tmax is the sample after the last
    chosen, why = choose(file, 100)
    assert (len(chosen), why["outside the recording"]) == (whole - 1, 1)


@pytest.mark.realdata
def test_the_sorted_folders_are_the_real_order_of_the_codes(real_data, tmp_path):
    """16,540 training pictures of 1,654 concepts and 200 test pictures: names and order of the real lists."""
    lists = real_data("things-metadata")
    with (lists / "things_eeg2_stimulus_alignment.csv").open() as file:
        rows = sorted((int(r["eeg_row_index"]), r["image_path"]) for r in csv.DictReader(file) if r["split"] == "seen")
    paths = [path for _, path in rows]
    with (lists / "things_eeg2_test200.tsv").open() as file:
        tests = [(int(r["test_index"]), r["uniqueID"], r["image"]) for r in csv.DictReader(file, delimiter="\t")]
    paths_test = [f"test_images/{i:05d}_{concept}/{image}" for i, concept, image in tests]
    for path in (*paths, *paths_test):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).touch()
    (tmp_path / "sub-01").mkdir()
    found: dict[str, list[Picture]] = study(tmp_path).stimuli
    assert [str(p.path.relative_to(tmp_path / "images")) for p in found["training"]] == paths
    assert [str(p.path.relative_to(tmp_path / "images")) for p in found["test"]] == paths_test
    assert len(found["training"]) == 16_540
    assert len({p.concept for p in found["training"]}) == 1654
    assert len({p.concept for p in found["test"]}) == len(found["test"]) == 200
    assert not {p.concept for p in found["training"]} & {p.concept for p in found["test"]}


def test_text_in_the_place_of_a_file_is_said_to_be_text_for_every_file(tmp_path):
    write_preprocessed(tmp_path, osf_dictionary, pickled=True)
    write_pictures(tmp_path / "images")
    for recording in study(tmp_path).recordings():
        recording.path.write_text("version https://git-lfs.github.com/spec/v1")
    for recording in study(tmp_path).recordings():
        with pytest.raises(
            UserError, match=r"\.npy: neither a NumPy file nor a pickle \(it begins with 'version https"
        ):
            recording.check()


def test_everything_that_is_absent_is_named_at_once(tmp_path):
    for subject in ("01", "02"):
        write_preprocessed(tmp_path, osf_dictionary, pickled=False, subject=subject)
    (tmp_path / "sub-01/preprocessed_eeg_test.npy").unlink()
    (tmp_path / "sub-02/preprocessed_eeg_training.npy").unlink()
    with pytest.raises(UserError) as error:
        study(tmp_path, subjects=["01", "02", "07"]).recordings()
    images, test, training, subjects = str(error.value).splitlines()
    assert "no image_metadata.npy and no pictures" in images
    assert "sub-01/preprocessed_eeg_test.npy: is not there" in test
    assert "sub-02/preprocessed_eeg_training.npy: is not there" in training
    assert "holds no files of 07" in subjects
