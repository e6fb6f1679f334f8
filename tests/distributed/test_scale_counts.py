"""``benchmarks/scale.py``: its formulas by hand, and the bytes that two real ranks send."""

import argparse
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scale


def test_the_table_of_expected_efficiencies_is_found_again():
    text, good = scale.guarantees()
    assert good, text
    assert "81 and 691 MB" in text


def test_bytes_of_one_update_by_hand():
    """A million weights, four ranks, eight micro-batches: a half of a ring is 3/4 of 4 MB."""
    sent = {way.name: way.sent(1e6, 4, 8) / 3e6 for way in (scale.DDP, scale.ONE, scale.EVERY, scale.EVERY_OWNER)}
    assert [*sent.values()] == [2, 3, 17, 9]
    assert scale.replace(scale.ONE, half=True).sent(1e6, 4, 8) / 3e6 == 2  # gradients in 2 bytes, weights in 4
    assert scale.DDP.sent(1e6, 1, 8) == 0


def test_the_ranks_of_a_node_share_its_link():
    """Two nodes of four: 3/4 of each half inside, half of it between nodes through one link for all four."""
    seconds = scale.DDP.seconds(1e9, 2, 4, 1e9, 1)
    assert seconds == pytest.approx(2 * 4e9 * (0.75 / 450e9 + 0.5 / 1e9))
    flat = scale.DDP.sent(1e9, 8, 1)
    inside, between = 2 * 4e9 * 3 / 4, 2 * 4e9 / 4 / 2  # of a rank
    assert flat == pytest.approx(inside + between)


def test_more_work_between_messages_is_more_efficient():
    def shown(**more):
        options = {"model": "finetune", "precision": "bf16", "sample_ms": None, "batch": 4, "gpus": 8, "nodes": [2]}
        text = scale.prediction(argparse.Namespace(**options, **more))
        row = next(line for line in text.splitlines() if "| DDP |" in line)
        return float(row.rstrip(" |").rpartition(", ")[2])

    assert shown(accumulation=1) < shown(accumulation=4) < shown(accumulation=64) < 1


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(400)
def test_two_ranks_send_as_many_bytes_as_predicted():
    ways = [(scale.DDP, "no"), (scale.replace(scale.ONE, half=True), "bf16")]
    text, good = scale.check((2,), ways)
    assert good, text
    assert ("not measured" in text) == (os.geteuid() != 0)
