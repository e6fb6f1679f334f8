"""The templates on a real Slurm: two nodes, two ranks on each, stopped in every way that a cluster knows.

Losses are compared with the same run without Slurm. Every wait has a deadline.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from small_runs import environment, losses, outcome, pretraining, without_slurm, write_windows

from ttd.engine.state_files import damage, step_folders
from ttd.engine.tracking import read_log

STEPS = 250
TWO_NODES = ("--nodes=2", "--gpus-per-node=2")

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """What all runs here are called with."""
    shards = write_windows(tmp_path_factory.mktemp("shards") / "windows")
    return pretraining(shards, STEPS, "train.checkpoint_every=25")


@pytest.fixture(scope="module")
def straight(words, tmp_path_factory) -> Path:
    """The run that nobody disturbed, without Slurm: DDP, four ranks."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    without_slurm("ttd/pretrain.py", folder, words, config="ddp")
    return folder


@pytest.fixture
def start(submit, words, tmp_path):
    """Submit ``slurm/pretrain.sh`` under DDP and wait until it has taken some steps; gives the job and the run folder."""

    def start(*options: str, until: int = 10, more: tuple[str, ...] = (), **env: str) -> tuple[str, Path]:
        env = {"TTD_LAUNCH": "launch/ddp.yaml"} | env
        job = submit(*options, "slurm/pretrain.sh", str(tmp_path / "run"), *words, *more, **env)
        wait_step(submit, job, tmp_path / "run", until)
        return job, tmp_path / "run"

    return start


def wait_step(submit, job: str, run_dir: Path, step: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not (run_dir / "log.jsonl").exists() or max(losses(run_dir), default=0) < step:
        assert time.monotonic() < end, f"step {step} was not reached\n{submit.log(job)[-4000:]}"
        time.sleep(0.1)


def resumed_at(run_dir: Path) -> list[int]:
    return [r["step"] for r in read_log(run_dir) if r["event"] == "resumed"]


def is_like(run_dir: Path, straight: Path) -> None:
    """The run came to its end with the losses of the one that nobody disturbed, bit for bit."""
    assert outcome(run_dir)["status"] == 0
    assert environment(run_dir)["world_size"] == 4
    assert losses(run_dir) == losses(straight)
    newest = step_folders(run_dir)[-1]
    assert newest.name == f"step-{STEPS:07d}"
    assert damage(newest) is None
    assert not [*run_dir.glob(".stop*"), *run_dir.glob(".outcome*")]


@pytest.mark.parametrize("launch", ["zero2", "ddp"])
def test_two_nodes_are_one_world_and_train_as_without_slurm(submit, words, tmp_path, launch):
    few = [*words, "train.max_steps=6"]
    # ZeRO-2 is what the template does by itself
    # DDP reads copies of the shards, on what would be the disk of each node
    copies, shards = tmp_path / "disk", words[0].partition("=")[2]
    env = (
        {} if launch == "zero2" else {"TTD_LAUNCH": "launch/ddp.yaml", "TTD_STAGE": shards, "SLURM_TMPDIR": str(copies)}
    )
    job = submit(*TWO_NODES, "slurm/pretrain.sh", str(tmp_path / "run"), *few, **env)
    submit.wait(job)
    log = submit.log(job)
    assert sorted(re.findall(r"^([01]: node[12]) python", log, re.M)) == ["0: node1", "1: node2"]
    assert "global batch 8 = 2 micro × 4 ranks × 1 accumulation" in log
    assert copies.exists() == (launch == "ddp")
    kind = environment(tmp_path / "run")
    assert (kind["world_size"], kind["engine"]) == (4, "DEEPSPEED" if launch == "zero2" else "MULTI_CPU")
    without_slurm("ttd/pretrain.py", tmp_path / "straight", few, config=launch)
    ours, theirs = losses(tmp_path / "run"), losses(tmp_path / "straight")
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, abs=1e-6, rel=0)


def test_the_doctor_sees_all_ranks_of_both_nodes(submit, words, tmp_path):
    shards = words[0].partition("=")[2]
    job = submit(*TWO_NODES, "slurm/doctor.sh", str(tmp_path / "doctor"), f"shards=[{shards}]")
    submit.wait(job)
    found = json.loads((tmp_path / "doctor/doctor.json").read_text())
    assert found["world"] == 4, submit.log(job)
    lines = {name: some[0]["status"] for name, some in found["findings"].items()}
    assert {lines[name] for name in ("world", "shards", "code", "shared")} == {"ok"}, submit.log(job)


def test_bad_input_ends_the_job_with_its_message_and_is_not_queued_again(submit, words, tmp_path):
    job = submit(*TWO_NODES, "slurm/pretrain.sh", str(tmp_path / "run"), *words, "global_batch_size=9")
    ended = submit.wait(job, states=("FAILED",))
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")
    assert "global_batch_size=9 is not a multiple of" in submit.log(job)


