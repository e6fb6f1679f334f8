"""What the two THINGS-EEG studies share, counted from their published lists, and the concepts that follow from it."""

import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest
from things_eeg1_study import real_table

from ttd.config import UserError
from ttd.data.overlap import concept_lists, leak_table, read_concepts, read_lists

ROOT = Path(__file__).parents[2]
SPLITS = ROOT / "configs" / "splits"


def write_lists(folder):
    """Two concepts in the first study, three pictures each; the second trains on one and tests on the other."""
    main = [("cat", f"cat_0{i}s.jpg") for i in (1, 2, 3)] + [("dog", f"dog_0{i}s.jpg") for i in (1, 2, 3)]
    for name, rows in (("images", main), ("validation200", [("dog", "dog_13n.jpg")])):
        lines = ["object\tstimname", *("\t".join(row) for row in rows)]
        (folder / f"things_eeg1_{name}.tsv").write_text("\n".join(lines))
    seen = [f"seen,training_images/00001_cat/cat_0{i}s.jpg" for i in (1, 2)]
    unseen = [f"unseen,test_images/00001_dog/dog_{i:02d}s.jpg" for i in (3, 14)]
    (folder / "things_eeg2_stimulus_alignment.csv").write_text("\n".join(["split,image_path", *seen, *unseen]))
    return folder


def test_pictures_and_concepts_that_two_studies_share_are_counted_with_their_trials(tmp_path):
    table = {
        (line.what, line.within): (line.n, line.shared, line.trials)
        for line in leak_table(read_lists(write_lists(tmp_path)))
    }
    assert table["THINGS-EEG2 test pictures", "THINGS-EEG1 main"] == (2, 1, 1)
    assert table["THINGS-EEG2 test concepts", "THINGS-EEG1 main"] == (1, 1, 3)
    assert table["THINGS-EEG2 test concepts", "THINGS-EEG1 validation"] == (1, 1, 12)
    assert table["THINGS-EEG2 training concepts", "THINGS-EEG1 validation"] == (1, 0, 0)


def test_a_list_that_is_missing_or_has_other_columns_is_named(tmp_path):
    with pytest.raises(UserError, match=r"things_eeg1_images\.tsv: no such list"):
        read_lists(tmp_path)
    (write_lists(tmp_path) / "things_eeg1_images.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match="lacks the columns object, stimname"):
        read_lists(tmp_path)
    (tmp_path / "list.json").write_text('{"concepts": 3}')
    with pytest.raises(ValueError, match="must be a list of names"):
        read_concepts(tmp_path / "list.json")


def test_the_checked_in_lists_hold_200_200_and_372_concepts_of_which_28_are_common():
    eeg1, eeg2, both = (set(read_concepts(SPLITS / f"things_{name}.json")) for name in ("eeg1", "eeg2", "eeg1_eeg2"))
    assert (len(eeg1), len(eeg2), len(both), len(eeg1 & eeg2)) == (200, 200, 372, 28)
    assert both == eeg1 | eeg2


@pytest.mark.realdata
def test_the_published_lists_confirm_the_leak_table_and_the_checked_in_lists(real_data):
    lists = read_lists(real_data("things-metadata"))
    table = {(line.what.removeprefix("THINGS-EEG2 "), line.within[12:]): line for line in leak_table(lists)}
    shared = {key: line.shared for key, line in table.items()}
    assert shared == {
        ("training pictures", "main"): 16_540,
        ("training pictures", "validation"): 0,
        ("test pictures", "main"): 178,
        ("test pictures", "validation"): 0,
        ("training concepts", "main"): 1654,
        ("training concepts", "validation"): 172,
        ("test concepts", "main"): 200,
        ("test concepts", "validation"): 28,
    }
    assert table["test concepts", "main"].trials == 2400
    assert table["test concepts", "validation"].trials == 28 * 12
    for name, (about, concepts) in concept_lists(lists).items():
        assert json.loads((SPLITS / f"{name}.json").read_text()) == {"about": about, "concepts": concepts}


@pytest.mark.realdata
def test_leaving_out_the_test_concepts_of_the_second_study_takes_2400_trials_of_a_subject_of_the_first(real_data):
    """Counted in the published events of subject 2, targets and all."""
    table = real_table(real_data("things-eeg1-ds003825"), "02")
    concept = table["stim"].str.split("\\").str[1]
    unseen = concept.isin(read_concepts(SPLITS / "things_eeg2.json"))
    assert collections.Counter(table["isteststim"][unseen]) == {"0": 2400, "1": 336}
    assert int((~unseen & (table["isteststim"] == "0")).sum()) == 19_848


@pytest.mark.realdata
def test_the_script_prints_the_table_and_writes_the_lists_where_asked(real_data, tmp_path):
    lists = f"lists={real_data('things-metadata').resolve()}"
    command = [sys.executable, "shards/leak_table.py", lists, f"splits={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "THINGS-EEG2 test pictures in THINGS-EEG1 main: 178 of 200 (178 trials of each subject)" in done.stdout
    assert "things_eeg2.json: the 200 test concepts of THINGS-EEG2: 200" in done.stdout
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in SPLITS.iterdir()}
