"""The watchdog ends processes, so it is watched from outside."""

import subprocess
import sys
import time

import pytest

BEGIN = """
import sys, threading, time
from pathlib import Path
from ttd.engine.watchdog import Watchdog

def somewhere():
    threading.Event().wait()

with Watchdog(Path(sys.argv[1]), rank=0, world=int(sys.argv[2]), limit_s=0.5) as watchdog:
"""


def run(folder, body: str, world: int = 1) -> tuple[subprocess.CompletedProcess, float]:
    start = time.monotonic()
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    command = [sys.executable, "-c", BEGIN + lines, str(folder), str(world)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - start


def test_a_step_that_never_ends_ends_the_process_and_leaves_its_stack(tmp_path):
    done, seconds = run(tmp_path, "watchdog.step()\nsomewhere()")
    assert done.returncode == 1
    assert seconds < 5
    stack = (tmp_path / "stacks/rank-0.txt").read_text()
    assert "in somewhere" in stack  # where it stands
    assert "without a step" in stack.splitlines()[0]


def test_ranks_that_left_no_stack_are_named(tmp_path):
    done, _ = run(tmp_path, "watchdog.step()\nsomewhere()", world=3)
    assert "ranks [1, 2] wrote none" in done.stderr


@pytest.mark.parametrize("body", ["time.sleep(1.5)", "watchdog.step()\nwith watchdog.patient():\n    time.sleep(1.5)"])
def test_the_first_step_and_what_is_known_to_take_long_may_take_ten_times_as_long(tmp_path, body):
    done, _ = run(tmp_path, body)
    assert (done.returncode, done.stderr) == (0, "")


def test_steps_keep_it_quiet_and_it_ends_with_the_training(tmp_path):
    body = "for _ in range(10):\n    time.sleep(0.2)\n    watchdog.step()"
    done, _ = run(tmp_path, body)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])


def test_what_it_left_of_an_earlier_hang_is_gone_at_the_next_start(tmp_path):
    run(tmp_path, "watchdog.step()\nsomewhere()")
    assert (tmp_path / "stacks/rank-0.txt").exists()
    run(tmp_path, "watchdog.step()")
    assert not (tmp_path / "stacks/rank-0.txt").exists()
