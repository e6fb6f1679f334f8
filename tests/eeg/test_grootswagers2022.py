import collections
import re

import numpy as np
import pytest
from mne.channels import make_standard_montage
from things_eeg1_study import (
    LAYOUTS,
    made_table,
    real_table,
    squeeze,
    write_participants,
    write_subject,
)

from ttd.config import UserError
from ttd.eeg.montage import THINGS_EEG1_63
from ttd.eeg.studies import open_study
from ttd.eeg.studies.grootswagers2022 import Grootswagers2022Config

LINK = "../../.git/annex/objects/m3/gj/MD5E-s813274560--601785979be3f533e4b188f2f53d1e12{0}/x{0}"


def recording_of(root, subject="02", **config):
    study = open_study(Grootswagers2022Config(root=root, images=root / "images", subjects=[subject], **config))
    return study.recordings()[0]


@pytest.fixture
def root(tmp_path):
    """One subject: 12 main and 4 validation presentations, one target in each."""
    write_participants(tmp_path, {}, ["02"])
    write_subject(tmp_path, "02", squeeze(made_table()))
    return tmp_path


@pytest.mark.parametrize("layout", [21, 19])
def test_concept_part_and_sequence_come_right_from_either_layout(root, layout):
    write_subject(root, "02", squeeze(made_table()), layout=layout)
    events = recording_of(root).events()
    assert len(events) == 14
    first, last = events[0], events[-1]
    assert (first.image_id, first.concept, first.part, first.sequence) == ("thing0_01s", "thing0", "train", "0")
    assert (last.image_id, last.concept, last.part, last.sequence) == ("thing1_13s", "thing1", "validation", "4")
    assert {event.concept for event in events} == {f"thing{i}" for i in range(4)}  # none is called -1
    assert first.image_path == root / "images" / "thing0" / "thing0_01s.jpg"
    assert recording_of(root).left_out() == {"target": 1, "target in a validation trial": 1}
    assert f"16 rows of {layout} columns (12 in the main part, 4 validation)" in recording_of(root).remark()


def test_onsets_in_samples_and_in_seconds_give_the_same_times(root):
    table = squeeze(made_table())
    samples = [event.onset_s for event in recording_of(root).events()]
    assert "onsets in samples, 16 of them at markers" in recording_of(root).remark()
    seconds = table.assign(onset=(table["onset"].astype(float) / 1000).astype(str))
    write_subject(root, "02", seconds.assign(stim=seconds["stim"].str.replace("\\", "/")))
    assert [event.onset_s for event in recording_of(root).events()] == pytest.approx(samples)
    assert samples[0] == pytest.approx(0.3)
    assert "onsets in seconds, 16 of them at markers" in recording_of(root).remark()


