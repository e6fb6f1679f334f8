"""A study that is built subject by subject and merged is the study that is built at once."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from things_eeg1_study import made_table, squeeze, write_participants, write_pictures, write_subject

from ttd.config import UserError, load_config
from ttd.data import merging
from ttd.data.index import ShardIndex
from ttd.data.ingest import only_build
from ttd.data.portions import find, read
from ttd.data.reader import ShardReader
from ttd.data.scaling import ChannelStatistics
from ttd.data.splits import SplitManifest, open_test, read_ledger
from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.data.verify import verify
from ttd.data.whitening import normaliser_of
from ttd.experiments.shards import BuildPairedConfig, BuildUnlabelledConfig, MergeConfig

ROOT = Path(__file__).parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "shards" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paired, unlabelled, merge = (script(name) for name in ("build_paired", "build_unlabelled", "merge"))
SUBJECTS = ("01", "02", "03")
WINDOWS = ("windows.n_times=125", "windows.max_windows=20")


def build(entry, study: Path, root: Path, *overrides: str) -> None:
    schema, file = {
        paired: (BuildPairedConfig, "simulated_paired.yaml"),
        unlabelled: (BuildUnlabelledConfig, "simulated_unlabelled.yaml"),
    }[entry]
    config = load_config(
        schema, [ROOT / "configs/shards" / file], [f"study.root={study}", f"output_dir={root}", *overrides]
    )
    assert entry.check(config).problems == []
    entry.main(config)


def portions(entry, study: Path, root: Path, *overrides: str, subjects=SUBJECTS) -> Path:
    """Shards of each subject alone, in folders of ``root``."""
    for subject in subjects:
        build(entry, study, root / subject, f'only_subjects=["{subject}"]', *overrides)
    return root


def merged(inputs: Path, root: Path) -> list[str]:
    """Merge, unless something is wrong with that."""
    config = MergeConfig(inputs=inputs, output_dir=root)
    problems = merge.check(config).problems
    if not problems:
        merge.main(config)
    return problems


def joined(inputs: Path, root: Path) -> None:
    """Merge without looking for problems, and without a page."""
    merging.merge(read(find(inputs)[0])[0], root, lambda items, desc: items)


def index_of(root: Path, part: str) -> ShardIndex:
    return ShardIndex.read(root / part, open_test=True)


def told(root: Path, name: str) -> dict:
    return json.loads((root / name).read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_bids) -> Path:
    """Three subjects, the electrodes of each at a level of its own."""
    root = write_bids(tmp_path_factory.mktemp("study") / "bids", n_subjects=3)
    for number, subject in enumerate(SUBJECTS):
        for path in (root / f"sub-{subject}").rglob("*_eeg.eeg"):
            path.write_bytes((np.fromfile(path, np.int16) * (1 + number)).astype(np.int16).tobytes())
    return root


@pytest.fixture(scope="module")
def both(study, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Folders of the whole, of the portions, and of what they merge into; three samples in a tar."""
    folder = tmp_path_factory.mktemp("paired")
    build(paired, study, folder / "whole", "samples_per_shard=3")
    portions(paired, study, folder / "portions", "samples_per_shard=3")
    assert merged(folder / "portions", folder / "merged") == []
    return folder / "whole", folder / "portions", folder / "merged"


@pytest.fixture
def copied(both, tmp_path) -> Path:
    """The portions, to do something to."""
    return shutil.copytree(both[1], tmp_path / "portions")


def same_samples(one: Path, other: Path) -> None:
    parts = sorted(path.parent.name for path in one.glob("*/index.json"))
    assert parts == sorted(path.parent.name for path in other.glob("*/index.json"))
    for part in parts:
        a, b = index_of(one, part), index_of(other, part)
        assert a.keys == b.keys
        for i in range(len(a)):
            for name, value in ShardReader(a).read(i).items():
                np.testing.assert_array_equal(value, ShardReader(b).read(i)[name])
        apart = {"shards", "index_sha256"}
        assert a.facts.model_dump(exclude=apart | {"facts_sha256"}) == b.facts.model_dump(
            exclude=apart | {"facts_sha256"}
        )
        assert list(a.facts.caps) == list(b.facts.caps)
        for name in ("subject", "cap", "image_sha256", "image_id", "concept", "label"):
            np.testing.assert_array_equal(a.codes(name), b.codes(name))
    assert told(one, "build.json") == told(other, "build.json")
    assert told(one, "split.json") == told(other, "split.json")


