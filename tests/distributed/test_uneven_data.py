"""Three ranks whose data do not divide evenly, or are not there: all make the same steps, or all end at once and say why."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import test_engine_launch
from test_engine_launch import launch

from ttd.engine.tracking import read_log

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from small_shards import write_part

RANKS, STEPS, TOTAL = 3, 8, 6
LAUNCH_S = 120  # 8 s alone on two cores; longer is a hang

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(test_engine_launch, "TOY", "tests/distributed/sharded_train.py")
    monkeypatch.setattr(test_engine_launch, "DEADLINE_S", LAUNCH_S)


def seen(folder, rank):
    """(position, sample) of every step of a rank; it may have read a few steps ahead."""
    lines = (folder / f"seen-{rank}.jsonl").read_text().splitlines()
    return [[tuple(pair) for pair in json.loads(line)] for line in lines][:STEPS]


@pytest.mark.parametrize("n", [10, 2, 1])
def test_every_rank_makes_as_many_full_steps_whatever_the_number_of_samples(tmp_path, n):
    """10 samples are no multiple of 3 ranks nor of the batch of 6; 2 and 1 are fewer than ranks."""
    write_part(tmp_path / "study" / "train", n=n)
    printed = launch("ddp", tmp_path / "run", f"data.shards={tmp_path / 'study'}", ranks=RANKS)
    assert '{"world": 3, "step": 8}' in printed, printed[-3000:]
    ranks = [seen(tmp_path / "run", rank) for rank in range(RANKS)]
    assert [[len(step) for step in steps] for steps in ranks] == [[TOTAL // RANKS] * STEPS] * RANKS
    pairs = sorted(pair for steps in ranks for step in steps for pair in step)
    assert [position for position, _ in pairs] == list(range(STEPS * TOTAL))
    for start in range(0, STEPS * TOTAL - n + 1, n):  # every pass that is complete
        assert sorted(sample for _, sample in pairs[start : start + n]) == list(range(n))
    times = Counter(sample for _, sample in pairs)
    assert max(times.values()) - min(times.values()) <= 1
    assert [r["step"] for r in read_log(tmp_path / "run") if r["event"] == "train"] == list(range(1, STEPS + 1))


def test_a_rank_without_shards_ends_all_ranks_and_says_what_is_missing(tmp_path):
    """As on a node whose local disk got no copy."""
    for rank in range(RANKS):
        write_part(tmp_path / f"study-{rank}" / "train", n=10)
    shutil.rmtree(tmp_path / "study-2" / "train")
    printed = launch("ddp", tmp_path / "run", f"data.shards={tmp_path / 'study'}", "folder_of_rank=true", ranks=RANKS)
    assert "study-2/train: holds no shards (index.json is missing)" in printed, printed[-3000:]
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["status"] == 2
    assert "rank 2: " in outcome["message"]
    assert "study-2/train: holds no shards" in outcome["message"]


@pytest.mark.parametrize("what", ["quarantine", "another build"])
def test_ranks_with_different_copies_of_the_data_are_refused_before_the_first_step(tmp_path, what):
    """Else each has an order of its own: samples come twice or never, and no error is ever seen."""
    for rank in range(RANKS):
        write_part(tmp_path / f"study-{rank}" / "train", n=10 if rank < 2 or what == "quarantine" else 11)
    if what == "quarantine":
        (tmp_path / "study-2" / "train" / "quarantine.json").write_text('{"samples": [{"key": "sub-1_img-0001"}]}')
    launch("ddp", tmp_path / "run", f"data.shards={tmp_path / 'study'}", "folder_of_rank=true", ranks=RANKS)
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["status"] == 2
    assert "ranks [2] read other data than rank 0" in outcome["message"]
    assert not list((tmp_path / "run").glob("seen-*"))


def test_a_part_of_which_everything_is_in_quarantine_is_refused(tmp_path):
    write_part(tmp_path / "study" / "train", n=2)
    keys = [{"key": f"sub-{i}_img-000{i}"} for i in range(2)]
    (tmp_path / "study" / "train" / "quarantine.json").write_text(json.dumps({"samples": keys}))
    printed = launch("ddp", tmp_path / "run", f"data.shards={tmp_path / 'study'}", ranks=RANKS)
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["status"] == 2, printed[-3000:]
    assert "holds no sample" in outcome["message"]
