"""docs/own_data.md as a user follows it: its commands, on a small simulated study in both layouts."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path

import mne
import numpy as np
import pytest
from bids_study import CH_NAMES, write_run
from PIL import Image

from ttd.config import StoppedError, UserError, load_config
from ttd.experiments.own_data import SCRIPTS, OwnDataConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/own_data.md"
SFREQ, PICTURES = 200.0, {"train": 8, "validation": 6, "test": 6}
SHORT = [
    "align.global_batch_size=8", "align.train={max_steps: 4, validate_every: 2, checkpoint_every: 2, log_every: 2}",
    "finetune.global_batch_size=4", "finetune.train={max_steps: 2, validate_every: 2, checkpoint_every: 2}",
    "generate.sampler.steps=2", "generate.n_items=2", "eval.n_resamples=100", "eval.n_draws=1",
]  # fmt: skip


def build(folder: Path) -> None:
    """The same two subjects, three runs each, as data/my_bids and data/my_study; every picture shown twice."""
    rng = np.random.default_rng(0)
    bids, mine = folder / "data/my_bids", folder / "data/my_study"
    bids.mkdir(parents=True)
    mine.mkdir(parents=True)
    facts = {"Name": "Mine2026", "BIDSVersion": "1.9.0", "License": "CC0", "DatasetType": "raw", "Simulated": True}
    (bids / "dataset_description.json").write_text(json.dumps(facts))
    table = ["recording,onset,image,concept,label,part"]
    for part, n in PICTURES.items():
        for i in range(n):
            pixels = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((48, 48))
            for pictures in (bids / "stimuli", mine / "pictures"):
                (pictures / "blocks").mkdir(parents=True, exist_ok=True)
                pixels.save(pictures / f"blocks/{part}{i}.png")
    for subject in ("01", "02"):
        for run, (part, n) in enumerate(PICTURES.items(), start=1):
            onsets, names = 2 + 0.8 * np.arange(2 * n), [f"blocks/{part}{i % n}.png" for i in range(2 * n)]
            data = rng.normal(0, 10, (len(CH_NAMES), int((4 + 0.8 * 2 * n) * SFREQ)))
            rows = [
                {"onset": onset, "duration": 0.1, "stim_file": name, "part": part}
                for onset, name in zip(onsets, names, strict=True)
            ]
            write_run(bids / f"sub-{subject}/eeg", f"sub-{subject}_task-look_run-{run:02d}", data, SFREQ, rows)
            info = mne.create_info(CH_NAMES, SFREQ, "eeg")
            file = f"sub-{subject}_run-{run}.edf"
            mne.io.RawArray(data * 1e-6, info, verbose="ERROR").export(mine / file, verbose="ERROR")
            table += [f"{file},{row['onset']:.3f},{row['stim_file']},,,{part}" for row in rows]
    (mine / "events.csv").write_text("\n".join(table) + "\n")
    for name in ("configs", "launch", "shards", "ttd", "weights"):
        (folder / name).symlink_to(ROOT / name)


def commands() -> list[list[str]]:
    """The command lines of the page, in its order."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("python ")]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    more = SHORT if "launch/own_data.py" in command else []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, *command[1:], *more]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    build(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_page_lead_from_recordings_to_a_report(place):
    done = []
    for command in commands():
        ended = run(command, place)
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
        done.append(command[1])
    assert done.count("launch/own_data.py") == 4
    for layout in ("bids", "table"):
        out = place / "runs/own_data" / layout
        assert {path.stem for path in (out / "configs").glob("*.yaml")} == set(SCRIPTS)
        table = (out / "eval/table.md").read_text()
        assert "top-1" in table
        page = (out / "report/index.html").read_text()
        assert "Mine2026" in page
        assert "python ttd/align.py" in page
        assert len((out / "generate/manifest.jsonl").read_text().splitlines()) == 2 * 2 * 2  # subjects, items, control


@pytest.mark.parametrize("layout", ["bids", "table"])
def test_a_dry_run_counts_presentations_and_writes_nothing(place, layout):
    command = next(c for c in commands() if f"configs/own_data/{layout}.yaml" in c and "--dry-run" in c)
    ended = run(command, place)
    assert ended.returncode == 0, ended.stderr
    assert "80 presentations (32 train, 24 validation, 24 test), 7 channels × 88 samples" in ended.stderr
    assert not (place / "runs").exists()


def driver() -> dict:
    return runpy.run_path(str(ROOT / "launch/own_data.py"))


def problems(place: Path, layout: str, *overrides: str) -> list[str]:
    folder = {"bids": "my_bids", "table": "my_study"}[layout]
    given = [f"study.root={place / 'data' / folder}", *overrides]
    config = load_config(OwnDataConfig, [ROOT / f"configs/own_data/{layout}.yaml"], given)
    return driver()["check"](config).problems


def test_mistakes_of_every_step_and_of_the_split_are_named_before_anything_is_written(place, monkeypatch):
    monkeypatch.chdir(place)
    found = problems(place, "table", "align.train.max_stepz=3", "generate.n_items=1", "base=weights/no")
    assert any(line.startswith("align.train.max_stepz: unknown key") and "max_steps" in line for line in found)
    assert any(line.startswith("generate.n_items: Input should be greater") for line in found)
    assert any(line.startswith("base: 'weights/no' is neither a folder here") for line in found)
    found = problems(place, "table", "parts={by: run, test: ['3']}")
    assert found == [
        "parts: validation has 0 pictures, the chain needs 6 at least; fill in column part, or name concepts, "
        "subjects, sessions or runs in parts.validation and parts.test"
    ]
    assert not (place / "runs").exists()


