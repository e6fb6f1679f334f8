"""Electrodes chosen by name, on the way from recordings to shards."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ttd.config import load_config
from ttd.data.index import ShardIndex
from ttd.experiments.shards import BuildPairedConfig, BuildUnlabelledConfig

ROOT = Path(__file__).parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "shards" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KINDS = {
    "build_paired": (BuildPairedConfig, "simulated_paired.yaml"),
    "build_unlabelled": (BuildUnlabelledConfig, "simulated_unlabelled.yaml"),
}


def config_of(name: str, study: Path, root: Path, *overrides: str):
    schema, file = KINDS[name]
    windows = ["windows.n_times=125"] if name == "build_unlabelled" else []
    return load_config(
        schema, [ROOT / "configs/shards" / file], [f"study.root={study}", f"output_dir={root}", *windows, *overrides]
    )


@pytest.mark.parametrize("name", list(KINDS))
def test_a_missing_electrode_is_interpolated_counted_and_stored(tiny_study, tmp_path, name):
    wanted = ["Oz", "Pz", "CPz", "Cz", "C3", "C4", "Fz"]  # CPz was not recorded, Fp1 is not wanted
    asked = [f"preprocessing.channels=[{', '.join(wanted)}]", "preprocessing.interpolate_missing=true"]
    config, build = config_of(name, tiny_study, tmp_path / "out", *asked), script(name)
    assert build.check(config).problems == []
    build.main(config)
    index = ShardIndex.read(config.output_dir / "train")
    assert index.ch_names == wanted
    interpolated = index.facts.preprocessing["interpolated"]
    assert set(interpolated) >= {"sub-01_run-01", "sub-02_run-01"}
    assert set(map(tuple, interpolated.values())) == {("CPz",)}
    report = json.loads((config.output_dir / "build.json").read_text())["channels"]["sub-01_run-01"]
    assert report["interpolated"] == ["CPz"]
    assert list(report["sd_uv"]) == ["Oz", "Pz", "Cz", "C3", "C4", "Fz"]
    eeg = index.read_member(0, "eeg.npy").astype(float)[0]
    neighbours = eeg[[1, 3]].mean(axis=0)
    assert np.corrcoef(eeg[2], neighbours)[0, 1] > 0.8


@pytest.mark.parametrize("name", list(KINDS))
def test_recordings_that_lack_an_electrode_are_all_named_before_anything_is_written(tiny_study, tmp_path, name):
    config = config_of(name, tiny_study, tmp_path / "out", "preprocessing.channels=[Oz, CPz]")
    problems = script(name).check(config).problems
    assert len(problems) == (6 if name == "build_paired" else 4)  # without the test runs
    assert all("has no electrode CPz; leave it out of preprocessing.channels, or set" in line for line in problems)
    assert not config.output_dir.exists()


@pytest.mark.parametrize("name", list(KINDS))
def test_one_recording_under_two_names_is_refused_by_both(tiny_study, tmp_path, name):
    first, second = (tiny_study / f"sub-0{s}/eeg/sub-0{s}_task-things_run-02_eeg.eeg" for s in (1, 2))
    shutil.copy(first, second)
    problems = script(name).check(config_of(name, tiny_study, tmp_path / "out")).problems
    assert problems == [f"{first} and {second}: the same recording under two names; remove one of them"]
