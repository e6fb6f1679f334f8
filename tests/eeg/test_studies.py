import json

import mne
import numpy as np
import pytest

from ttd.config import UserError
from ttd.eeg.montage import EEGMMIDB_64, MUSE_4
from ttd.eeg.studies import open_study
from ttd.eeg.studies.bids import BIDSConfig
from ttd.eeg.studies.muse import MuseP300Config
from ttd.eeg.studies.recordings import RecordingsConfig


def test_a_recording_written_by_pybv_comes_back_within_half_a_step_of_int16(tmp_path, tiny_study):
    import pybv

    rng, stem = np.random.default_rng(1), "sub-01_task-things_run-01_eeg"
    names = ["Fp1", "Fz", "C3", "Cz", "C4", "Pz", "Oz"]
    steps = rng.integers(-2000, 2000, (7, 3000))  # multiples of 0.1 µV: exact
    data = (steps + np.copysign(0.01, steps)) * 1e-7  # pybv cuts towards zero
    folder = tiny_study / "sub-01" / "eeg"
    pybv.write_brainvision(
        data=data, sfreq=250, ch_names=names, fname_base=stem, folder_out=folder, resolution=0.1, unit="µV",
        fmt="binary_int16", overwrite=True,
    )  # fmt: skip
    raw = open_study(BIDSConfig(root=tiny_study)).recordings()[0].raw()
    assert raw.ch_names == names
    assert raw.info["sfreq"] == 250
    np.testing.assert_allclose(raw.get_data() * 1e6, steps * 0.1, atol=1e-6)


def test_bids_events_name_picture_concept_and_part_and_skip_rows_without_a_picture(tiny_study):
    study = open_study(BIDSConfig(root=tiny_study, title="Simulated"))
    recordings = study.recordings()
    assert [(r.subject, r.run) for r in recordings] == [(s, r) for s in ("01", "02") for r in ("01", "02", "03")]
    events = recordings[0].events()
    assert len(events) == 8  # the pause has no picture
    assert [event.onset_s for event in events] == pytest.approx(2 + 0.8 * np.arange(8))
    first = events[0]
    assert (first.image_id, first.concept, first.part, first.label) == ("train-0", "solid", "train", "picture")
    assert first.image_path == tiny_study / "stimuli" / "solid" / "train-0.png"
    assert (study.title, study.licence, study.simulated) == ("Simulated", "CC0", True)


def test_a_recording_that_was_not_downloaded_is_named_so(tiny_study):
    recording = open_study(BIDSConfig(root=tiny_study)).recordings()[0]
    signal = recording.path.with_suffix(".eeg")
    signal.unlink()
    signal.symlink_to("../../.git/annex/objects/xx/yy/MD5E-s212--abc.eeg")
    with pytest.raises(UserError, match=r"run-01_eeg\.eeg: not downloaded .*datalad get"):
        recording.raw()
    signal.unlink()
    signal.write_text("/annex/objects/MD5E-s212--abc.eeg\n")
    with pytest.raises(UserError, match="not downloaded"):
        recording.raw()


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.eeg", "..", r"C:\x.eeg"])
@pytest.mark.parametrize("key", ["DataFile", "MarkerFile"])
def test_a_brainvision_header_that_points_outside_its_folder_is_refused(tiny_study, key, name):
    recording = open_study(BIDSConfig(root=tiny_study)).recordings()[0]
    lines = recording.path.read_text().splitlines()
    lines = [f"{key}={name}" if line.startswith(f"{key}=") else line for line in lines]
    recording.path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"{key}=.* must be the name of a file beside the header"):
        recording.raw()


def test_a_picture_outside_the_stimuli_is_refused(tiny_study):
    path = tiny_study / "sub-01" / "eeg" / "sub-01_task-things_run-01_events.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("solid/train-1.png", "../../secret.png"), encoding="utf-8")
    with pytest.raises(UserError, match=r"stim_file '\.\./\.\./secret\.png' must lie below stimuli/"):
        open_study(BIDSConfig(root=tiny_study)).recordings()[0].events()


