import shutil
from pathlib import Path

import mne
import numpy as np
import pybv
import pytest

from ttd.config import UserError
from ttd.eeg import files
from ttd.eeg.studies import open_study
from ttd.eeg.studies.recordings import RecordingsConfig


def edf(path: Path, signals: dict[str, int], n_records: int = 4, kind: bytes = b"", stamps: list[float] | None = None):
    """An EDF file of records of one second, byte by byte after the specification; signals → samples per record."""
    signals = dict(signals) | ({"EDF Annotations": 10} if stamps else {})
    n = len(signals)
    fields = [b"0", b"X", b"Startdate 01-JAN-2020 X X X", b"01.01.20", b"00.00.00", b"%d" % (256 * (n + 1)), kind]
    fields += [b"%d" % n_records, b"1", b"%d" % n]
    head = b"".join(f.ljust(w) for f, w in zip(fields, (8, 80, 80, 8, 8, 8, 44, 8, 8, 4), strict=True))
    columns = [([label.split("#")[0].encode() for label in signals], 16), ([b""] * n, 80), ([b"uV"] * n, 8)]
    columns += [([value] * n, 8) for value in (b"-1000", b"1000", b"-32768", b"32767")]
    columns += [([b""] * n, 80), ([b"%d" % count for count in signals.values()], 8), ([b""] * n, 32)]
    head += b"".join(value.ljust(width) for values, width in columns for value in values)
    rng, body = np.random.default_rng(0), b""
    for record in range(n_records):
        for label, count in signals.items():
            if label == "EDF Annotations":
                body += (b"+%g\x14\x14\x00" % stamps[record]).ljust(2 * count, b"\0")
            else:
                body += rng.normal(0, 800, count).astype("<i2").tobytes()
    path.write_bytes(head + body)
    return path


def test_a_well_formed_edf_passes_and_mne_reads_its_samples(tmp_path):
    path = edf(tmp_path / "a.edf", {"Cz": 100, "Pz": 100}, kind=b"EDF+C", stamps=[0.5, 1.5, 2.5, 3.5])
    files.check_signal_file(path)
    raw = mne.io.read_raw_edf(path, verbose="ERROR")
    assert (raw.n_times, raw.ch_names) == (400, ["Cz", "Pz"])


@pytest.mark.parametrize("kind", [b"EDF+C", b"EDF+D"])
def test_a_record_that_starts_later_than_its_place_says_is_refused(tmp_path, kind):
    path = edf(tmp_path / "a.edf", {"Cz": 100}, kind=kind, stamps=[0, 1, 7, 8])
    with pytest.raises(UserError, match=r"a\.edf: record 2 starts at 7 s by its time stamp and at 2 s by its place"):
        files.check_signal_file(path)


def test_a_recording_that_was_never_closed_is_refused(tmp_path):
    path = edf(tmp_path / "a.edf", {"Cz": 100})
    content = path.read_bytes()
    path.write_bytes(content[:236] + b"-1      " + content[244:])
    with pytest.raises(UserError, match="the header counts -1 records: the recording was not closed"):
        files.check_signal_file(path)


def test_one_electrode_under_two_labels_is_refused_as_are_unequal_rates(tmp_path):
    path = edf(tmp_path / "a.edf", {"EEG F1-Ref#1": 100, "EEG F2-Ref": 100, "EEG F1-Ref#2": 100})
    with pytest.raises(UserError, match=r"electrode F1 occurs 2 times \(EEG F1-Ref, EEG F1-Ref\)"):
        files.check_signal_file(path)
    path = edf(tmp_path / "b.edf", {"Cz": 100, "ECG": 200})
    with pytest.raises(UserError, match=r"channel 'Cz' is sampled at 100 Hz, 'ECG' at 200 Hz, and would be resampled"):
        files.check_signal_file(path)
    files.check_signal_file(edf(tmp_path / "c.edf", {"Cz": 100, "ECG": 50}))  # only the ECG is: it is left out anyway