def test_onsets_that_lie_beside_the_markers_are_refused(root):
    path = root / "sub-02" / "eeg" / "sub-02_task-rsvp_events.tsv"
    table = squeeze(made_table())
    table.assign(onset=(table["onset"].astype(int) + 5).astype(str)).to_csv(path, sep="\t", index=False)
    with pytest.raises(UserError, match=r"taken as samples, 16 of 16 onsets have no marker E1 within 2 samples"):
        recording_of(root).events()


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("onset", "n/a", "the onsets are not numbers that increase"),
        ("stim", r"stimuli\..\..\secret.jpg", "does not end in <concept>_<number>"),
        ("object", "-1", "a validation trial .* shows a picture of the main part"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(root, column, value, words):
    table = squeeze(made_table())
    table.loc[3, column] = value
    table.to_csv(root / "sub-02" / "eeg" / "sub-02_task-rsvp_events.tsv", sep="\t", index=False)
    with pytest.raises(UserError, match=words):
        recording_of(root).events()


def test_subjects_that_the_study_excludes_come_in_by_name_alone(root):
    write_participants(root, {"06": "Did not complete exp"}, ["02", "06"])
    write_subject(root, "06", squeeze(made_table()), layout=14)
    study = open_study(Grootswagers2022Config(root=root, images=root))
    assert [recording.subject for recording in study.recordings()] == ["02"]
    assert study.excluded() == {"06": "Did not complete exp; study.include=['06'] takes it in"}
    study = open_study(Grootswagers2022Config(root=root, images=root, include=["06"]))
    assert [recording.subject for recording in study.recordings()] == ["02", "06"]
    assert study.excluded() == {}
    with pytest.raises(UserError, match="there is no subject 7"):
        open_study(Grootswagers2022Config(root=root, images=root, include=["7"]))


def test_a_cap_of_127_channels_gives_the_electrodes_of_the_study_by_name(root):
    others = [name for name in make_standard_montage("colin27_1005").ch_names if name.endswith("h")][:65]
    cap = [name for name in reversed(THINGS_EEG1_63) if name != "FCz"]  # FCz was the reference
    header = write_subject(root, "02", squeeze(made_table()), ch_names=[*others, *cap])
    assert len(others) + len(cap) == 127
    raw = recording_of(root).raw()
    assert raw.ch_names == [name for name in THINGS_EEG1_63 if name != "FCz"]
    samples = np.fromfile(header.with_suffix(".eeg"), np.float32).reshape(-1, 127)
    np.testing.assert_allclose(raw.get_data(["Fp1"])[0] * 1e6, samples[:, 65 + cap.index("Fp1")], rtol=1e-5)


def test_epochs_over_a_pause_of_the_recorder_are_left_out_and_counted(root):
    from ttd.data.pairing import pieces
    from ttd.eeg.epochs import EpochsConfig
    from ttd.eeg.preprocessing import PreprocessingConfig

    markers = root / "sub-02" / "eeg" / "sub-02_task-rsvp_eeg.vmrk"
    markers.write_text(markers.read_text() + "Mk99=New Segment,,331,1,0,20200101121000000000\n")
    dropped = collections.Counter()
    cleaning = PreprocessingConfig(sfreq=250, l_freq=None, h_freq=100)
    epoch = EpochsConfig(tmin=-0.02, tmax=0.015, baseline=None)
    found = list(pieces(recording_of(root), cleaning, epoch, dropped, {}))
    # Shown at samples 300, (310 target), 320, 330; epochs reach 20 back and 15 on.
    assert dropped == {"EDGE new segment": 2}
    assert len(found) == 12


@pytest.mark.parametrize("kind", ["broken link", "pointer", "table"])
def test_signals_that_were_not_downloaded_are_named_with_size_and_md5(root, kind):
    for suffix in (".eeg", ".vhdr", ".vmrk"):
        path = root / "sub-02" / "eeg" / f"sub-02_task-rsvp_eeg{suffix}"
        path.unlink()
        if kind == "broken link":
            path.symlink_to(LINK.format(suffix))
        elif kind == "pointer":
            path.write_text("/annex/objects/" + LINK.rpartition("/objects/")[2].format(suffix).split("/")[2] + "\n")
    if kind == "table":
        lines = [f"sub-02/eeg/sub-02_task-rsvp_eeg{s}\t{LINK.format(s)}" for s in (".eeg", ".vhdr", ".vmrk")]
        (root / "annex-symlinks.tsv").write_text("\n".join(["path\tsymlink_target", *lines]))
    recording = recording_of(root)
    with pytest.raises(UserError) as error:
        recording.check()
    message = str(error.value)
    one = r"sub-02_task-rsvp_eeg\{} \(813.3 MB, MD5 601785979be3f533e4b188f2f53d1e12\)"
    assert re.match("sub-02: not downloaded: " + ", ".join(one.format(s) for s in (".eeg", ".vhdr", ".vmrk")), message)
    assert "python shards/fetch.py --study grootswagers2022 subjects=[2]" in message
    assert "datalad get" in message
    assert len(recording.events()) == 14  # the table is there
    assert "not compared with markers (not downloaded)" in recording.remark()


def test_a_signal_file_shorter_than_its_link_says_is_refused(root):
    line = f"sub-02/eeg/sub-02_task-rsvp_eeg.eeg\t{LINK.format('.eeg')}"
    (root / "annex-symlinks.tsv").write_text(f"path\tsymlink_target\n{line}\n")
    with pytest.raises(UserError, match=r"sub-02: cut short: sub-02_task-rsvp_eeg\.eeg \(.* of 813,274,560 bytes\)"):
        recording_of(root).check()


def from_real(folder, layout):
    """The tables of subjects 2 and 6 as they are, and one in the layout of subject 1 made from that of subject 2."""
    table = real_table(folder, "06" if layout == 14 else "02")
    if layout == 19:
        table = table[table["object"] != "-1"].copy()
        surplus = table.index[table["istarget"] == "1"][264:]  # subject 1 had 264 targets
        table.loc[surplus, "istarget"] = "0"
    return table


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("layout", "subject", "rows", "parts", "left_out"),
    [
        (21, "02", 24648, {"train": 21956, "validation": 2356}, {"target": 292, "target in a validation trial": 44}),
        (14, "06", 12360, {"train": 12212}, {"target": 148}),
        (19, "01", 22248, {"train": 21984}, {"target": 264}),
    ],
)
def test_every_row_of_the_published_tables_becomes_an_epoch_or_is_counted(
    real_data, tmp_path, layout, subject, rows, parts, left_out
):
    from ttd.data.pairing import pieces
    from ttd.eeg.epochs import EpochsConfig
    from ttd.eeg.preprocessing import PreprocessingConfig

    table = from_real(real_data("things-eeg1-ds003825"), layout)
    assert len(table) == rows
    write_participants(tmp_path, {}, [subject])
    write_subject(tmp_path, subject, squeeze(table, step=3, pause=30), ch_names=THINGS_EEG1_63[:4], layout=layout)
    recording = recording_of(tmp_path, subject)
    dropped = collections.Counter(recording.left_out())
    assert dropped == left_out
    cleaning = PreprocessingConfig(sfreq=250, l_freq=None, h_freq=100)
    epoch = EpochsConfig(tmin=-0.02, tmax=0.04, baseline=None)
    found = collections.Counter(piece.event.part for piece in pieces(recording, cleaning, epoch, dropped, {}))
    assert found == parts
    assert dropped == left_out  # no epoch was lost on the way
    assert found.total() + dropped.total() == rows
    assert f"{rows} of them at markers" in recording.remark()
    assert len(LAYOUTS[layout].split()) == layout


