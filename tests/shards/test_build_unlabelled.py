import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ttd.config import UserError, load_config
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.splits import SplitManifest
from ttd.experiments.shards import BuildUnlabelledConfig

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("build_unlabelled", ROOT / "shards" / "build_unlabelled.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def config_of(
    study: Path, root: Path, *overrides: str, file: str = "simulated_unlabelled.yaml"
) -> BuildUnlabelledConfig:
    base = [f"study.root={study}", f"output_dir={root}"]
    return load_config(BuildUnlabelledConfig, [ROOT / "configs/shards" / file], [*base, *overrides])


def test_windows_come_from_the_named_runs_alone(tiny_study, tmp_path):
    config = config_of(tiny_study, tmp_path / "windows", "windows.n_times=125", "windows.max_windows=null")
    assert build.check(config).problems == []
    build.main(config)
    train, validation = (ShardIndex.read(config.output_dir / part) for part in ("train", "validation"))
    # Run 01 lasts 4 + 8 · 0.8 = 10.4 s, run 02 7.2 s; two subjects, windows of one second.
    assert (len(train), len(validation)) == (20, 14)
    assert {train.meta(i)["runs"][0] for i in range(20)} == {"01"}
    assert {validation.meta(i)["runs"][0] for i in range(14)} == {"02"}
    assert not (config.output_dir / "test").exists()
    assert train.facts.kind == "window"
    eeg = ShardReader(train).eeg(3)
    assert eeg.shape == (1, 7, 125)
    assert np.abs(eeg.mean(axis=1)).max() < 0.05  # average reference, in float16
    assert train.facts.statistics == validation.facts.statistics
    assert SplitManifest.read(config.output_dir).assignments["train"] == ["01//01", "02//01"]


def test_a_limit_takes_the_first_windows_of_every_recording(tiny_study, tmp_path):
    limited = config_of(tiny_study, tmp_path / "windows", "windows.n_times=125", "windows.max_windows=6")
    build.main(limited)
    train = ShardIndex.read(limited.output_dir / "train")
    assert [(train.meta(i)["subject"], train.meta(i)["onsets"][0]) for i in range(6)] == [
        (subject, onset) for subject in ("01", "02") for onset in (0.0, 1.0, 2.0)
    ]


def test_only_the_stretch_of_one_part_is_taken_where_asked(tiny_study, tmp_path):
    more = ["windows.n_times=125", "only_part=train", "runs.validation=[]"]
    config = config_of(tiny_study, tmp_path / "windows", *more)
    build.main(config)
    train = ShardIndex.read(config.output_dir / "train")
    onsets = [train.meta(i)["onsets"][0] for i in range(len(train)) if train.meta(i)["subject"] == "01"]
    assert onsets == pytest.approx([2, 3, 4, 5, 6])  # first event at 2 s, last at 7.6 s


def test_a_part_without_a_run_of_that_name_is_refused(tiny_study, tmp_path):
    plan = build.check(config_of(tiny_study, tmp_path / "windows", "runs.train=['01', '9']"))
    assert plan.problems == ["runs: no run is called 9; there are 01, 02, 03"]
    with pytest.raises(UserError, match="a run may belong to one part only"):
        config_of(tiny_study, tmp_path / "windows", "runs.test=['01']")


@pytest.mark.realdata
def test_eegmmidb_gives_61_half_overlapping_windows_of_the_held_out_run(real_data, tmp_path):
    config = config_of(real_data("eegmmidb"), tmp_path / "windows", file="eegmmidb.yaml")
    assert build.check(config).problems == []
    build.main(config)
    train = ShardIndex.read(config.output_dir / "train")
    test = ShardIndex.read(config.output_dir / "test", open_test=True)
    assert (len(train), len(test)) == (714, 61)  # 6.2 minutes every half second; 2 minutes every 2 s
    assert (train.sfreq, train.n_times, train.n_chans) == (128, 512, 64)
    reader = ShardReader(test)
    first, second = reader.eeg(0).copy(), reader.eeg(1).copy()
    np.testing.assert_array_equal(first[:, :, 256:], second[:, :, :256])


@pytest.mark.realdata
def test_damaged_files_stop_the_build_before_anything_is_written(real_data, tmp_path):
    config = config_of(
        real_data("malformed"), tmp_path / "windows", "runs.train=['*']", "runs.test=[]", file="eegmmidb.yaml"
    )
    plan = build.check(config)
    assert len(plan.problems) == 2
    assert "changed in transfer" in plan.problems[0]
    assert "web page" in plan.problems[1]
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_runs_is_told_how_to_take_everything(tmp_path):
    import mne

    raw = mne.io.RawArray(
        np.random.default_rng(0).normal(0, 1e-5, (2, 1000)), mne.create_info(["Fz", "Cz"], 125.0, "eeg")
    )
    (tmp_path / "study").mkdir()
    raw.save(tmp_path / "study/anna.fif", verbose="ERROR")
    tree = {
        "output_dir": tmp_path / "windows",
        "study": {"name": "recordings", "root": tmp_path / "study", "title": "X", "names": "(?P<subject>[a-z]+)"},
        "preprocessing": {"sfreq": 125},
        "windows": {"n_times": 125},
        "runs": {"train": ["1"]},
    }
    plan = build.check(BuildUnlabelledConfig.model_validate(tree))
    assert plan.problems == ['runs: no run is called 1; this study has no runs: runs.train=["*"]']
    plan = build.check(BuildUnlabelledConfig.model_validate({**tree, "runs": {"train": ["*"]}}))
    assert plan.problems == []
