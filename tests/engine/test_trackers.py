"""Trackers for real: W&B offline with its own service, and TensorBoard and trackio where they are installed."""

import importlib.util
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttd.config import Config, UserError
from ttd.engine.accelerator import EngineConfig, make_accelerator
from ttd.engine.timing import Timing
from ttd.engine.trackers import JSONLines, Place, inspect_wandb
from ttd.engine.tracking import Tracker, TrackingConfig, check_tracking, read_log
from ttd.redaction import redact

ROOT = Path(__file__).parents[2]
WANDB = TrackingConfig(to=("wandb",), wandb_mode="offline")
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class Experiment(Config):
    seed: int = 3


@pytest.fixture(autouse=True)
def _no_job(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "WANDB_API"))]:
        monkeypatch.delenv(name)


def wandb_folders(output_dir: Path) -> dict[str, Path]:
    """Every run folder that W&B wrote, by the folder of its node and attempt."""
    return {path.parts[-3]: path for path in sorted(output_dir.glob("wandb/*/wandb/offline-run-*"))}


def failures(output_dir: Path) -> list[tuple[str, int]]:
    return [(r["tracker"], r["step"]) for r in read_log(output_dir) if r["event"] == "tracker_failed"]


def in_a_process(code: str) -> None:
    """Run ``code`` with this module's names to a good end."""
    names = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_trackers import *\n"
    command = [sys.executable, "-c", names + code]
    env = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # this process's, which it would share
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_nodes_share_a_run_and_write_into_folders_of_their_own(tmp_path):
    for node, name in ((0, "log.jsonl"), (1, "log.node1.jsonl")):
        place = Place(rank=2 * node, node=node, nodes=2, host=f"host{node}", job="77", attempt="77.1")
        with Tracker(tmp_path, WANDB, Experiment(), place) as tracker:
            tracker.log("started", step=0)
            tracker.log("train", step=1, loss=1.5)
            tracker.log_node(step=1, data_wait_s=0.25 + node)
        assert json.loads((tmp_path / name).read_text().splitlines()[-1]) == {
            "event": "node",
            "step": 1,
            "host": f"host{node}",
            "data_wait_s": 0.25 + node,
        }
    said = {name: inspect_wandb(path) for name, path in wandb_folders(tmp_path).items()}
    assert [*said] == ["node0-host0-77.1", "node1-host1-77.1"]
    first, second = said.values()
    assert first["run_id"] == second["run_id"]
    assert first["config"]["seed"] == 3
    assert [s["config"]["launch"]["node"] for s in (first, second)] == ["node0", "node1"]
    assert (first["summary"]["train/loss"], first["summary"]["node0/data_wait_s"]) == (1.5, 0.25)
    assert "train/loss" not in second["summary"]
    assert second["summary"]["node1/data_wait_s"] == 1.25


def test_other_ranks_of_a_node_write_nothing(tmp_path):
    with Tracker(tmp_path / "run", WANDB, Experiment(), Place(rank=3, local_rank=1, node=1, nodes=2)) as tracker:
        tracker.log("train", step=1, loss=1.0)
        tracker.log_node(step=1, data_wait_s=1.0)
        tracker.images("validation", 1, {"grid": PICTURE})
    assert not (tmp_path / "run").exists()