def test_what_is_merged_is_what_is_built_at_once(both):
    whole, _, together = both
    same_samples(whole, together)
    assert len(index_of(together, "train").facts.shards) == 6  # three subjects with four samples; the whole has four
    assert (whole / "images/index.json").read_bytes() == (together / "images/index.json").read_bytes()
    assert told(whole, "quality/quality.json") == told(together, "quality/quality.json")
    report = verify(together)
    assert (report.findings, report.n_samples) == ([], 12 + 6 + 6 + 8)


def test_where_tars_end_alike_the_folders_are_the_same_to_the_byte(study, tmp_path):
    build(paired, study, tmp_path / "whole", "samples_per_shard=2")
    portions(paired, study, tmp_path / "portions", "samples_per_shard=2")
    assert merged(tmp_path / "portions", tmp_path / "merged") == []
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(names) > 10
    for name in names:
        if name.name != "index.html":  # its figures have names that are drawn at random
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes(), name


def test_training_sees_the_same_batches_bit_for_bit(both):
    whole, _, together = both
    streams = []
    for root in (whole, together):
        config = DataConfig(shards=root, repetitions="random_mean_k", k=2, time_jitter=2, noise=0.1, picture_size=8)
        streams.append(Stream(open_reader(config), config, seed=7, global_batch_size=5).batches())
    for _ in range(6):  # two passes and a half
        one, other = (next(stream) for stream in streams)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (normaliser_of(index_of(root, "test")) for root in (whole, together))
    np.testing.assert_array_equal(one.matrices, other.matrices)
    np.testing.assert_array_equal(one.means, other.means)


def test_statistics_are_those_of_all_samples(both):
    train = index_of(both[2], "train")
    data = np.concatenate([ShardReader(train).eeg(i) for i in range(len(train))])
    levels = [ShardReader(train).eeg(i).std() for i in (0, 4, 8)]
    assert levels[2] > 2 * levels[0]  # subjects differ
    found = train.facts.statistics[train.cap]
    np.testing.assert_allclose(found.mean, data.mean(axis=(0, 2)), atol=1e-4)
    np.testing.assert_allclose(found.std, data.std(axis=(0, 2)), rtol=1e-4)


