"""The GPU's benchmark runs whole on the tiny base, wherever it is; its figures are a GPU's alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from ttd.diffusion.attention import compiler_problem

ROOT = Path(__file__).parents[2]
LINES = {"G1": 3, "G2": 7, "G3": 2, "G4": 4, "G5": 1}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(compiler_problem(True) is not None, reason="there is no C compiler")
def test_every_figure_of_the_gpu_benchmark_is_made_on_the_tiny_base():
    command = [sys.executable, "benchmarks/gpu_finetune.py", "tiny"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = [line.split("|")[1].strip() for line in ended.stdout.splitlines() if line.startswith("| G")]
    assert {name: rows.count(name) for name in LINES} == LINES
    assert rows.count("G6") >= 1
