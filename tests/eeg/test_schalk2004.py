import mne
import numpy as np
import pytest

from ttd.config import UserError
from ttd.eeg.montage import EEGMMIDB_64
from ttd.eeg.studies import open_study
from ttd.eeg.studies.recordings import RecordingsConfig
from ttd.eeg.studies.schalk2004 import MEANING, Schalk2004Config


def write_run(root, subject, run, sfreq=160, texts=("T0", "T1", "T2"), names=("Fc5.", "Cz..", "Iz..")):
    """Four seconds of noise with annotations one second apart."""
    path = root / f"S{subject}" / f"S{subject}R{run}.edf"
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    info = mne.create_info(list(names), sfreq, "eeg")
    raw = mne.io.RawArray(rng.normal(0, 2e-5, (len(names), 4 * sfreq)), info, verbose="ERROR")
    raw.set_annotations(mne.Annotations(np.arange(len(texts)), 0.5, list(texts)))
    mne.export.export_raw(path, raw, verbose="ERROR")
    return path


def test_runs_are_found_by_subject_and_number_and_other_files_are_left_alone(tmp_path):
    for subject, run in (("001", "03"), ("001", "04"), ("088", "03")):
        write_run(tmp_path, subject, run)
    (tmp_path / "S001" / "notes.edf").write_bytes(b"x")
    found = open_study(Schalk2004Config(root=tmp_path)).recordings()
    assert [(r.subject, r.run) for r in found] == [("001", "03"), ("001", "04"), ("088", "03")]
    found = open_study(Schalk2004Config(root=tmp_path, subjects=["001"], runs=["04"])).recordings()
    assert [(r.name) for r in found] == ["sub-001_run-04"]
    with pytest.raises(UserError, match=r"of the chosen subjects and runs; get the recordings from PhysioNet"):
        open_study(Schalk2004Config(root=tmp_path, runs=["99"])).recordings()


def test_the_rate_is_that_of_the_header_and_names_are_those_of_the_10_05_system(tmp_path):
    write_run(tmp_path, "088", "03", sfreq=128)
    raw = open_study(Schalk2004Config(root=tmp_path)).recordings()[0].raw()
    assert raw.info["sfreq"] == 128
    assert raw.ch_names == ["FC5", "Cz", "Iz"]


@pytest.mark.parametrize(
    ("run", "labels"),
    [
        ("03", ["rest", "left fist", "right fist"]),
        ("04", ["rest", "left fist, imagined", "right fist, imagined"]),
        ("05", ["rest", "both fists", "both feet"]),
        ("14", ["rest", "both fists, imagined", "both feet, imagined"]),
    ],
)
def test_an_annotation_means_what_its_run_makes_of_it(tmp_path, run, labels):
    write_run(tmp_path, "001", run)
    events = open_study(Schalk2004Config(root=tmp_path)).recordings()[0].events()
    assert [event.label for event in events] == labels
    assert [event.onset_s for event in events] == pytest.approx([0, 1, 2])
    assert {event.image_path for event in events} == {None}


def test_all_fourteen_runs_have_a_meaning_and_the_first_two_are_baselines(tmp_path):
    assert sorted(MEANING) == [f"{run:02d}" for run in range(1, 15)]
    write_run(tmp_path, "001", "02", texts=["T0"])
    events = open_study(Schalk2004Config(root=tmp_path)).recordings()[0].events()
    assert [event.label for event in events] == ["baseline, eyes closed"]


def test_an_annotation_that_the_run_cannot_have_and_a_channel_that_is_no_electrode_are_refused(tmp_path):
    write_run(tmp_path, "001", "01", texts=["T1"])
    write_run(tmp_path, "001", "03", names=("Fc5.", "Cz..", "Nose"))
    first, second = open_study(Schalk2004Config(root=tmp_path)).recordings()
    with pytest.raises(UserError, match=r"annotation 'T1' at 0 s does not belong to run 01"):
        first.events()
    with pytest.raises(UserError, match=r"no electrodes of the 10-05 system: NOSE"):
        second.raw()


@pytest.mark.realdata
def test_the_class_reads_the_same_samples_as_loose_recordings_do(real_data):
    root = real_data("eegmmidb")
    ours = open_study(Schalk2004Config(root=root)).recordings()
    loose = open_study(RecordingsConfig(root=root, title="Schalk2004")).recordings()
    assert (
        [r.name for r in ours]
        == [r.name for r in loose]
        == [f"sub-001_run-{n}" for n in ("01", "02", "03", "07", "13")]
    )
    for mine, other in zip(ours, loose, strict=True):
        assert tuple(mine.raw().ch_names) == EEGMMIDB_64
        np.testing.assert_array_equal(mine.raw().get_data(), other.raw().get_data())


@pytest.mark.realdata
def test_run_3_alternates_between_rest_and_one_of_two_fists(real_data):
    events = open_study(Schalk2004Config(root=real_data("eegmmidb"), runs=["03"])).recordings()[0].events()
    labels = [event.label for event in events]
    assert len(labels) == 30
    assert set(labels[::2]) == {"rest"}
    assert set(labels[1::2]) == {"left fist", "right fist"}
