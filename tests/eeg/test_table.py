"""One's own recordings by a table: what was shown when is read exactly, and every mistake of the table is named at once."""

from __future__ import annotations

import random
from pathlib import Path

import mne
import numpy as np
import pytest
from PIL import Image

from ttd.config import UserError
from ttd.eeg.studies import open_study
from ttd.eeg.studies.table import TableConfig

NAMES, SFREQ = ["Fz", "Cz", "Pz", "Oz"], 200.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two recordings of 30 s in two formats, three pictures."""
    rng = np.random.default_rng(0)
    for stem, suffix in (("sub-01_run-1", ".edf"), ("sub-02_ses-b_run-1", ".vhdr")):
        info = mne.create_info(NAMES, SFREQ, "eeg")
        raw = mne.io.RawArray(rng.normal(0, 1e-5, (4, int(30 * SFREQ))), info, verbose="ERROR")
        raw.export(tmp_path / f"{stem}{suffix}", verbose="ERROR")
    for name in ("dog/a.png", "dog/b.png", "cat.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return tmp_path


def study(root: Path, table: str, encoding: str = "utf-8", **more):
    (root / "events.csv").write_bytes(table.encode(encoding))
    return open_study(TableConfig(root=root, title="Mine2026", **more))


def mistakes(root: Path, table: str, **more) -> list[str]:
    with pytest.raises(UserError) as error:
        study(root, table, **more).recordings()
    head, *lines = str(error.value).splitlines()
    assert head == f"{root / 'events.csv'}: {len(lines)} mistakes"
    return [line.strip() for line in lines]


GOOD = """recording,onset,image,concept,label,part
sub-02_ses-b_run-1.vhdr,3,cat.png,,pet,test
sub-01_run-1.edf,2.5,dog/b.png,hound,,train
sub-01_run-1.edf,1.25,dog\\a.png,,,train
"""


def test_rows_become_events_of_their_recordings_in_the_order_of_time(root):
    first, second = study(root, GOOD).recordings()
    assert (first.name, second.name) == ("sub-01_run-1", "sub-02_ses-b_run-1")
    a, b = first.events()
    assert (a.onset_s, a.image_id, a.concept, a.label, a.part) == (1.25, "dog/a", "dog", "dog", "train")
    assert (b.onset_s, b.image_id, b.concept, b.label) == (2.5, "dog/b", "hound", "hound")
    (cat,) = second.events()
    assert (cat.concept, cat.label, cat.part, cat.image_path) == ("cat", "pet", "test", root / "pictures/cat.png")
    for recording in (first, second):
        recording.check()
        raw = recording.raw()
        assert (raw.ch_names, raw.info["sfreq"]) == (NAMES, SFREQ)
        assert 5 < np.std(raw.get_data()) * 1e6 < 15


@pytest.mark.parametrize(("unit", "onset"), [("s", "1.25"), ("ms", "1250"), ("samples", "250")])
def test_onsets_are_read_in_the_unit_that_is_stated(root, unit, onset):
    (recording,) = study(
        root, f"recording,onset,image\nsub-01_run-1.edf,{onset},cat.png\n", onset_unit=unit
    ).recordings()
    assert recording.events()[0].onset_s == pytest.approx(1.25)
    assert recording.events()[0].part is None


def test_a_table_from_a_spreadsheet_with_semicolons_and_a_byte_order_mark_is_read(root):
    table = '\ufeffRecording;Onset;Image;comment\r\n"sub-01_run-1.edf";1.5;cat.png;"one; two"\r\n;;;\r\n'
    (recording,) = study(root, table).recordings()
    assert [event.onset_s for event in recording.events()] == [1.5]


def test_every_mistake_is_named_at_once_with_line_column_value_and_remedy(root):
    (root / "pictures/word.png").write_text("not a picture")
    (root / "pictures/lost.png").symlink_to(root / "nowhere")
    (root / "sub-09_run-1.edf").symlink_to(root / "nowhere")
    (root / "pictures/dog/a.jpg").write_bytes((root / "pictures/dog/a.png").read_bytes())
    (root / "other.edf").write_bytes((root / "sub-01_run-1.edf").read_bytes())
    found = mistakes(
        root,
        "recording,onset,image,concept,part\n"
        "sub-01_run-1.edf,1,dog/a.png,dog,train\n"
        "sub-01_run-2.edf,1,cat.png,cat,train\n"
        "sub-01_run-1.edf,2;5,cat.png,cat,train\n"
        "sub-01_run-1.edf,,cat.png,cat,training\n"
        "sub-01_run-1.edf,-1,cats.png,cat,test\n"
        "sub-01_run-1.edf,5000,../events.csv,cat,test\n"
        "sub-01_run-1.edf,3,word.png,cat,test\n"
        "sub-01_run-1.edf,1.0,dog/b.png,dog,test\n"
        "sub-01_run-1.edf,4,dog/a.jpg,wolf,test\n"
        "sub-01_run-1.edf,5,dog/b.png,wolf,\n"
        "other.edf,5,cat.png,cat,test\n"
        "events.csv,5,cat.png,cat,test\n"
        "sub-01_run-1.edf,6,cat.png\n"
        "sub-09_run-1.edf,7,lost.png,cat,test\n",
    )
    expected = [
        ("line 3, column recording: 'sub-01_run-2.edf' is not there", "did you mean 'sub-01_run-1.edf'?"),
        ("line 4, column onset: '2;5' is not a number", ""),
        ("line 5, column onset: '' is not a number", ""),
        ("line 5, column part: 'training' is none of train, validation, test", ""),
        ("line 6, column onset: '-1' must be a number from 0 on", ""),
        ("line 6, column image: 'cats.png' is not there", "did you mean 'cat.png'?"),
        (
            "line 7, column onset: '5000' lies after the end of the recording (30.0 s)",
            "if the column is not in s, say study.onset_unit=ms",
        ),
        ("line 7, column image: '../events.csv' must be a path below", "pictures"),
        ("line 8, column image: 'word.png' is neither a JPEG nor a PNG", "convert it"),
        ("line 9, column onset: '1.0' stands in line 2 already, for the same recording", ""),
        ("line 10, column image: 'dog/a.jpg' and 'dog/a.png' have one name", "rename"),
        ("line 10, column concept: 'wolf' but line 2 calls the same picture 'dog'", ""),
        ("line 11, column concept: 'wolf' but line 9 calls the same picture 'dog'", "make them agree"),
        ("line 12, column recording: 'other.edf' does not say whose it is", "adapt study.names"),
        ("line 13, column recording: 'events.csv' is no kind of recording known here", ".vhdr, .edf"),
        ("line 14: has 3 fields, the header 5", ""),
        ("line 15, column recording: 'sub-09_run-1.edf' is a link to a file that is not there", "datalad get"),
        ("line 15, column image: 'lost.png' is a link to a file that is not there", "copy the file itself"),
        ("column part: filled in some lines and empty in others", ""),
    ]
    assert len(found) == len(expected), found
    for line, (beginning, hint) in zip(found, expected, strict=True):
        assert beginning in line
        assert hint in line


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("recordings,onset,image\nx,1,y\n", "line 1: needs the column recording; is it the one called 'recordings'?"),
        ("recording,onset,image,onset\n", "line 1: column onset occurs twice"),
        ("recording,onset,image\n", "no line below the header"),
        ('recording,onset,image\n"sub-01_run-1.edf,1,cat.png\n', "is a quotation mark missing?"),
        ("recording;onset;image\nsub-01_run-1.edf;1,5;cat.png\n", "'1,5' is not a number; write 1.5"),
    ],
)
def test_a_table_that_is_no_table_is_refused_with_its_line(root, table, words):
    assert words in "\n".join(mistakes(root, table))


def test_tables_that_are_absent_empty_or_in_another_encoding_are_named(root):
    with pytest.raises(UserError, match=r"events.csv: no such file"):
        open_study(TableConfig(root=root, title="Mine2026")).recordings()
    with pytest.raises(UserError, match=r"the table is empty; its first line must be recording,onset,image"):
        study(root, "\n").recordings()
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 23\); save it as"):
        study(root, "recording,onset,image\nsü,1,x\n", encoding="latin-1").recordings()


def test_two_recordings_of_one_name_are_a_mistake(root):
    (root / "copy").mkdir()
    (root / "copy/sub-01_run-1.edf").write_bytes((root / "sub-01_run-1.edf").read_bytes())
    table = "recording,onset,image\nsub-01_run-1.edf,1,cat.png\ncopy/sub-01_run-1.edf,1,cat.png\n"
    assert "are both subject '01', session '', run '1' by study.names" in mistakes(root, table)[0]


def test_a_pattern_of_ones_own_says_whose_a_recording_is(root):
    (root / "anna.edf").write_bytes((root / "sub-01_run-1.edf").read_bytes())
    table = "recording,onset,image\nanna.edf,1,cat.png\n"
    (recording,) = study(root, table, names=r"(?P<subject>[a-z]+)\.edf").recordings()
    assert recording.name == "sub-anna"
    with pytest.raises(ValueError, match="must hold a group"):
        TableConfig(root=root, title="Mine2026", names="x")


def test_damaged_tables_are_refused_or_give_events_that_lie_in_their_recordings(root):
    rng, refused = random.Random(0), 0
    for _ in range(200):
        table = bytearray(GOOD.encode())
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(table))
            table[at : at + rng.choice([0, 1, 1, 9])] = rng.choice(
                [b"", b"\x00", b'"', b",", b"\n", b"nan", rng.randbytes(2)]
            )
        (root / "events.csv").write_bytes(table)
        try:
            found = open_study(TableConfig(root=root, title="Mine2026")).recordings()
        except UserError:
            refused += 1
            continue
        for event in (event for recording in found for event in recording.events()):
            assert 0 <= event.onset_s < 30
            assert event.image_path is not None
            assert event.image_path.resolve().is_relative_to(root / "pictures")
            assert event.part in ("train", "validation", "test", None)
    assert 100 < refused < 200


def test_a_mistake_that_many_lines_make_is_told_once(root):
    rows = [f"sub-01_run-2.edf,{i},cat.png\n" for i in range(55)]
    (found,) = mistakes(root, "recording,onset,image\n" + "".join(rows))
    assert found.startswith("line 2 and 54 more, column recording: 'sub-01_run-2.edf' is not there")


def test_a_wrong_unit_is_one_mistake_and_names_the_other_units(root):
    rows = [f"sub-01_run-1.edf,{1000 * i},cat.png\n" for i in range(1, 20)]
    (found,) = mistakes(root, "recording,onset,image\n" + "".join(rows))
    assert found.startswith("line 2 and 18 more, column onset: '1000' lies after the end of the recording (30.0 s)")
    assert found.endswith("if the column is not in s, say study.onset_unit=ms or study.onset_unit=samples")