@pytest.mark.realdata
def test_the_published_onsets_are_samples_and_become_seconds(real_data):
    root = real_data("things-eeg1-ds003825")
    recording = next(
        r for r in open_study(Grootswagers2022Config(root=root, images=root)).recordings() if r.subject == "02"
    )
    events = recording.events()
    assert (events[0].onset_s, events[-1].onset_s) == (38.306, 3210.648)
    # Against the stimulus computer's clock, which BIDS readers never see: equal within a millisecond or so.
    clock = real_table(root, "02").query("istarget == '0'")["time_stimon"].astype(float).to_numpy()
    steps = np.diff([event.onset_s for event in events]) - np.diff(clock)
    assert np.abs(steps).max() < 0.0015


@pytest.mark.realdata
def test_of_each_subject_that_the_clone_knows_it_is_said_that_the_signals_are_absent(real_data):
    root = real_data("things-eeg1-ds003825")
    study = open_study(Grootswagers2022Config(root=root, images=root))
    assert (len(study.recordings()), sorted(study.excluded())) == (46, ["01", "06", "18", "23"])
    for recording in study.recordings():
        with pytest.raises(UserError, match=rf"^sub-{recording.subject}: not downloaded: .*\.eeg \(.*, MD5 \w{{32}}\)"):
            recording.check()
