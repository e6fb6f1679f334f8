"""From the containers of THINGS-EEG2, EEG-ImageNet40 and TTD-net to shards, with the checked-in configurations."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from epoched_files import (
    nice_dictionary,
    osf_dictionary,
    spampinato_trials,
    ttdnet_epochs,
    write_pictures,
    write_preprocessed,
    write_raw,
    write_spampinato,
)
from PIL import Image

from ttd.config import UserError, load_config
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.splits import SplitManifest
from ttd.experiments.shards import BuildPairedConfig, BuildUnlabelledConfig

ROOT = Path(__file__).parents[2]


def build(
    name: str | Path, tmp_path: Path, *overrides: str, script: str = "build_paired", kind: type = BuildPairedConfig
):
    spec = importlib.util.spec_from_file_location(script, ROOT / "shards" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = [f"study.root={tmp_path}", f"output_dir={tmp_path / 'out'}", *overrides]
    config = load_config(kind, [name if isinstance(name, Path) else ROOT / f"configs/shards/{name}.yaml"], base)
    plan = module.check(config)
    if plan.problems:
        raise UserError("; ".join(plan.problems))
    module.main(config)
    return config


def read(config: BuildPairedConfig, part: str) -> tuple[ShardIndex, ShardReader]:
    index = ShardIndex.read(config.output_dir / part, open_test=True)
    return index, ShardReader(index)


GIFFORD = ("study.validation=[abacus]",)


@pytest.mark.parametrize(("name", "make", "shape"), [
    ("gifford2022_17x100", osf_dictionary, (17, 100)), ("gifford2022_63x250", nice_dictionary, (63, 250)),
])  # fmt: skip
def test_preprocessed_epochs_arrive_unchanged_with_all_repetitions(tmp_path, name, make, shape):
    content = write_preprocessed(tmp_path, make, pickled=name.endswith("250"))
    write_pictures(tmp_path / "images")
    config = build(name, tmp_path, *GIFFORD, f"study.images={tmp_path / 'images'}")
    for part, kind, first, n, repetitions in (
        ("train", "training", 0, 10, 4), ("validation", "training", 10, 10, 4), ("test", "test", 0, 2, 80),
    ):  # fmt: skip
        index, reader = read(config, part)
        assert len(index) == n
        assert (index.n_chans, index.n_times) == shape
        for i in range(n):
            assert np.array_equal(
                reader.eeg(i), content[kind]["preprocessed_eeg_data"][first + i].astype(np.float32).astype(np.float16)
            )
            assert len(index.meta(i)["onsets"]) == repetitions
    assert SplitManifest.read(config.output_dir).counts["test"].repetitions == 160


def test_a_filter_asked_of_stored_epochs_is_refused(tmp_path):
    write_preprocessed(tmp_path, osf_dictionary, pickled=False)
    write_pictures(tmp_path / "images")
    images = f"study.images={tmp_path / 'images'}"
    with pytest.raises(
        UserError, match=r"preprocessed_eeg_\w+\.npy: holds epochs .*: preprocessing\.l_freq must be null"
    ):
        build("gifford2022_17x100", tmp_path, *GIFFORD, images, "preprocessing.l_freq=0.5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "n_times", "limits"), [
    ("gifford2022", 301, (6, 44)), ("gifford2022_published", 250, (4, 40)),
])  # fmt: skip
def test_raw_recordings_arrive_through_the_chain_or_the_published_recipe(tmp_path, name, n_times, limits):
    """Two sessions: 3 repetitions of each training picture in each, 22 of each test picture, 4 targets per file. So many
    pictures are for validation here that the gap leaves few for training: it is switched off, and overlap then refused."""
    write_raw(tmp_path)
    write_pictures(tmp_path / "images")
    images = f"study.images={tmp_path / 'images'}"
    with pytest.raises(UserError, match="share raw samples with another part"):
        build(name, tmp_path, *GIFFORD, images, "parts.gap_s=null")
    config = build(name, tmp_path, "study.validation=[]", images)
    report = json.loads((config.output_dir / "build.json").read_text())
    assert report["dropped"]["target"] == 16
    assert report["dropped"].get("beyond 2 repetitions", 0) == (40 if name.endswith("published") else 0)
    for part, n, most in (("train", 20, limits[0]), ("test", 2, limits[1])):
        index, reader = read(config, part)
        assert (len(index), index.n_times, index.n_chans, index.cap) == (n, n_times, 63, "things-eeg2-63")
        assert reader.eeg(0).shape == (most, 63, n_times)
        assert sorted(index.meta(0)["sessions"]) == ["01"] * (most // 2) + ["02"] * (most // 2)


def test_trials_of_eeg_imagenet_arrive_with_their_split(tmp_path):
    write_spampinato(tmp_path)
    for name in spampinato_trials()["images"]:
        path = tmp_path / "images" / name.partition("_")[0] / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (0, 0, 20 * int(name[-2:]) % 255)).save(path)
    # Subject 1 sees pictures 0 to 5 in trials 0 to 5, subject 2 the same in 6 to 11.
    splits = [{"train": [0, 1, 6, 7], "val": [2, 8], "test": [10]}]
    write_spampinato(tmp_path, splits=splits)
    config = build("spampinato2017", tmp_path)
    counts = {part: len(read(config, part)[0]) for part in ("train", "validation", "test")}
    assert counts == {"train": 4, "validation": 2, "test": 1}
    index, reader = read(config, "test")
    expected = spampinato_trials()["dataset"][10]["eeg"].numpy()[:, 20:460]
    np.testing.assert_allclose(reader.eeg(0)[0], expected, rtol=1e-3, atol=1e-5)
    assert index.n_chans == 128
    dropped = json.loads((config.output_dir / "build.json").read_text())["dropped"]
    assert dropped == {"not 450 to 600 samples long": 2, "shorter than 460 samples": 1, "in no part of the split": 2}


def test_epochs_of_ttdnet_arrive_split_by_subject(tmp_path):
    for subject in (1, 4, 5):
        torch.save(ttdnet_epochs(subject=subject), tmp_path / f"sub-{subject:02d}_things_eeg.pth")
    for row in ttdnet_epochs()["dataset"]:
        path = tmp_path / "images" / Path(row["image_path"].replace("\\", "/")).parent.name / row["image_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(row["image_name"]), int(row["image_name"][-6:-5]), 0)).save(path)
    config = build("ttdnet", tmp_path, f"study.images={tmp_path / 'images'}")
    for part, subject in (("train", "01"), ("validation", "05"), ("test", "04")):
        index, reader = read(config, part)
        assert (index.subjects, len(index), index.cap, index.sfreq) == ([subject], 4, "things-eeg1-63", 512.0)
        assert reader.eeg(0).shape == (1, 63, 512)


def test_windows_of_ttdnet_arrive_for_pretraining(tmp_path, monkeypatch):
    monkeypatch.setattr("ttd.eeg.studies.ttdnet.PER_RECORDING", 3)
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((7, 64, 512)).astype(np.float32)
    for i, window in enumerate(windows):
        np.save(tmp_path / f"seg_{i:06d}.npy", window)
    unlabelled = {"script": "build_unlabelled", "kind": BuildUnlabelledConfig}
    runs = "runs.train=['001', '002']"
    with pytest.raises(UserError, match="holds windows, not a recording"):
        build("ttdnet_windows", tmp_path, runs, "windows.stride={train: 256}", **unlabelled)
    config = build("ttdnet_windows", tmp_path, runs, **unlabelled)
    for part, expected in (("validation", windows[:3]), ("train", windows[3:])):
        index, reader = read(config, part)
        assert (len(index), index.cap, index.sfreq) == (len(expected), "eegmmidb-64", 160.0)
        for i, window in enumerate(expected):
            assert np.array_equal(reader.eeg(i)[0], window.astype(np.float16).astype(np.float32))


def test_stored_epochs_of_the_other_parts_are_no_windows_and_damaged_ones_are_counted(tmp_path):
    content = write_preprocessed(tmp_path, osf_dictionary, pickled=False)["training"]
    content["preprocessed_eeg_data"][0, 1, 3, 50] = np.nan
    np.save(tmp_path / "sub-01" / "preprocessed_eeg_training.npy", content, allow_pickle=True)
    write_pictures(tmp_path / "images")
    pretraining = tmp_path / "pretraining.yaml"
    pretraining.write_text(
        "study: {name: gifford2022}\n"
        "preprocessing: {sfreq: 100, l_freq: null, h_freq: null, reference: null}\nwindows: {n_times: 80}\nonly_part: train\n"
    )
    config = build(
        pretraining, tmp_path, *GIFFORD, f"study.images={tmp_path / 'images'}", "runs.train=[training]",
        script="build_unlabelled", kind=BuildUnlabelledConfig,
    )  # fmt: skip
    index, reader = read(config, "train")
    assert len(index) == 10 * 4 - 1  # pictures 10 to 19 are the validation part, one epoch of picture 0 is damaged
    first = content["preprocessed_eeg_data"][0, 0, :, 20:].astype(np.float16)
    assert np.array_equal(reader.eeg(0)[0], first.astype(np.float32))
    assert json.loads((config.output_dir / "build.json").read_text())["dropped"] == {"not finite": 1}