def test_a_folder_that_is_missing_or_no_bids_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match=r"study\.root=.*nowhere: no such folder"):
        open_study(BIDSConfig(root=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no dataset_description"):
        open_study(BIDSConfig(root=tmp_path))
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9.0"}))
    with pytest.raises(UserError, match="holds no EEG recording"):
        open_study(BIDSConfig(root=tmp_path)).recordings()


def write_edf(path, names, seconds=4, sfreq=160):
    rng = np.random.default_rng(0)
    info = mne.create_info(names, sfreq, "eeg")
    raw = mne.io.RawArray(rng.normal(0, 2e-5, (len(names), seconds * sfreq)), info, verbose="ERROR")
    raw.set_annotations(mne.Annotations([0.5], [0], ["T0"]))
    mne.export.export_raw(path, raw, verbose="ERROR")
    return raw


def test_loose_files_are_told_apart_by_name_and_their_electrodes_normalised(tmp_path):
    for name in ("S001R01.edf", "S001R02.edf", "S002R01.edf"):
        written = write_edf(tmp_path / name, ["Fc5.", "Cz..", "ECG", "Iz.."])
    study = open_study(RecordingsConfig(root=tmp_path, title="X", subjects=["001"]))
    recordings = study.recordings()
    assert [(r.subject, r.run) for r in recordings] == [("001", "01"), ("001", "02")]
    raw = recordings[0].raw()
    assert raw.ch_names == ["FC5", "Cz", "Iz"]
    np.testing.assert_allclose(raw.get_data(), written.get_data()[[0, 1, 3]], atol=1e-8)  # 16 bits over ±80 µV


def test_an_edf_whose_line_feeds_were_rewritten_is_refused_even_at_the_right_size(tmp_path):
    path = tmp_path / "S001R01.edf"
    write_edf(path, ["Fc5.", "Cz.."], seconds=20)
    good = path.read_bytes()
    n_header = int(good[184:192])
    broken = good[:n_header] + good[n_header:].replace(b"\n", b"\r\n")
    recording = open_study(RecordingsConfig(root=tmp_path, title="X")).recordings()[0]
    path.write_bytes(broken)
    with pytest.raises(UserError, match=r"S001R01\.edf: .* bytes, but its header promises"):
        recording.raw()
    path.write_bytes(broken[: len(good)])
    with pytest.raises(UserError, match=r"S001R01\.edf: record \d+ does not begin with its time stamp"):
        recording.raw()


def test_an_eye_tracker_file_with_the_same_suffix_is_refused(tmp_path):
    (tmp_path / "S001R01.edf").write_bytes(b"SR_RESEARCH_COMBFILE" + bytes(1000))
    with pytest.raises(UserError, match=r"S001R01\.edf: this is an EyeLink eye tracker's file"):
        open_study(RecordingsConfig(root=tmp_path, title="X")).recordings()[0].check()


def write_muse(root, n=2000, gap_at=None):
    import pandas as pd

    (root / "stimuli").mkdir(parents=True)
    for name in ("target-1.jpg", "target-2.jpg", "nontarget-1.jpg"):
        (root / "stimuli" / name).write_bytes(b"\xff\xd8\xff")
    time_s = 1000 + np.arange(n) / 256
    if gap_at:
        time_s[gap_at:] += 0.5
    table = pd.DataFrame({"timestamps": time_s})
    for i, name in enumerate([*MUSE_4, "Right AUX"]):
        table[name] = np.random.default_rng(i).normal(0, 10, n)
    marker = np.zeros(n, int)
    marker[[300, 700, 1100, 1500]] = [1, 2, 2, 1]
    table["Marker0"] = marker
    folder = root / "subject1" / "session1"
    folder.mkdir(parents=True)
    table.to_csv(folder / "data_2017-02-04-15_45_13.csv.gz", index=False)
    return table


def test_muse_events_are_indexed_by_sample_and_paired_by_class_in_turn(tmp_path):
    table = write_muse(tmp_path, gap_at=900)
    recording = open_study(MuseP300Config(root=tmp_path)).recordings()[0]
    raw, events = recording.raw(), recording.events()
    assert raw.ch_names == list(MUSE_4)  # the auxiliary channel is gone
    np.testing.assert_allclose(raw.get_data() * 1e6, table[list(MUSE_4)].to_numpy().T, rtol=1e-9)
    assert [round(event.onset_s * 256) for event in events] == [300, 700, 1100, 1500]  # the gap does not shift them
    assert [event.image_id for event in events] == ["nontarget-1", "target-1", "target-2", "nontarget-1"]
    assert {event.pairing for event in events} == {"class"}
    assert (recording.subject, recording.session, recording.run) == ("1", "1", "2017-02-04-15_45_13")


def test_muse_epochs_that_span_a_gap_are_left_out_and_counted(tmp_path):
    from ttd.eeg.epochs import EpochsConfig, cut
    from ttd.eeg.preprocessing import PreprocessingConfig, preprocess

    write_muse(tmp_path, gap_at=800)
    recording = open_study(MuseP300Config(root=tmp_path)).recordings()[0]
    onsets = [event.onset_s for event in recording.events()]
    clean = preprocess(recording.raw(), PreprocessingConfig(sfreq=256))
    found = cut(clean, onsets, EpochsConfig(tmin=-0.1, tmax=0.8), sfreq=256)
    assert found.kept == [0, 2, 3]  # 700 + 0.8 s reaches sample 904
    assert found.dropped == {"BAD_gap": 1}


@pytest.mark.realdata
def test_the_muse_recordings_hold_976_other_and_185_target_trials(real_data):
    recordings = open_study(MuseP300Config(root=real_data("muse-P300"))).recordings()
    labels = [event.label for recording in recordings for event in recording.events()]
    assert len(recordings) == 6
    assert (labels.count("nontarget"), labels.count("target")) == (976, 185)


@pytest.mark.realdata
def test_eegmmidb_has_64_electrodes_by_name_and_the_sd_of_eeg(real_data):
    study = open_study(RecordingsConfig(root=real_data("eegmmidb"), title="Schalk2004"))
    assert [r.run for r in study.recordings()] == ["01", "02", "03", "07", "13"]
    raw = study.recordings()[0].raw()
    assert tuple(raw.ch_names) == EEGMMIDB_64
    assert np.median(raw.get_data().std(axis=1)) * 1e6 == pytest.approx(52, abs=10)


@pytest.mark.realdata
def test_closed_eyes_show_their_alpha_rhythm(real_data):
    shares = []
    for recording in open_study(
        RecordingsConfig(root=real_data("eegmmidb"), title="X", runs=["01", "02"])
    ).recordings():
        raw = recording.raw().pick(["O1", "Oz", "O2"])
        spectrum = raw.compute_psd(fmin=2, fmax=40, n_fft=640, verbose="ERROR")
        power = spectrum.get_data().mean(axis=0)
        band = (spectrum.freqs >= 8) & (spectrum.freqs <= 13)
        shares.append(power[band].sum() / power.sum())
    assert shares[0] < 0.4 < 0.5 < shares[1]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("S001R01.crlf-then-truncated-same-size.edf", "does not begin with its time stamp"),
        ("S001R02.html-saved-as.edf", "this is a web page, not a recording"),
    ],
)
def test_malformed_files_are_refused_with_what_is_wrong(real_data, name, words):
    config = RecordingsConfig(root=real_data("malformed"), pattern=name, title="X")
    with pytest.raises(UserError, match=f"{name}: .*{words}"):
        open_study(config).recordings()[0].raw()


