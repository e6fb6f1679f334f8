"""THINGS-EEG1 through ``build_paired``: what goes in comes out or is counted; what is absent is said at once."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from things_eeg1_study import (
    made_table,
    real_table,
    squeeze,
    write_participants,
    write_pictures,
    write_subject,
)

from ttd.config import load_config
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.splits import SplitManifest
from ttd.eeg.montage import THINGS_EEG1_63
from ttd.experiments.shards import BuildPairedConfig

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/shards/grootswagers2022.yaml"
spec = importlib.util.spec_from_file_location("build_paired", ROOT / "shards" / "build_paired.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

SHORT = ("preprocessing.l_freq=null", "preprocessing.notch=null", "epochs={tmin: -0.02, tmax: 0.04, baseline: null}")
GIVEN = "parts={by: given, validation: [], test: [], unseen: null, gap_s: null}"


def config_of(root, *overrides):
    paths = (f"study.root={root}", f"study.images={root / 'images'}", f"output_dir={root / 'paired'}")
    return load_config(BuildPairedConfig, [CONFIG], [*paths, *SHORT, *overrides])


@pytest.fixture
def root(tmp_path):
    """Subject 2 with the study's cap, subject 49 without FCz, subject 6 excluded."""
    write_participants(tmp_path, {"06": "Did not complete exp"}, ["02", "06", "49"])
    table = squeeze(made_table())
    write_subject(tmp_path, "02", table)
    write_subject(tmp_path, "06", table, layout=14)
    write_subject(tmp_path, "49", table, ch_names=["FFC1h", *(n for n in THINGS_EEG1_63[::-1] if n != "FCz")])
    write_pictures(tmp_path / "images", table)
    return tmp_path


SEQUENCES = "parts={by: sequence, validation: ['2'], test: ['3', '4'], unseen: [thing0], gap_s: 0.1}"


def test_sequences_are_held_out_whole_and_the_concepts_of_the_test_are_left_out(root):
    config = config_of(root, SEQUENCES)
    plan = build.check(config)
    assert plan.problems == []
    build.main(config)
    parts = {
        part: ShardIndex.read(config.output_dir / part, open_test=True) for part in ("train", "validation", "test")
    }
    # Of 12 main pictures per subject 3 show thing0, and one is a target. Two validation pictures, twice each, less a
    # target.
    assert {part: len(index) for part, index in parts.items()} == {"train": 2 * 5, "validation": 2 * 3, "test": 2 * 2}
    assert "thing0" not in {*parts["train"].column("concept"), *parts["validation"].column("concept")}
    assert set(parts["test"].column("concept")) == {"thing0", "thing1"}
    report = json.loads((config.output_dir / "build.json").read_text())
    assert report["dropped"] == {"target": 2, "target in a validation trial": 2, "concept of the test": 6}
    assert report["presentations"] == 32
    manifest = SplitManifest.read(config.output_dir)
    assert manifest.assignments["test"] == ["02///3", "02///4", "49///3", "49///4"]


def test_each_subject_has_one_line_that_says_what_was_found(root):
    notes = build.check(config_of(root, SEQUENCES)).notes
    expected = [
        "sub-06: left out, as the study says: Did not complete exp; study.include=['06'] takes it in",
        "sub-02: 5 train, 3 validation, 3 test, left out 1 (target), left out 1 (target in a validation trial), left out 3 "
        "(concept of the test); 16 rows of 21 columns (12 in the main part, 4 validation), onsets in samples, 16 of them at "
        "markers",
    ]
    assert notes[:2] == expected
    assert notes[2].startswith("sub-49: 5 train, 3 validation, 3 test")


def test_the_subject_without_fcz_gets_it_from_its_neighbours_and_the_index_says_so(root):
    config = config_of(root, SEQUENCES)
    build.main(config)
    train = ShardIndex.read(config.output_dir / "train")
    assert train.ch_names == list(THINGS_EEG1_63)
    assert "FCz" in json.dumps(train.facts.preprocessing["interpolated"])
    reader = ShardReader(train)
    fcz = [np.abs(reader.eeg(i)[0, -1]).max() for i in range(len(train)) if train.meta(i)["subject"] == "49"]
    assert min(fcz) > 0


