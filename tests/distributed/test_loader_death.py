"""What one rank's reading does to the other: an error, a death or a wait in the loader of rank 1, with two real ranks.

Batches are read by a thread of the rank itself: no worker process can be lost without the rank. An exception in that thread
is raised in the loop; memory that runs out kills the rank.
"""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest
import test_engine_launch
from test_engine_launch import launch, losses

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from small_shards import write_part

GONE_S = 5  # from the fault until the launcher has seen the last rank go
BUSY_S = 1.5  # more where others want the same two cores

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(test_engine_launch, "TOY", "tests/distributed/sharded_train.py")
    monkeypatch.setattr(test_engine_launch, "DEADLINE_S", 90)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_part(root / "train", n=10)
    return root


def run(study, folder, *overrides):
    """Train on two ranks; what was printed, and the seconds from the fault (or the last batch read) to the last rank's end."""
    printed = launch("ddp", folder, f"data.shards={study}", *overrides)
    assert "micro × 2 ranks" in printed, printed[-3000:]
    note = folder / "fault-at.txt"
    fault_at = float(note.read_text()) if note.exists() else (folder / "seen-0.jsonl").stat().st_mtime
    ended = re.findall(r"^E\d{4} (\d\d:\d\d:\d\d\.\d+) .*failed \(exitcode", printed, re.MULTILINE)
    if not ended:
        return printed, None
    day = datetime.fromtimestamp(fault_at)
    end = datetime.combine(day.date(), datetime.strptime(ended[0], "%H:%M:%S.%f").time())
    return printed, (end - day).total_seconds() % 86400


def test_an_exception_in_the_thread_that_reads_ends_both_ranks_and_is_named(study, tmp_path):
    printed, gone_s = run(study, tmp_path, "fault=[raise, 20]", "train.max_steps=500")
    assert "RuntimeError: a fault in the thread that reads" in printed
    assert gone_s <= GONE_S + BUSY_S
    assert len((tmp_path / "seen-0.jsonl").read_text().splitlines()) < 20


def test_a_rank_killed_while_it_reads_ends_the_other(study, tmp_path):
    printed, gone_s = run(study, tmp_path, "fault=[kill, 20]", "train.max_steps=500")
    assert "exitcode  : -9" in printed
    assert "Signal 9 (SIGKILL)" in printed
    assert gone_s <= GONE_S + BUSY_S


def test_a_damaged_sample_that_only_rank_1_meets_ends_both_ranks_and_is_named(tmp_path):
    study = tmp_path / "study"
    write_part(study / "train", n=10)
    path = study / "train" / "000002.tar"  # sample 4, fourth of the first batch: rank 1 reads it
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    printed, gone_s = run(study, tmp_path / "run", "train.max_steps=500")
    name = "000002.tar: sample 'sub-0_img-0004', member eeg.npy at byte 512: damaged"
    assert name in printed, printed[-3000:]
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["status"] == 2
    assert outcome["message"].startswith("rank 1: ")
    assert name in outcome["message"]
    assert gone_s <= GONE_S + BUSY_S


def test_storage_that_stands_still_on_one_rank_delays_both_and_changes_nothing(study, tmp_path):
    run(study, tmp_path / "calm")
    printed, _ = run(study, tmp_path / "stalled", "fault=[stall, 20]")
    assert "rank 1: " in printed
    assert "a read took 2." in printed
    assert "s lost)" in printed
    assert json.loads((tmp_path / "stalled" / "outcome.json").read_text())["status"] == 0
    assert losses(tmp_path / "stalled") == losses(tmp_path / "calm")
