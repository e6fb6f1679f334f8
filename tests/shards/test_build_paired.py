import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ttd.config import UserError, load_config
from ttd.data.index import ShardIndex
from ttd.data.ingest import only_build
from ttd.data.reader import ShardReader
from ttd.data.splits import SplitManifest
from ttd.experiments.shards import BuildPairedConfig

ROOT = Path(__file__).parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "shards" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = script("build_paired")


def config_of(study: Path, root: Path, *overrides: str) -> BuildPairedConfig:
    base = [f"study.root={study}", f"output_dir={root}"]
    return load_config(BuildPairedConfig, [ROOT / "configs/shards/simulated_paired.yaml"], [*base, *overrides])


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_bids):
    """Shards of the tiny study, for tests that only look at them."""
    folder = tmp_path_factory.mktemp("built")
    config = config_of(write_bids(folder / "study"), folder / "paired")
    assert build.check(config).problems == []
    build.main(config)
    return config


def test_one_sample_is_one_picture_of_one_subject_with_all_its_repetitions(built):
    for part, n_images, n_rep in (("train", 4, 2), ("validation", 2, 2), ("test", 2, 3)):
        index = ShardIndex.read(built.output_dir / part, open_test=True)
        assert index.n_samples == 2 * n_images
        assert index.subjects == ["01", "02"]
        assert (index.sfreq, index.n_times, index.tmin) == (125, 88, pytest.approx(-0.096))
        assert index.ch_names == ["Fp1", "Fz", "C3", "Cz", "C4", "Pz", "Oz"]
        assert index.facts.simulated
        meta = index.meta(0)
        assert (meta["subject"], meta["image_id"], meta["pairing"]) == ("01", f"{part}-0", "image")
        assert len(meta["onsets"]) == len(meta["runs"]) == n_rep
        assert ShardReader(index).eeg(0).shape == (n_rep, 7, 88)


def test_the_samples_are_those_of_the_recording_at_the_onset(built):
    """Filters shift nothing: the stored epoch correlates with the raw file at its own onset and nowhere else."""
    import mne

    index = ShardIndex.read(built.output_dir / "train")
    meta, eeg = index.meta(0), ShardReader(index).eeg(0)
    stem = f"sub-01_task-things_run-{meta['runs'][1]}_eeg.vhdr"
    raw = mne.io.read_raw_brainvision(built.study.root / "sub-01" / "eeg" / stem, preload=True, verbose="ERROR")
    raw.filter(0.1, 40, verbose="ERROR").set_eeg_reference("average", verbose="ERROR")
    zero = round(meta["onsets"][1] * 250)
    expected = raw.get_data()[:, zero - 24 : zero + 151 : 2] * 1e6
    expected -= expected[:, :13].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(eeg[1], expected, atol=0.05)  # float16


def test_the_statistics_of_the_training_part_stand_in_every_index(built):
    parts = {p: ShardIndex.read(built.output_dir / p, open_test=True) for p in ("train", "validation", "test")}
    train = parts["train"]
    reader = ShardReader(train)
    data = np.concatenate([reader.eeg(i) for i in range(train.n_samples)])  # [R, C, T]
    statistics = train.facts.statistics[train.cap]
    np.testing.assert_allclose(statistics.mean, data.mean(axis=(0, 2)), atol=1e-4)
    np.testing.assert_allclose(statistics.std, data.std(axis=(0, 2)), rtol=1e-4)
    assert all(index.facts.statistics == train.facts.statistics for index in parts.values())


def test_pictures_live_once_under_the_hash_of_their_file(built):
    images = ShardIndex.read(built.output_dir / "images")
    files = sorted((built.study.root / "stimuli").rglob("*.png"))
    assert sorted(images.keys) == sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in files)
    assert len(files) == 8
    seen = ShardIndex.read(built.output_dir / "train").column("image_sha256")
    assert set(seen) <= set(images.keys)


