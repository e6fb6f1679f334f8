"""R8: one of three ranks is killed, stopped or deadlocked, or raises; the others do not wait for it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_engine_launch import ROOT, TOY

WATCHDOG_S, RANKS = 10, 3

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(300)]


def ranks_of(mark: Path) -> dict[int, int]:
    """Rank → process, for all living processes that were started with ``MARK=mark``."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            words = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)
        if f"MARK={mark}".encode() in words and rank is not None and state != "Z":
            found[rank] = int(folder.name)
    return found


@pytest.mark.parametrize(
    ("how", "limit_s"), [("killed", 5), ("raised", 5), ("stopped", WATCHDOG_S + 5), ("deadlocked", WATCHDOG_S + 5)]
)
def test_the_other_ranks_are_gone_in_time(how, limit_s, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TTD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "MARK": str(tmp_path)}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "launch/ddp.yaml"]
    command += ["--num_processes", str(RANKS), "--main_process_port", "0", TOY, f"output_dir={tmp_path / 'run'}"]
    command += ["global_batch_size=12", f"lost=[{how}, 3]", f"engine.watchdog_s={WATCHDOG_S}"]
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end, most = time.monotonic() + 120, 0
        while not (found := re.search(r"lost at ([\d.]+)", log.read_text())):
            most = max(most, len(ranks_of(tmp_path)))
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.1)
        assert most == RANKS
        while [rank for rank in ranks_of(tmp_path) if rank != 1]:
            assert time.time() - float(found[1]) < limit_s, log.read_text()[-3000:]
            time.sleep(0.05)
        launcher.wait(timeout=60)  # it also ends a rank that stands still, after its own grace time
        assert launcher.returncode != 0
        assert ranks_of(tmp_path) == {}
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            for process in ranks_of(tmp_path).values():
                os.kill(process, signal.SIGKILL)
    stacks = {path.name for path in (tmp_path / "run/stacks").glob("*")}
    if how == "deadlocked":
        assert "in lose" in (tmp_path / "run/stacks/rank-1.txt").read_text()
    if how == "stopped":
        assert stacks == {"rank-0.txt", "rank-2.txt"}
        assert "ranks [1] wrote none" in log.read_text()
    if how == "raised":
        assert "something in this rank alone" in log.read_text()
