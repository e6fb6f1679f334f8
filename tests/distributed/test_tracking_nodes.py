"""Two simulated nodes, a launcher each, with W&B offline: every node keeps a folder of its own of one run, and after all
processes were killed and the job was requeued the log is one record without a gap."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ttd.engine.tracking import read_log

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(3 * DEADLINE_S)]


def start(output_dir: Path, attempt: int, *program: str) -> list[subprocess.Popen]:
    """One torchrun per node, with one rank each, as two tasks of Slurm's job 77 would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "SLURM", "TTD_", "WANDB_"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}
    environment |= {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(attempt)}
    launchers = []
    for node in (0, 1):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)]
        command += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command += program
        own = {"SLURM_NODEID": str(node), "SLURMD_NODENAME": f"host{node}"}
        with (output_dir / f"printed-{attempt}-{node}.txt").open("w") as printed:
            launchers.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment | own,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    return launchers


def start_toy(output_dir: Path, attempt: int, max_steps: int) -> list[subprocess.Popen]:
    intervals = ("train.log_every=1", "train.checkpoint_every=5", f"train.max_steps={max_steps}")
    toy = ("tests/distributed/toy_train.py", f"output_dir={output_dir}", "train.tracking.to=[wandb]")
    return start(output_dir, attempt, *toy, *intervals)


def finish(launchers: list[subprocess.Popen], output_dir: Path) -> None:
    try:
        for launcher in launchers:
            assert launcher.wait(DEADLINE_S) == 0, [p.read_text()[-1500:] for p in output_dir.glob("printed-*.txt")]
    finally:
        kill(launchers)


def kill(launchers: list[subprocess.Popen]) -> None:
    """SIGKILL to the launchers, their ranks and W&B's services, as when the nodes crash."""
    alive = [psutil.Process(launcher.pid) for launcher in launchers if launcher.poll() is None]
    for process in [*alive, *(child for parent in alive for child in parent.children(recursive=True))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    for launcher in launchers:
        launcher.wait()


def wandb_records(folder: Path) -> list[dict]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_nodes_keep_one_run_and_after_a_kill_and_a_requeue_the_log_has_no_gap(tmp_path):
    launchers = start_toy(tmp_path, 0, max_steps=1_000_000)
    try:
        end = time.monotonic() + DEADLINE_S
        while not (
            any(record["step"] >= 17 for record in read_log(tmp_path))  # states after steps 5, 10, 15
            and len([p for p in tmp_path.glob("wandb/**/*.wandb") if p.stat().st_size > 1000])
            == 2  # written every second
        ):
            printed = [path.read_text()[-1500:] for path in sorted(tmp_path.glob("printed-0-*.txt"))]
            assert time.monotonic() < end, printed
            assert all(launcher.poll() is None for launcher in launchers), printed
            time.sleep(0.1)
    finally:
        kill(launchers)
    killed_at = read_log(tmp_path)[-1]["step"]

    finish(start_toy(tmp_path, 1, max_steps=killed_at + 20), tmp_path)

    log = read_log(tmp_path)
    assert [r["step"] for r in log if r["event"] == "train"] == [*range(1, killed_at + 21)]
    assert [r["event"] for r in log if r["event"] not in ("train", "node")] == ["started", "resumed"]
    for name in ("log.jsonl", "log.node1.jsonl"):
        assert [r["step"] for r in read_log(tmp_path, name) if r["event"] == "node"] == [*range(1, killed_at + 21)]
    (resumed,) = [r["step"] for r in log if r["event"] == "resumed"]
    assert killed_at - 10 <= resumed <= killed_at

    folders = {path.parts[-3]: path for path in sorted(tmp_path.glob("wandb/*/wandb/offline-run-*"))}
    assert [*folders] == ["node0-host0-77.0", "node0-host0-77.1", "node1-host1-77.0", "node1-host1-77.1"]
    records = {name: wandb_records(folder) for name, folder in folders.items()}
    runs = {name: next(r["run"] for r in of_run if r["type"] == "run") for name, of_run in records.items()}
    assert len({run["run_id"] for run in runs.values()}) == 1
    assert {run["run_group"] for run in runs.values()} == {"slurm-77"}
    assert {name: run["config"]["update"]["launch"]["node"] for name, run in runs.items()} == {
        n: n[:5] for n in folders
    }
    for name, of_run in records.items():
        measured = {key for r in of_run if r["type"] == "stats" for key in r["stats"]["item"]}
        assert {key.partition("/l:")[2] for key in measured} <= {name[:5]}
    trained = [
        r["history"]["step"]["num"] for r in records["node0-host0-77.1"] if "train/loss" in str(r.get("history"))
    ]
    assert trained == [*range(resumed + 1, killed_at + 21)]
    assert not any("train/loss" in str(r) for r in records["node1-host1-77.1"])


def test_a_step_takes_as_long_as_on_its_slowest_rank_and_every_node_keeps_its_own_times(tmp_path):
    finish(start(tmp_path, 0, "tests/distributed/tracked_steps.py", str(tmp_path)), tmp_path)
    trained = [r for r in read_log(tmp_path) if r["event"] == "train"]
    nodes = [[r for r in read_log(tmp_path, name) if r["event"] == "node"] for name in ("log.jsonl", "log.node1.jsonl")]
    assert [[r["host"] for r in node] for node in nodes] == [["host0"] * 2, ["host1"] * 2]
    for line, *own in zip(trained, *nodes, strict=True):
        assert line["step_s"] == pytest.approx(max(r["step_s"] for r in own), rel=1e-4)
        assert line["data_wait_s"] == pytest.approx(sum(r["data_wait_s"] for r in own) / 2, rel=1e-4)
        assert own[1]["data_wait_s"] >= 0.1
        assert own[0]["data_wait_s"] < own[1]["data_wait_s"]
    (folder,) = tmp_path.glob("wandb/node1-host1-77.0/wandb/offline-run-*")
    kept = [r["history"]["item"] for r in wandb_records(folder) if r["type"] == "history"]
    assert [item["node1/data_wait_s"] for item in kept] == [r["data_wait_s"] for r in nodes[1]]