def test_what_links_the_steps_cannot_be_set_apart(place):
    changes = ["align.data.shards=elsewhere", "finetune.start={name: scratch}", "output_dir=out"]
    trees = load_config(OwnDataConfig, [ROOT / "configs/own_data/table.yaml"], changes).trees()
    assert trees["align"]["data"] == {"shards": "out/shards", "repetitions": "mean", "time_jitter": 1}
    assert trees["finetune"]["start"] == {"name": "alignment", "run": "out/align"}
    assert trees["report"]["generate"] == {"decoded": trees["finetune"]["output_dir"].replace("finetune", "generate")}


@pytest.fixture
def ran(place, monkeypatch):
    """The driver on steps that only leave an outcome: ``go(*overrides)`` returns the steps that ran."""
    monkeypatch.chdir(place)
    module, ended = driver(), {}

    def step(command):
        folder = place / "runs/own_data/table" / command[-1].stem
        folder.mkdir(parents=True, exist_ok=True)
        name = "index.json" if folder.name == "shards" else "outcome.json"
        if not (folder / "index.json").exists() and ended.get(folder.name) != 2:
            (folder / name).write_text(json.dumps({"status": ended.get(folder.name, 0)}))
        (folder / "table.md").write_text("the table")
        ran.append(folder.name)
        return ended.get(folder.name, 0)

    ran: list[str] = []
    monkeypatch.setitem(module["main"].__globals__, "run_step", step)

    def go(*overrides: str, **statuses: int) -> list[str]:
        ended.clear()
        ended.update(statuses)
        ran.clear()
        given = ["study.root=data/my_study", *overrides]
        module["main"](load_config(OwnDataConfig, [Path("configs/own_data/table.yaml")], given))
        return ran

    return go


def test_a_second_run_looks_at_the_recordings_and_leaves_finished_steps_alone(ran, place):
    assert ran() == list(SCRIPTS)
    assert ran() == ["shards", "targets"]
    assert ran("generate.n_items=5") == ["shards", "targets", "generate", "eval", "report"]
    (place / "runs/own_data/table/shards/index.json").write_text("built again")
    assert ran("generate.n_items=5") == list(SCRIPTS)


def test_a_step_that_fails_ends_the_chain_with_its_name_and_status_and_is_where_it_goes_on(ran):
    with pytest.raises(StoppedError, match="step align ended with status 75; the same command goes on"):
        ran(align=75)
    assert ran() == list(SCRIPTS)
    with pytest.raises(UserError, match="step eval ended with status 1"):
        ran("eval.n_draws=2", eval=1)
    assert ran("eval.n_draws=2") == ["shards", "targets", "eval", "report"]


def test_a_refused_step_is_refused_again_and_what_finished_before_stays_finished(ran, place):
    assert ran() == list(SCRIPTS)
    for _ in range(2):  # it may not count as finished because an older result lies there
        with pytest.raises(UserError, match="step align ended with status 2"):
            ran("align.optim={lr: 1.0}", align=2)
    assert ran() == ["shards", "targets"]


def test_a_step_that_was_killed_under_another_experiment_does_not_count_as_finished(ran, place):
    assert ran() == list(SCRIPTS)
    experiment = place / "runs/own_data/table/configs/eval.yaml"
    os.utime(experiment, ns=(time.time_ns() + 10**9,) * 2)  # written again after the result that lies there
    assert ran() == ["shards", "targets", "eval", "report"]


def test_mistakes_in_own_keys_and_in_those_of_the_steps_are_told_at_once():
    given = ["study={name: table, root: x, title: T}", "outputdir=x", "align.train.max_stepz=3", "eval.n_draws=many"]
    with pytest.raises(UserError) as refused:
        load_config(OwnDataConfig, [ROOT / "configs/own_data/table.yaml"], given)
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("outputdir: unknown key (value 'x'); did you mean 'output_dir'?")
    assert lines[1].startswith("align.train.max_stepz: unknown key (value 3); did you mean 'max_steps'?")
    assert lines[2].startswith("eval.n_draws: Input should be a valid integer")
    assert len(lines) == 3


def test_a_misspelt_study_is_told_the_known_ones_and_paths_are_those_that_were_written():
    for given, told in {
        "study.name=tablex": "study.name: there is no 'tablex'; did you mean 'table'? (known here: bids, ",
        "study.rooot=x": "study.rooot: unknown key (value 'x'); did you mean 'root'?",
        "parts.test=[2]": """parts.test.0: Input should be a valid string, got 2; quote it: ["2"]""",
        "epochs.tmin=3": "epochs: tmin=3.0 must be below tmax=0.6",
    }.items():
        with pytest.raises(UserError) as refused:
            load_config(OwnDataConfig, [ROOT / "configs/own_data/table.yaml"], [given])
        assert str(refused.value).startswith(told)
        assert "{" not in str(refused.value)