@pytest.mark.realdata
def test_a_bids_folder_without_signals_is_refused(real_data):
    study = open_study(BIDSConfig(root=real_data("malformed") / "bids-zero-byte-eeg"))
    with pytest.raises(UserError, match=r"_eeg\.eeg: the file is empty \(0 bytes\): the signals are missing"):
        study.recordings()[0].raw()


@pytest.mark.realdata
def test_a_bids_dataset_with_byte_order_marks_gives_its_64_eeg_channels(real_data):
    recording = open_study(BIDSConfig(root=real_data("bids-tiny"))).recordings()[0]
    assert (recording.subject, recording.session) == ("01", "eeg")
    assert len(recording.raw().ch_names) == 64


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["test.vhdr", "test_old_layout_latin1_software_filter.vhdr"])
def test_old_brainvision_headers_can_be_read(real_data, name):
    pattern = {"pattern": name, "names": r"(?P<subject>test)"}
    raw = (
        open_study(RecordingsConfig(root=real_data("brainvision-variants"), title="X", **pattern)).recordings()[0].raw()
    )
    assert len(raw.ch_names) > 20


def test_loose_files_of_every_known_format_are_found_and_other_files_left_alone(tmp_path):
    raw = mne.io.RawArray(
        np.random.default_rng(0).normal(0, 2e-5, (2, 500)), mne.create_info(["Fz", "Cz"], 100.0, "eeg")
    )
    for i, suffix in enumerate((".edf", ".vhdr")):
        mne.export.export_raw(tmp_path / f"S001R0{i}{suffix}", raw, verbose="ERROR")
    raw.save(tmp_path / "S001R03.fif", verbose="ERROR")
    for name in ("S001R02.set", "S001R04.BDF"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "S001R05.edf").write_text("x")
    recordings = open_study(RecordingsConfig(root=tmp_path, title="X")).recordings()
    assert [r.path.suffix for r in recordings] == [".edf", ".vhdr", ".set", ".fif", ".BDF"]
    assert all(r.raw().ch_names == ["Fz", "Cz"] for r in (*recordings[:2], recordings[3]))


def test_a_folder_without_a_recording_or_with_other_names_says_what_to_change(tmp_path):
    with pytest.raises(UserError, match=r"study\.pattern='\*\*/\*' finds no recording .* adapt study\.pattern"):
        open_study(RecordingsConfig(root=tmp_path, title="X")).recordings()
    for name in ("anna.edf", "bert.edf", "S001R01.edf"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"2 of 3 recordings have names without study\.names=.*anna\.edf, bert\.edf; adapt"
    ):
        open_study(RecordingsConfig(root=tmp_path, title="X")).recordings()
    config = RecordingsConfig(root=tmp_path, title="X", pattern="S*.edf", runs=["7"])
    with pytest.raises(UserError, match=r"none of 1 recordings belongs to .*study\.runs=\['7'\].* 'run': '01'"):
        open_study(config).recordings()
