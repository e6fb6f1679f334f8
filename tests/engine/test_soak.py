"""R12 in short: 5,000 steps with states, validation, log and a stream of real shards leave memory and files as they were."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 480  # 20 s alone on two cores, three minutes where four times as many processes want them


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_5000_steps_leave_memory_files_threads_and_shared_memory_as_they_were():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "benchmarks/soak.py", "5000"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "R12 5000 steps" in done.stdout
    assert "500 lines of the log" in done.stdout
    assert "10 validations, 20 states" in done.stdout
    (growth,) = re.findall(r"MB at 5000: ([+-]\d+\.\d+) %", done.stdout)
    assert float(growth) <= 2.0


def test_the_report_of_a_run_that_grows_is_bad(capsys, monkeypatch):
    """A leak of 0.5 MB a look, of one file, of one entry of /dev/shm; and a run without any."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import soak

    def looks(**growing):
        start = {"rss_mb": 500.0, "files": 30, "threads": 3, "shm": 0, "states": 2, "states_mb": 0.5}
        return [
            soak.Look(step=10 * i, **{name: value + growing.get(name, 0) * i for name, value in start.items()})
            for i in range(1, 101)
        ]

    assert soak.report(looks())
    assert soak.report(looks(rss_mb=0.05))  # 1 % in all
    for name, step in (("rss_mb", 0.5), ("files", 1), ("shm", 1), ("threads", 1), ("states", 1)):
        assert not soak.report(looks(**{name: step})), name
    assert "goal <= 2 %" in capsys.readouterr().out