@pytest.mark.parametrize(
    ("at", "text", "words"),
    [
        (252, b"x   ", "the header is damaged"),
        (252, b"9   ", "header bytes for 9 signals"),
        (244, b"-1      ", "records of -1"),
        (236, b"3       ", "bytes, but its header promises"),
        (236, b"99999999", "bytes, but its header promises"),
        (256 + 2 * 216, b"100000  ", "bytes, but its header promises"),
        (256 + 2 * 104, b"1000    ", "'Cz' has no scale"),
        (256, b"C\0\0\0", "labels are not text"),
        (192, b"EDF+C", r"EDF\+C without a signal EDF Annotations"),
    ],
)
def test_damaged_edf_headers_are_refused_in_one_sentence(tmp_path, at, text, words):
    path = edf(tmp_path / "a.edf", {"Cz": 100, "Pz": 100})
    content = path.read_bytes()
    path.write_bytes(content[:at] + text + content[at + len(text) :])
    with pytest.raises(UserError, match=words) as caught:
        files.check_signal_file(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def brainvision(tmp_path) -> Path:
    data = np.random.default_rng(0).normal(0, 1e-5, (3, 1000))
    events = [{"onset": 990, "duration": 1, "description": 1, "type": "Stimulus"}]
    pybv.write_brainvision(
        data=data, sfreq=250, ch_names=["Fz", "Cz", "Pz"], fname_base="a", folder_out=tmp_path, events=events
    )
    files.check_signal_file(tmp_path / "a.vhdr")
    return tmp_path / "a.vhdr"


@pytest.mark.parametrize(("cut", "words"), [(5, "cut or is not the header's"), (12 * 100, "marker at sample 991")])
def test_a_cut_brainvision_file_is_refused_where_mne_reads_a_shorter_recording(brainvision, cut, words):
    signal = brainvision.with_suffix(".eeg")
    signal.write_bytes(signal.read_bytes()[:-cut])
    lines = [line for line in brainvision.read_text().splitlines() if not line.startswith("DataPoints")]
    brainvision.write_text("\n".join(lines))
    assert mne.io.read_raw_brainvision(brainvision, verbose="ERROR").n_times < 1000
    with pytest.raises(UserError, match=rf"a\.eeg: .*{words}"):
        files.check_signal_file(brainvision)


def test_the_number_of_samples_that_a_brainvision_header_states_must_be_there(brainvision):
    text = brainvision.read_text()
    brainvision.write_text(text.replace("NumberOfChannels=3", "NumberOfChannels=3\nDataPoints=1200"))
    with pytest.raises(UserError, match="bytes are not 1200 samples of 3 channels"):
        files.check_signal_file(brainvision)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("NumberOfChannels=3", "NumberOfChannels=-3", "the header is damaged"),
        ("NumberOfChannels=3", "NumberOfChannels=4", "the header is damaged"),
        ("Ch3=Pz", "Ch3=CZ", r"electrode Cz occurs 2 times \(Cz, CZ\)"),
        ("BinaryFormat=", "BinaryFormat=X", "BinaryFormat=XIEEE_FLOAT_32: known are INT_16"),
    ],
)
def test_damaged_brainvision_headers_are_refused(brainvision, old, new, words):
    text = brainvision.read_text()
    assert old in text
    brainvision.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=words):
        files.check_signal_file(brainvision)


def test_a_header_of_megabytes_is_refused_unread(brainvision):
    with brainvision.open("ab") as file:
        file.truncate(1_000_000_000)  # sparse
    with pytest.raises(UserError, match="too many for a BrainVision header"):
        files.check_signal_file(brainvision)


def test_one_recording_under_two_names_is_found_by_its_content(tmp_path):
    for name, n_records in (("a.edf", 4), ("b.edf", 4), ("c.edf", 5)):
        edf(tmp_path / name, {"Cz": 100, "Pz": 100}, n_records)
    content = (tmp_path / "b.edf").read_bytes()
    (tmp_path / "b.edf").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # another last byte: another recording
    names = [[tmp_path / name] for name in ("a.edf", "b.edf", "c.edf")]
    assert files.duplicates(names) == []
    shutil.copy(tmp_path / "a.edf", tmp_path / "z.edf")
    problems = files.duplicates([*names, [tmp_path / "z.edf"]])
    assert problems == [
        f"{tmp_path / 'a.edf'} and {tmp_path / 'z.edf'}: the same recording under two names; remove one of them"
    ]


def test_several_recordings_in_one_file_are_no_duplicates(tmp_path):
    path = edf(tmp_path / "all.edf", {"Cz": 100})
    assert files.duplicates([[path], [path]]) == []


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("duplicate_channel_labels.edf", "electrode F1 occurs 2 times"),
        ("test_uneven_samp.edf", "is sampled at 12.8 Hz, .* at 100 Hz"),
        ("test_stim_channel.edf", "no channel is an electrode of the 10-05 system"),  # triggers and a test tone
    ],
)
def test_edf_files_with_ambiguous_channels_are_refused(real_data, name, words):
    config = RecordingsConfig(root=real_data("edf-variants"), pattern=name, names="(?P<subject>.*)", title="X")
    with pytest.raises(UserError, match=f"{name}: .*{words}"):
        open_study(config).recordings()[0].raw()