def test_a_preempted_job_saves_lets_the_other_run_and_goes_on_bit_for_bit(submit, start, straight):
    job, run_dir = start("--partition=low", *TWO_NODES, until=30)
    began = time.monotonic()
    urgent = submit("--partition=high", "--nodes=3", "--exclusive", "--wrap=sleep 1")
    submit.wait(urgent, 60)
    assert time.monotonic() - began < 60
    submit.wait(job, 300)
    assert "asked to stop 1" in submit.log(job)
    assert resumed_at(run_dir)[0] >= 30  # nothing was done twice
    is_like(run_dir, straight)


def test_the_time_limit_stops_and_requeues_and_scancel_is_final(submit, start, slurm):
    # A minute before the limit of two, as Slurm sees it: about 40 s after the start.
    job, run_dir = start("--time=2", "--signal=B:USR1@60", *TWO_NODES, more=("train.max_steps=100000",))
    submit.wait_log(job, "requeue", 120)
    saved = step_folders(run_dir)[-1]
    assert damage(saved) is None
    assert outcome(run_dir)["status"] == 75
    submit.wait_log(job, "attempt 1 of", 60)
    wait_step(submit, job, run_dir, int(saved.name.removeprefix("step-")) + 5)
    assert resumed_at(run_dir) == [int(saved.name.removeprefix("step-"))]

    began = time.monotonic()
    slurm.on("ctl", "scancel", job)
    ended = submit.wait(job, 60, states=("CANCELLED",))
    assert time.monotonic() - began < 30
    time.sleep(8)  # longer than a requeued job waits
    assert (slurm.state(job)["JobState"], ended["Restarts"]) == ("CANCELLED", "1")
    assert damage(step_folders(run_dir)[-1]) is None
    assert outcome(run_dir)["status"] == 75


def test_a_rank_that_dies_is_started_again_within_the_job(submit, start, straight, slurm):
    job, run_dir = start(*TWO_NODES, until=60)
    (victim, *_) = ranks(slurm, "node2")
    os.kill(victim, signal.SIGKILL)
    submit.wait(job, 240)
    assert "once more within the job (1 of at most 1)" in submit.log(job)
    assert slurm.state(job)["Restarts"] == "0"
    assert resumed_at(run_dir)[0] >= 50
    is_like(run_dir, straight)


def test_a_node_that_loses_its_power_is_replaced_and_the_run_goes_on_bit_for_bit(submit, start, straight, slurm):
    job, run_dir = start(*TWO_NODES, until=60, MAX_RETRIES="0")
    try:
        slurm.power_off("node2")
        slurm.wait_for(lambda: resumed_at(run_dir), slurm.DOWN_AFTER_S + 90, "resumed on another node")
        submit.wait(job, 240)
    finally:
        slurm.power_on("node2")
        slurm.wait_for(lambda: set(slurm.NODES) == set(slurm.idle()), 90, "all nodes idle")
    assert resumed_at(run_dir)[0] >= 50
    is_like(run_dir, straight)
    assert "node3 python" in submit.log(job)


def test_a_job_that_may_shrink_goes_on_with_the_nodes_that_are_left(submit, start, words, slurm, tmp_path):
    """As the same state does without Slurm on so many ranks. (Batch normalisation sees another share of each batch.)"""
    try:
        slurm.on("ctl", "scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=test")
        job, run_dir = start("--nodes=1-2", "--gpus-per-node=2", until=60, MAX_RETRIES="0")
        assert environment(run_dir)["world_size"] == 4
        slurm.power_off("node2")
        time.sleep(5)  # nothing is written any more, and Slurm has not noticed yet
        shutil.copytree(run_dir, tmp_path / "copy")
        submit.wait(job, 300)
    finally:
        slurm.power_on("node2")
        slurm.on("ctl", "scontrol", "update", "NodeName=node3", "State=RESUME")
        slurm.wait_for(lambda: set(slurm.NODES) == set(slurm.idle()), 90, "all nodes idle")
    assert environment(run_dir)["world_size"] == 2
    without_slurm("ttd/pretrain.py", tmp_path / "copy", words, config="ddp", ranks=2)
    assert resumed_at(run_dir) == resumed_at(tmp_path / "copy")
    assert losses(run_dir) == losses(tmp_path / "copy")
    assert len(losses(run_dir)) == STEPS


def test_a_network_that_is_cut_for_20_seconds_costs_time_alone(submit, start, straight, slurm):
    job, run_dir = start(*TWO_NODES, until=30)
    slurm.cable("node2", plugged=False)
    time.sleep(20)
    before = max(losses(run_dir))
    slurm.cable("node2", plugged=True)
    wait_step(submit, job, run_dir, min(before + 10, STEPS), 90)
    submit.wait(job, 240)
    assert resumed_at(run_dir) == []
    is_like(run_dir, straight)


def ranks(slurm, host: str) -> list[int]:
    """Processes of a node that are ranks of a training."""
    found = []
    for pid in slurm.run("ip", "netns", "pids", slurm.namespace(host)).split():
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(b"LOCAL_RANK=") for word in words):
            found.append(int(pid))
    return found