def test_a_process_knows_its_place_in_an_array_of_slurm(monkeypatch):
    variables = {
        "RANK": 5,
        "LOCAL_RANK": 1,
        "WORLD_SIZE": 8,
        "LOCAL_WORLD_SIZE": 4,
        "SLURM_JOB_ID": 103,
        "SLURM_NODEID": 1,
    }
    variables |= {
        "SLURM_ARRAY_JOB_ID": 100,
        "SLURM_ARRAY_TASK_ID": 3,
        "SLURM_RESTART_COUNT": 2,
        "SLURMD_NODENAME": "n7",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert Place.here() == Place(5, 1, 1, 2, "n7", job="100", array_task="3", attempt="103.2")
    assert not Place.here().writes


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_whose_folder_is_a_file_is_told_once(name, tmp_path):
    pytest.importorskip(name)
    (tmp_path / name).touch()
    in_a_process(f"""
with Tracker(Path({str(tmp_path)!r}), TrackingConfig(to=({name!r},)), Experiment()) as tracker:
    tracker.log("train", step=5, loss=2.0)
    tracker.log("train", step=6, loss=1.0)
""")
    assert failures(tmp_path) == [(name, 5)]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_missing_is_told_before_training_on_every_rank(name, tmp_path):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    for place in (Place(), Place(rank=1, local_rank=1)):
        with pytest.raises(UserError, match=f"train.tracking.to: {name} is not installed; pip install {name}"):
            Tracker(tmp_path, TrackingConfig(to=(name,)), Experiment(), place)


def test_wandb_online_without_a_key_is_told_before_training(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for mode in ("online", "shared"):
        (problem,) = check_tracking(TrackingConfig(to=("wandb",), wandb_mode=mode))
        assert problem.startswith(f"train.tracking.wandb_mode={mode}: there is no API key")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert check_tracking(TrackingConfig(to=("wandb",), wandb_mode="online")) == []


def test_a_wandb_folder_that_cannot_be_made_is_told_once_and_training_goes_on(tmp_path, caplog):
    (tmp_path / "wandb").touch()  # W&B itself would go to /tmp and say nothing in the log
    with Tracker(tmp_path, WANDB, Experiment()) as tracker:
        tracker.log("started", step=4)
        tracker.log("train", step=5, loss=2.0)
        tracker.images("validation", 5, {"grid": PICTURE})
    assert failures(tmp_path) == [("wandb", 4)]
    assert [r["loss"] for r in read_log(tmp_path) if r["event"] == "train"] == [2.0]
    (told,) = [r.getMessage() for r in caplog.records]
    assert told.startswith("tracker wandb failed at step 4 and gets no more (NotADirectoryError: ")


def test_a_failing_tracker_of_another_node_is_in_that_nodes_log_and_on_standard_error(tmp_path, capfd):
    (tmp_path / "wandb").touch()
    with Tracker(tmp_path, WANDB, Experiment(), Place(rank=2, node=1, nodes=2, host="n7")) as tracker:
        tracker.log("train", step=5, loss=2.0)
    (line,) = [json.loads(line) for line in (tmp_path / "log.node1.jsonl").read_text().splitlines()]
    assert (line["event"], line["tracker"]) == ("tracker_failed", "wandb")
    assert "node1 (n7): tracker wandb failed at step 5" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_full_disk_under_a_tracker_is_noticed_though_some_say_nothing(name, tmp_path):
    pytest.importorskip(name)
    (tmp_path / name).mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path / name)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        in_a_process(f"""
with Tracker(Path({str(tmp_path)!r}), TrackingConfig(to=({name!r},), wandb_mode="offline"), Experiment()) as tracker:
    for step in range(30):
        tracker.log("train", step=step, **{{f"loss{{i}}": float(i) for i in range(500)}})
""")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / name)], check=True)
    assert [failed for failed, _ in failures(tmp_path)] == [name]
    assert len([r for r in read_log(tmp_path) if r["event"] == "train"]) == 30


@pytest.mark.slow
def test_a_wandb_service_that_dies_is_told_and_the_run_ends_well(tmp_path):
    """In a process of its own: W&B's clean-up at exit also meets the dead service."""
    in_a_process(f"""
with Tracker(Path({str(tmp_path)!r}), WANDB, Experiment()) as tracker:
    tracker.log("train", step=1, loss=1.0)
    import psutil

    (service,) = [p for p in psutil.Process().children() if "wandb-core" in p.name()]
    service.kill()
    service.wait()
    for step in (2, 3, 4):
        tracker.log("train", step=step, loss=float(step))
""")
    assert [name for name, _ in failures(tmp_path)] == ["wandb"]
    assert [r["loss"] for r in read_log(tmp_path) if r["event"] == "train"] == [1.0, 2.0, 3.0, 4.0]


