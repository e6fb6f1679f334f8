import pytest
import torch

from ttd.config import Config, UserError, load_config
from ttd.engine.accelerator import EngineConfig, make_accelerator
from ttd.engine.trackers import Place
from ttd.engine.tracking import Meter, Tracker, TrackingConfig, progress, read_log


class Experiment(Config):
    seed: int = 3


def test_the_log_is_read_without_torn_lines_and_superseded_steps(tmp_path):
    with Tracker(tmp_path, TrackingConfig(), Experiment()) as tracker:
        tracker.log("started", step=0)
        for step in (1, 2, 3):
            tracker.log("train", step=step, loss=float(step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # killed here
    with Tracker(tmp_path, TrackingConfig(), Experiment()) as tracker:
        tracker.log("resumed", step=2)
        tracker.log("train", step=3, loss=30.0)
    records = read_log(tmp_path)
    assert [(r["event"], r["step"]) for r in records] == [
        ("started", 0),
        ("train", 1),
        ("train", 2),
        ("resumed", 2),
        ("train", 3),
    ]
    assert records[-1]["loss"] == 30.0


def test_only_rank_0_writes(tmp_path):
    with Tracker(tmp_path / "run", TrackingConfig(to=("wandb",)), Experiment(), Place(rank=1, local_rank=1)) as tracker:
        tracker.log("train", step=1, loss=1.0)
    assert not (tmp_path / "run").exists()


def test_a_meter_gives_means_by_name_and_starts_over():
    meter, accelerator = Meter(), make_accelerator(EngineConfig())
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value), "clip": torch.tensor(2 * value)})
    assert meter.reduce(accelerator) == {"loss": 3.0, "clip": 6.0}
    assert meter.reduce(accelerator) == {}


def test_without_a_terminal_progress_is_plain_lines(capfd, monkeypatch):
    now = iter(range(0, 1000, 6))  # six seconds per look at the clock
    monkeypatch.setattr("ttd.engine.tracking.time.monotonic", lambda: next(now))
    assert list(progress(range(4), desc="make")) == [0, 1, 2, 3]
    assert capfd.readouterr().err.splitlines() == ["make 2/4, 12 s left", "make 4/4, 0 s left"]


def test_other_ranks_show_no_progress(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert list(progress(range(4), desc="make")) == [0, 1, 2, 3]
    assert capfd.readouterr().err == ""


def test_an_unknown_tracker_is_named_with_those_there_are():
    class Toy(Config):
        tracking: TrackingConfig = TrackingConfig()

    with pytest.raises(UserError, match=r"tracking.to.*'wandb', 'tensorboard' or 'trackio'.*got 'wanbd'"):
        load_config(Toy, [], ["tracking.to=[wanbd]"])
