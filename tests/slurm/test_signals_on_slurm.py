"""R2 in small: benchmarks/slurm_signals.py sends ten times as many."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[2] / "benchmarks/slurm_signals.py"


def test_signals_at_random_instants_lose_nothing_and_the_job_is_queued_again_in_time(submit, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("slurm_signals", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "slurm_signals", script)  # dataclasses look their module up
    spec.loader.exec_module(script)
    tally = script.signals(5, tmp_path, submit)
    assert tally.failures == []
    assert {kind: len(seconds) for kind, seconds in tally.seconds.items()} == {"USR1": 5, "TERM": 5}
    assert tally.equal == tally.steps > 0