def test_the_manifest_counts_what_the_parts_hold(built):
    manifest = SplitManifest.read(built.output_dir)
    assert manifest.by == "given"
    assert {part: counts.repetitions for part, counts in manifest.counts.items()} == {
        "train": 16,
        "validation": 8,
        "test": 12,
    }
    assert len(manifest.recordings) == 6
    assert ShardIndex.read(built.output_dir / "train").facts.split_fingerprint == manifest.fingerprint


def test_the_same_command_again_finds_the_shards_and_touches_nothing(built):
    before = {p: p.stat().st_mtime_ns for p in built.output_dir.rglob("*")}
    plan = build.check(built)
    assert "already built with these settings" in plan.notes[0]
    build.main(built)
    assert {p: p.stat().st_mtime_ns for p in built.output_dir.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused_by_their_keys(built):
    other = config_of(built.study.root, built.output_dir, "epochs.tmax=0.5", "preprocessing.h_freq=30")
    with pytest.raises(UserError, match=r"other settings: epochs\.tmax, preprocessing\.h_freq; give another"):
        build.check(other)


def test_another_study_of_the_same_size_in_the_same_folder_is_noticed(built):
    signal = next(built.study.root.rglob("*run-01_eeg.eeg"))
    content = bytearray(signal.read_bytes())
    content[len(content) // 2] ^= 1
    good = signal.read_bytes()
    signal.write_bytes(content)
    with pytest.raises(UserError, match="other settings: the study's recordings"):
        build.check(built)
    signal.write_bytes(good)


def test_another_table_of_events_in_the_same_study_is_noticed(built):
    table = next(built.study.root.rglob("*run-01_events.tsv"))
    good = table.read_text()
    first = good.splitlines()[1]
    table.write_text(good.replace(first, first.replace("train", "validation"), 1))
    assert table.read_text() != good
    with pytest.raises(UserError, match="other settings: the study's recordings or events"):
        build.check(built)
    table.write_text(good)


def test_finished_shards_do_not_need_their_study(built):
    elsewhere = built.study.root.with_name("elsewhere")
    built.study.root.rename(elsewhere)
    assert "already built" in build.check(built).notes[0]
    elsewhere.rename(built.study.root)


def test_a_build_that_fails_leaves_nothing(tiny_study, tmp_path):
    signal = tiny_study / "sub-02" / "eeg" / "sub-02_task-things_run-03_eeg.eeg"
    signal.write_bytes(bytes(signal.stat().st_size))  # flat: seen only when it is read
    config = config_of(tiny_study, tmp_path / "paired")
    assert build.check(config).problems == []
    with pytest.raises(UserError, match=r"sub-02.*run-03_eeg\.vhdr: its median channel varies by 0 µV"):
        build.main(config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study"]


def test_leftovers_of_a_killed_build_are_cleared_away(tiny_study, tmp_path):
    config = config_of(tiny_study, tmp_path / "paired")
    (tmp_path / ".paired.building" / "train").mkdir(parents=True)
    build.main(config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["paired", "study"]
    assert json.loads((config.output_dir / "build.json").read_text())["samples"] == {
        "train": 8,
        "validation": 4,
        "test": 4,
    }


def test_all_problems_are_named_before_anything_is_written(tiny_study, tmp_path):
    (tiny_study / "stimuli" / "solid" / "test-1.png").unlink()
    plan = build.check(config_of(tiny_study, tmp_path / "paired", "parts.by=run", "parts.test=['7']"))
    assert any("test-1.png: a picture named by the events is not there" in problem for problem in plan.problems)
    assert any("no run is called 7; there are" in problem for problem in plan.problems)
    assert not (tmp_path / "paired").exists()


def test_parts_that_share_pictures_are_refused(tiny_study, tmp_path):
    path = tiny_study / "sub-01" / "eeg" / "sub-01_task-things_run-03_events.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("test-0", "train-0"), encoding="utf-8")
    with pytest.raises(UserError, match="share 1 image"):
        build.main(config_of(tiny_study, tmp_path / "paired"))
    assert not (tmp_path / "paired").exists()


def test_a_split_by_run_keeps_the_pictures_that_every_run_shows(tiny_study, tmp_path):
    config = config_of(tiny_study, tmp_path / "paired", "parts.by=subject", "parts.test=['02']")
    build.main(config)
    assert ShardIndex.read(config.output_dir / "train").subjects == ["01"]
    assert SplitManifest.read(config.output_dir).shared_images == 8


def test_the_script_ends_with_2_and_one_message_where_signals_are_missing(tiny_study, tmp_path):
    for signal in tiny_study.rglob("*run-01_eeg.eeg"):
        signal.write_bytes(b"")
    command = [sys.executable, "shards/build_paired.py", "--config", "configs/shards/simulated_paired.yaml"]
    command += [f"study.root={tiny_study}", f"output_dir={tmp_path / 'paired'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("the file is empty (0 bytes)") == 2
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study"]


def test_finished_shards_are_recognised_without_torch(built):
    code = (
        "import runpy, sys; sys.argv = ['shards/build_paired.py', '--config', 'configs/shards/simulated_paired.yaml', "
        f"'study.root={built.study.root}', 'output_dir={built.output_dir}']\n"
        "try: runpy.run_path('shards/build_paired.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.realdata
def test_muse_recordings_become_samples_paired_by_class(real_data, tmp_path):
    overrides = [f"study.root={real_data('muse-P300')}", f"output_dir={tmp_path / 'muse'}"]
    config = load_config(BuildPairedConfig, [ROOT / "configs/shards/muse_p300.yaml"], overrides)
    build.main(config)
    train = ShardIndex.read(config.output_dir / "train")
    test = ShardIndex.read(config.output_dir / "test", open_test=True)
    # 1,161 trials; one without a full epoch, 18 above 75 µV (SIMULATION 3b: 1,142 kept).
    assert train.n_samples + test.n_samples == 1142
    assert json.loads((config.output_dir / "build.json").read_text())["dropped"] == {
        "outside the recording": 1,
        "above 75 µV": 18,
    }
    assert train.ch_names == ["TP9", "AF7", "AF8", "TP10"]
    assert {test.meta(i)["runs"][0] for i in range(len(test))} == {"2017-02-04-16_03_08"}
    assert {train.meta(i)["pairing"] for i in range(20)} == {"class"}
    assert set(train.column("label")) == {"target", "nontarget"}
    assert len(ShardIndex.read(config.output_dir / "images")) == 8


def test_a_second_build_leaves_the_first_one_alone(tiny_study, tmp_path):
    config = config_of(tiny_study, tmp_path / "paired")
    with only_build(config.output_dir):
        (tmp_path / ".paired.building").mkdir()
        with pytest.raises(UserError, match=r"output_dir=.*paired: another process is building there"):
            build.main(config)
        assert (tmp_path / ".paired.building").is_dir()
    build.main(config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["paired", "study"]


def test_pictures_that_parts_share_are_found_before_anything_is_written(tiny_study, tmp_path):
    path = tiny_study / "sub-01" / "eeg" / "sub-01_task-things_run-03_events.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("test-0", "train-0"), encoding="utf-8")
    (problem,) = build.check(config_of(tiny_study, tmp_path / "paired")).problems
    assert "train-0.png" in problem
    assert "in several parts" in problem


def test_a_truncated_picture_is_named_by_its_path_before_anything_is_written(tiny_study, tmp_path):
    picture = next(tiny_study.rglob("train-0.png"))
    picture.write_bytes(picture.read_bytes()[:44])
    (problem,) = build.check(config_of(tiny_study, tmp_path / "paired")).problems
    assert problem.startswith(f"{picture}: this picture cannot be used")