def test_a_full_disk_under_the_log_stops_nothing_and_later_lines_are_whole(tmp_path, caplog):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with Tracker(tmp_path, TrackingConfig(), Experiment()) as tracker:
        tracker.log("train", step=1, loss=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
        try:
            tracker.log("train", step=2, loss=2.0)
            tracker.log("train", step=3, loss=3.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        tracker.log("train", step=4, loss=4.0)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 4]
    assert ["cannot be written" in r.message for r in caplog.records if r.name.startswith("ttd")] == [True]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "train", "st')
    lines = JSONLines(tmp_path / "log.jsonl")
    lines.write({"event": "train", "step": 2})
    lines.close()
    assert read_log(tmp_path) == [{"event": "train", "step": 2}]


def test_sample_pictures_are_kept_as_png_and_named_in_the_log(tmp_path):
    with Tracker(tmp_path, WANDB, Experiment()) as tracker:
        tracker.log("started", step=0)
        tracker.images("validation", 20, {"best/first": PICTURE})
    (line,) = [r for r in read_log(tmp_path) if r["event"] == "samples"]
    assert line["files"] == ["samples/step-0000020/validation-best-first.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / line["files"][0])), PICTURE)
    (folder,) = wandb_folders(tmp_path).values()
    (media,) = folder.glob("files/media/images/**/*.png")
    assert np.array_equal(np.asarray(Image.open(media).convert("RGB")), PICTURE)


def test_a_picture_of_floats_is_refused(tmp_path):
    with (
        Tracker(tmp_path, TrackingConfig(), Experiment()) as tracker,
        pytest.raises(ValueError, match="uint8 \\[H, W, 3\\]"),
    ):
        tracker.images("validation", 1, {"grid": np.zeros((4, 4, 3), dtype=np.float32)})


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(to=("tensorboard",))
    with Tracker(tmp_path, config, Experiment()) as tracker:
        for step in (0, 1, 2, 3):
            tracker.log("train", step=step, loss=float(step), note="text stays in log.jsonl")
    with Tracker(tmp_path, config, Experiment()) as tracker:
        tracker.log("resumed", step=1)
        tracker.log("train", step=2, loss=20.0)
        tracker.images("validation", 2, {"grid": PICTURE})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert [e.step for e in events.Images("validation/grid")] == [2]
    assert failures(tmp_path) == []


def test_trackio_gets_numbers_and_pictures(tmp_path):
    pytest.importorskip("trackio")
    in_a_process(f"""
for steps in ((1, 2), (3,)):
    with Tracker(Path({str(tmp_path)!r}), TrackingConfig(to=("trackio",)), Experiment()) as tracker:
        for step in steps:
            tracker.log("train", step=step, loss=float(step))
        tracker.images("validation", step, {{"grid": PICTURE}})
""")
    assert failures(tmp_path) == []
    with sqlite3.connect(tmp_path / "trackio" / "ttd.db") as database:
        rows = database.execute("select run_id, step, metrics from metrics order by id").fetchall()
    assert [(step, json.loads(text).get("train/loss")) for _, step, text in rows] == [
        (1, 1.0),
        (2, 2.0),
        (2, None),  # the picture
        (3, 3.0),
        (3, None),
    ]
    assert len({run for run, _, _ in rows}) == 1
    assert len([*(tmp_path / "trackio").rglob("*.png")]) == 2


def test_time_is_split_into_waiting_steps_and_what_is_apart():
    timing = Timing()

    def slow():
        for _ in range(2):
            time.sleep(0.05)
            yield 1

    for _ in timing.waiting(slow()):
        time.sleep(0.1)
        timing.step()
    with timing.apart():
        time.sleep(0.3)
    numbers = timing.reduce(make_accelerator(EngineConfig()))
    assert numbers["data_wait_s"] == pytest.approx(0.05, abs=0.03)
    assert numbers["step_s"] == pytest.approx(0.15, abs=0.06)
    assert numbers == pytest.approx(timing.own, rel=1e-6)  # one rank; the exchange is in float32
    assert timing.reduce(make_accelerator(EngineConfig())) == {}


def test_fields_of_an_experiment_are_no_secrets_because_of_their_names():
    text = "conditioner.aligned_token=True, mask_token=4, unknown_token=none"
    assert redact(text) == text


def test_redaction_knows_the_environment_urls_and_names_and_leaves_the_rest(monkeypatch):
    monkeypatch.setenv("SITE_TOKEN", "s3/cret-value")
    monkeypatch.setenv("SHORT_KEY", "train")
    assert redact(
        {
            "api_key": "abc",
            "n_tokens": 16,
            "key": "image-7",
            "url": "https://me:pw@example.org/a?token=abc&size=3",
            "text": ("has s3/cret-value", "and s3%2Fcret-value", "train"),
            "path": Path("runs/a"),
            "header": "Authorization: Bearer abcdefghijklmnop1234",
        }
    ) == {
        "api_key": "[redacted]",
        "n_tokens": 16,
        "key": "image-7",
        "url": "https://[redacted]@example.org/a?token=[redacted]&size=3",
        "text": ["has [redacted]", "and [redacted]", "train"],
        "path": "runs/a",
        "header": "Authorization: Bearer [redacted]",
    }


def test_no_byte_of_a_secret_is_left_below_a_tracked_run(tmp_path):
    """Two steps with W&B offline in a process of its own; secrets in every place a run can know them from."""
    checkout, run = tmp_path / "checkout", tmp_path / "run"
    checkout.mkdir()
    for command in (["init", "-q"], ["remote", "add", "origin", "https://me:canary-in-the-remote@example.org/x.git"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, capture_output=True)
    secrets = {
        "WANDB_API_KEY": "ca4a47" * 6 + "beef",
        "HF_TOKEN": "hf_canaryCanaryCanaryCanary",
        "DB_PASSWORD": "canary-pw",
    }
    secrets |= {"SITE_SECRET": "canary-in-the-environment", "HTTPS_PROXY": "http://me:canary-in-the-proxy@localhost:9"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | secrets | {"PYTHONPATH": str(ROOT)}
    kept = {f"WANDB_{what}_DIR": str(run / f"wandb-{what.lower()}") for what in ("CACHE", "CONFIG", "DATA")}
    command = [
        sys.executable,
        str(ROOT / "tests/distributed/tracked_steps.py"),
        str(run),
        "token=canary-in-an-argument",
    ]
    done = subprocess.run(command, cwd=checkout, env=env | kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [r["event"] for r in read_log(run)] == ["started", "train", "train", "samples"]
    (folder,) = wandb_folders(run).values()
    assert inspect_wandb(folder)["config"]["notes"] == ["[redacted] was pasted here", "harmless note"]
    content = {path: path.read_bytes().lower() for path in run.rglob("*") if path.is_file()}
    assert len(content) >= 6
    for canary in ("canary", secrets["WANDB_API_KEY"]):
        assert not [path for path, data in content.items() if canary.encode() in data]
    assert "cannot read https://[redacted]@example.org" in done.stderr
    assert "canary" not in done.stderr