def test_repetitions_stay_in_the_order_of_time_although_they_wait_on_disk(root):
    config = config_of(root, GIVEN)
    build.main(config)
    index = ShardIndex.read(config.output_dir / "validation")
    metas = [index.meta(i) for i in range(len(index))]
    assert [(meta["subject"], meta["image_id"], len(meta["onsets"])) for meta in metas] == [
        (subject, image, n) for subject in ("02", "49") for image, n in (("thing0_13s", 2), ("thing1_13s", 1))
    ]
    assert all(meta["onsets"] == sorted(meta["onsets"]) for meta in metas)
    assert not list(config.output_dir.rglob("tmp*"))


def test_absent_pictures_are_named_with_what_to_get(root):
    (root / "images" / "thing1" / "thing1_02s.jpg").unlink()
    (problem,) = build.check(config_of(root, SEQUENCES)).problems[:1]
    assert "thing1_02s.jpg: a picture named by the events is not there" in problem
    assert "python shards/fetch.py --study things_images" in problem
    plan = build.check(config_of(root, SEQUENCES, "study.images=nowhere"))
    assert plan.problems[0].startswith("study.images=nowhere: no such folder; `python shards/fetch.py")


def test_a_picture_that_changes_during_the_build_is_noticed(root, monkeypatch):
    from ttd.config import UserError
    from ttd.data.ingest import StudyWriter

    config, finish = config_of(root, SEQUENCES), StudyWriter.finish

    def later(*arguments, **facts):
        path = root / "images" / "thing2" / "thing2_01s.jpg"
        path.write_bytes(path.read_bytes() + b"x")
        finish(*arguments, **facts)

    monkeypatch.setattr(StudyWriter, "finish", later)
    with pytest.raises(UserError, match=r"thing2_01s\.jpg: this picture was changed during the build"):
        build.main(config)
    assert not config.output_dir.exists()


@pytest.mark.realdata
def test_without_signals_the_command_ends_with_2_and_says_for_each_subject_how_to_get_them(real_data, tmp_path):
    command = [sys.executable, "shards/build_paired.py", "--config", "configs/shards/grootswagers2022.yaml"]
    command += [f"study.root={real_data('things-eeg1-ds003825').resolve()}", f"output_dir={tmp_path / 'paired'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stderr.removeprefix("build_paired.py: ").splitlines()
    absent = [line for line in lines if ": not downloaded: " in line]
    assert len(absent) == 46
    assert all(
        "MD5" in line and "python shards/fetch.py --study grootswagers2022 subjects=[" in line for line in absent
    )
    left_out = [line[:6] for line in lines if "left out, as the study says" in line]
    assert left_out == ["sub-01", "sub-06", "sub-18", "sub-23"]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.realdata
def test_a_whole_subject_with_its_published_events_goes_to_shards(real_data, tmp_path):
    """All 24,648 rows of subject 2, ten samples apart, sequences 1.5 s."""
    table = squeeze(real_table(real_data("things-eeg1-ds003825"), "02"), pause=1500)
    write_participants(tmp_path, {}, ["02"])
    write_subject(tmp_path, "02", table)
    write_pictures(tmp_path / "images", table)
    config = config_of(tmp_path)
    assert build.check(config).problems == []
    build.main(config)
    report = json.loads((config.output_dir / "build.json").read_text())
    assert report["presentations"] == 24_648
    assert (report["dropped"]["target"], report["dropped"]["target in a validation trial"]) == (292, 44)
    test = ShardIndex.read(config.output_dir / "test", open_test=True)
    assert len(test) == 200
    assert sum(len(test.meta(i)["onsets"]) for i in range(200)) == 2400 - 44
    train = ShardIndex.read(config.output_dir / "train")
    # 372 of 1,854 concepts are left out; rounds 1 to 11 train. Targets are counted first.
    assert len(train) + report["samples"]["validation"] == 22_248 - 292 - report["dropped"]["concept of the test"]
    assert len(set(train.column("concept"))) == 1854 - 372
    assert set(report["dropped"]) == {
        "target",
        "target in a validation trial",
        "concept of the test",
    }  # no gap is needed