def test_pooled_moments_are_those_of_everything_at_once():
    rng = np.random.default_rng(0)
    data = [rng.normal(5 * i, 1 + i, (n, 3, 7)) for i, n in enumerate((1, 4, 2))]
    moments = []
    for one in data:
        statistics = ChannelStatistics(3)
        statistics.add(one)
        moments.append(json.loads(json.dumps(statistics.moments())))
    pooled = ChannelStatistics.pooled(moments).result()
    np.testing.assert_allclose(pooled["mean"], np.concatenate(data).mean(axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(pooled["std"], np.concatenate(data).std(axis=(0, 2)), rtol=1e-12)


def test_the_whole_studys_command_finds_its_shards_built(both, study):
    together = both[2]
    overrides = [f"study.root={study}", f"output_dir={together}", "samples_per_shard=3"]
    config = load_config(BuildPairedConfig, [ROOT / "configs/shards/simulated_paired.yaml"], overrides)
    assert "already built with these settings" in paired.check(config).notes[0]


def test_tars_are_linked_and_the_portions_stay(both):
    _, inputs, together = both
    linked = list((together / "train").glob("*.tar"))
    assert [path.stat().st_nlink for path in linked] == [2] * 6
    assert (inputs / "02/train/000000.tar").samefile(together / "train/000002.tar")
    assert not (inputs / "02/quality").exists()


def test_on_another_disk_tars_are_copied(both):
    _, inputs, together = both
    if Path("/dev/shm").stat().st_dev == inputs.stat().st_dev:
        pytest.skip("/dev/shm and the temporary folder are one disk")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        config = MergeConfig(inputs=inputs, output_dir=Path(place) / "merged")
        assert "copy (they lie on another disk)" in merge.check(config).notes[0]
        joined(inputs, config.output_dir)
        same_samples(together, config.output_dir)
        assert {path.stat().st_nlink for path in config.output_dir.rglob("*.tar")} == {1}


def test_the_same_command_again_finds_what_was_merged_even_without_the_portions(both, tmp_path, capsys):
    _, inputs, together = both
    before = {path: path.stat().st_mtime_ns for path in together.rglob("*")}
    (tmp_path / "inputs").mkdir()
    shutil.copytree(inputs / "02", tmp_path / "inputs/02")
    for some in (inputs, tmp_path / "inputs", tmp_path / "gone"):
        config = MergeConfig(inputs=some, output_dir=together)
        assert merge.check(config).notes == [f"{together}: already merged, nothing to do"]
        merge.main(config)
    assert {path: path.stat().st_mtime_ns for path in together.rglob("*")} == before


def test_windows_are_merged_too_and_their_number_is_that_of_the_whole(study, tmp_path):
    build(unlabelled, study, tmp_path / "whole", *WINDOWS)
    portions(unlabelled, study, tmp_path / "portions", *WINDOWS)
    assert merged(tmp_path / "portions", tmp_path / "merged") == []
    same_samples(tmp_path / "whole", tmp_path / "merged")
    # At most twenty of three recordings: seven each, though one subject alone has ten.
    assert len(index_of(tmp_path / "merged", "train")) == 21


def test_a_subject_without_a_training_part_can_be_a_portion(study, tmp_path):
    by_subject = ("parts={by: subject, validation: ['01'], test: ['03']}",)
    build(paired, study, tmp_path / "whole", *by_subject)
    portions(paired, study, tmp_path / "portions", *by_subject)
    assert {path.name for path in (tmp_path / "portions/03").iterdir() if path.is_dir()} == {"test", "images"}
    assert index_of(tmp_path / "portions/03", "test").facts.statistics == {}
    assert merged(tmp_path / "portions", tmp_path / "merged") == []
    same_samples(tmp_path / "whole", tmp_path / "merged")
    assert SplitManifest.read(tmp_path / "merged").shared_images == 8


def test_what_no_subject_has_is_refused_as_in_a_whole_build(study, tmp_path):
    lists = ("parts={by: subject, test: ['01', '04', '05']}",)
    portions(paired, study, tmp_path / "portions", *lists)
    assert merged(tmp_path / "portions", tmp_path / "merged") == [
        "parts: no subject is called 04",
        "parts: no subject is called 05",
    ]
    portions(paired, study, tmp_path / "none", "parts={by: subject, test: ['01', '02', '03']}")
    assert merged(tmp_path / "none", tmp_path / "merged") == ["parts: nothing is left for training"]


def test_a_portion_cannot_be_trained_on(both):
    config = DataConfig(shards=both[1] / "01")
    with pytest.raises(UserError, match="statistics"):
        Stream(open_reader(config), config, seed=0, global_batch_size=2)


def test_subjects_that_no_portion_holds_are_listed(copied, tmp_path):
    shutil.rmtree(copied / "01")
    shutil.rmtree(copied / "03")
    first, third = merged(copied, tmp_path / "merged")
    assert first.startswith(
        "sub-01: no portion holds sub-01_run-01, sub-01_run-02, sub-01_run-03; build it with only_sub"
    )
    assert third.startswith("sub-03: no portion holds")
    assert not (tmp_path / "merged").exists()


def test_everything_that_is_no_finished_portion_is_named(both, copied, tmp_path):
    (copied / "02/build.json").unlink()
    shutil.copytree(both[0], copied / "whole")
    problems = merged(copied, tmp_path / "merged")
    assert [line.split(": ")[0] for line in problems[:2]] == [str(copied / "02"), str(copied / "whole")]
    assert "build.json is missing or damaged" in problems[0]
    assert "was not built with only_subjects" in problems[1]


def test_other_settings_are_named_by_their_keys(both, study, tmp_path):
    shutil.copytree(both[1], tmp_path / "portions")
    shutil.rmtree(tmp_path / "portions/03")
    portions(paired, study, tmp_path / "portions", "epochs.tmax=0.5", "samples_per_shard=3", subjects=["03"])
    (problem,) = merged(tmp_path / "portions", tmp_path / "merged")
    assert problem.endswith("were built with different settings: epochs.tmax")


def test_one_recording_in_two_portions_is_refused(copied, tmp_path):
    shutil.copytree(copied / "02", copied / "again")
    (problem,) = merged(copied, tmp_path / "merged")
    assert f"{copied}/02 and {copied}/again: hold the same recordings (sub-02_run-01, " in problem


def test_one_recording_under_two_names_is_refused(study, tmp_path):
    twin = shutil.copytree(study, tmp_path / "study")
    stem = "eeg/sub-0{0}_task-things_run-02_eeg.eeg"
    shutil.copy(twin / "sub-01" / stem.format(1), twin / "sub-02" / stem.format(2))
    portions(paired, twin, tmp_path / "portions")
    (problem,) = merged(tmp_path / "portions", tmp_path / "merged")
    assert problem.startswith(
        f"01//02 ({tmp_path}/portions/01) and 02//02 ({tmp_path}/portions/02): the same recording"
    )


def test_a_study_that_changed_between_two_portions_is_refused(study, tmp_path):
    growing = shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("sub-03"))
    portions(paired, growing, tmp_path / "portions", subjects=["01", "02"])
    shutil.copytree(study / "sub-03", growing / "sub-03")
    portions(paired, growing, tmp_path / "portions", subjects=["03"])
    (problem,) = merged(tmp_path / "portions", tmp_path / "merged")
    assert "the study changed between them (sub-03_run-01, sub-03_run-02, sub-03_run-03 came or went)" in problem


def test_portions_whose_subjects_lie_between_each_other_are_refused(study, tmp_path):
    build(paired, study, tmp_path / "portions/a", 'only_subjects=["01", "03"]')
    build(paired, study, tmp_path / "portions/b", 'only_subjects=["02"]')
    (problem,) = merged(tmp_path / "portions", tmp_path / "merged")
    assert "subjects of one lie between those of the other" in problem


def test_pictures_that_parts_share_over_subjects_are_refused(study, tmp_path):
    other = shutil.copytree(study, tmp_path / "study")
    table = other / "sub-02/eeg/sub-02_task-things_run-03_events.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("test-0", "train-0"), encoding="utf-8")
    table = other / "sub-02/eeg/sub-02_task-things_run-01_events.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("train-0", "train-1"), encoding="utf-8")
    portions(paired, other, tmp_path / "portions")
    (problem,) = merged(tmp_path / "portions", tmp_path / "merged")
    assert "split of Simulated by given" in problem
    assert "share 1 image" in problem


def test_damaged_tars_are_all_named_and_nothing_is_written(copied, tmp_path):
    for subject in ("01", "03"):
        path = copied / subject / "validation/000000.tar"
        content = bytearray(path.read_bytes())
        content[600] ^= 1
        path.write_bytes(content)
    config = MergeConfig(inputs=copied, output_dir=tmp_path / "merged")
    with pytest.raises(UserError) as error:
        merge.main(config)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{copied}/{s}/validation/000000.tar" for s in ("01", "03")]
    path.write_bytes(content[:-512])
    (copied / "02/train/000000.tar").unlink()
    problems = merge.check(config).problems
    assert [line.split(": ")[1].split(",")[0].split(" ")[0] for line in problems] == ["is", "has"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["portions"]


def test_an_index_of_another_build_is_refused(both, copied, study, tmp_path):
    portions(paired, study, tmp_path / "other", "epochs.tmax=0.5", "samples_per_shard=3", subjects=["02"])
    shutil.rmtree(copied / "02/train")
    shutil.copytree(tmp_path / "other/02/train", copied / "02/train")
    (problem,) = merged(copied, tmp_path / "merged")
    assert problem == f"{copied}/02/train: is not of the build around it; build the portion again"


def test_other_shards_and_places_inside_the_input_are_refused(both, copied, study, tmp_path):
    build(paired, study, tmp_path / "other", "epochs.tmax=0.5", "samples_per_shard=3")
    with pytest.raises(UserError, match=r"holds shards built with other settings: epochs\.tmax; give another"):
        merged(copied, tmp_path / "other")
    with pytest.raises(UserError, match=r"other settings: .*only_subjects"):
        merged(copied, both[1] / "01")
    (problem,) = merged(copied, copied / "merged")
    assert "give a folder beside it" in problem
    assert merged(tmp_path / "gone", tmp_path / "merged") == [
        f"inputs={tmp_path}/gone: no such folder; it holds the portions, one folder each"
    ]


def test_who_opened_the_test_part_of_a_portion_opened_that_of_the_whole(copied, tmp_path):
    open_test(copied / "02", who="generate")
    joined(copied, tmp_path / "merged")
    assert [entry["who"] for entry in read_ledger(tmp_path / "merged")] == ["generate"]


def test_a_merge_that_was_killed_leaves_the_portions_whole_and_is_done_again(both, copied, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ttd.data import merging, portions\n"
        "def stuck(items, desc):\n"
        "    for n, item in enumerate(items):\n"
        "        yield item\n"
        "        if n == 4: print('there', flush=True); time.sleep(60)\n"
        "found, _ = portions.read(portions.find(Path(sys.argv[1]))[0])\n"
        "merging.merge(found, Path(sys.argv[2]), stuck)"
    )
    root = tmp_path / "merged"
    process = subprocess.Popen([sys.executable, "-c", code, copied, root], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    with pytest.raises(UserError, match="another process is building there"):
        merged(copied, root)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    assert not root.exists()
    assert len(list((tmp_path / ".merged.building").rglob("*.tar"))) == 5
    joined(copied, root)
    same_samples(both[0], root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "portions"]
    assert verify(copied / "01").findings == []


def test_a_second_merge_leaves_the_first_alone(copied, tmp_path):
    with only_build(tmp_path / "merged"), pytest.raises(UserError, match="another process is building there"):
        merged(copied, tmp_path / "merged")


def test_the_script_tells_what_it_will_do_and_ends_with_2_where_it_cannot(copied, tmp_path):
    command = [sys.executable, "shards/merge.py", f"inputs={copied}", f"output_dir={tmp_path / 'merged'}"]
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 portions with 24 samples" in done.stderr
    assert "8 pictures" in done.stderr
    assert not (tmp_path / "merged").exists()
    shutil.rmtree(copied / "02")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sub-02: no portion holds" in done.stderr
    assert "Traceback" not in done.stderr


def test_sequences_gaps_unseen_concepts_and_excluded_subjects_are_those_of_the_whole(tmp_path):
    """THINGS-EEG1: subject 2 with the study's cap, 49 without FCz, 6 excluded."""
    write_participants(tmp_path, {"06": "Did not complete exp"}, ["02", "06", "49"])
    table = squeeze(made_table())
    for subject in ("02", "06", "49"):
        write_subject(tmp_path, subject, table)
    write_pictures(tmp_path / "images", table)
    overrides = ["preprocessing.l_freq=null", "preprocessing.notch=null", f"study.images={tmp_path / 'images'}"]
    overrides += ["epochs={tmin: -0.02, tmax: 0.04, baseline: null}", f"study.root={tmp_path}"]
    overrides += ["parts={by: sequence, validation: ['2'], test: ['3', '4'], unseen: [thing0], gap_s: 0.1}"]
    places = {"whole": [], "portions/02": ['only_subjects=["02"]'], "portions/49": ['only_subjects=["49"]']}
    for place, more in places.items():
        files, output = [ROOT / "configs/shards/grootswagers2022.yaml"], f"output_dir={tmp_path / place}"
        config = load_config(BuildPairedConfig, files, [*overrides, output, *more])
        assert paired.check(config).problems == []
        paired.main(config)
    assert merged(tmp_path / "portions", tmp_path / "merged") == []
    same_samples(tmp_path / "whole", tmp_path / "merged")
    build_json = told(tmp_path / "merged", "build.json")
    assert list(build_json["excluded"]) == ["06"]
    assert build_json["dropped"]["concept of the test"] > 0
