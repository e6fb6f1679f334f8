"""How the ranks of a launch find each other, or who is missing; real processes, each with a deadline."""

import json
import sys

import pytest
from doctor_runs import DEADLINE_S, SAID, end, free_port, rank_of, start

from ttd.checkup.meeting import meet

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(2 * DEADLINE_S)]

MEET = SAID + "from ttd.checkup.meeting import *; m = meet(None, {}); "


def together(*ranks: tuple[str, dict[str, str]]) -> list[dict]:
    """What each process says last, after its own code."""
    processes = [start([sys.executable, "-c", code], **told) for code, told in ranks]
    said = []
    for process in processes:
        _, printed = end(process)
        said.append(json.loads(next(line for line in reversed(printed.splitlines()) if line.startswith("{"))))
    return said


def test_a_rank_that_finds_no_rank_0_says_where_it_looked():
    port = free_port()
    [finding] = together((MEET.format(2) + "say(m.finding)", rank_of(1, 2, port)))
    assert finding["status"] == "problem"
    assert finding["text"].startswith(f"rank 1 of 2 on node1 found no meeting point at 127.0.0.1:{port} within 2 s: ")
    assert "MASTER_ADDR must be the first node" in finding["remedy"]


def test_two_processes_with_one_rank_are_found_out():
    """$SLURM_NODEID expanded by the batch shell: every node believes that it is the first."""
    port = free_port()
    alone = MEET.format(60) + "say(m.finding); part(m, 'ok', 30)"
    until_both_came = (
        "end = time.monotonic() + 60\nwhile m.store.add('claims/1', 0) < 2 and time.monotonic() < end: time.sleep(0.05)"
    )
    serves = MEET.format(60) + f"say(m.finding)\n{until_both_came}\npart(m, 'ok', 30)"
    said = together((serves, rank_of(0, 2, port)), *((alone, rank_of(1, 2, port)) for _ in range(2)))
    [second] = [finding for finding in said[1:] if finding["status"] == "problem"]
    assert second["text"] == "rank 1 of 2 on node1 was there already: several processes say that they are it"
    assert "inside srun's task" in second["remedy"]


def test_ranks_that_were_told_different_worlds_are_found_out():
    port = free_port()
    stay = MEET.format(60) + "say(m.finding); part(m, 'ok', 30)"
    said = together((stay, rank_of(0, 2, port)), (stay, rank_of(1, 1, port)))
    assert said[0]["text"] == "rank 1 on node1 was told 1 processes, the others 2"


def test_a_rank_that_hangs_after_coming_is_named_by_the_others():
    port = free_port()
    hangs = MEET.format(60) + "say(m.finding); time.sleep(5)"
    waits = MEET.format(60) + "reports, silent = collect(m, RankReport(0, 'node0', {{}}), 2); say(silent)"
    said = together((waits.format(60), rank_of(0, 2, port)), (hangs, rank_of(1, 2, port)))
    assert said[0]["text"] == "rank 1 on node1: came, but did not report within 2 s"


def test_ranks_that_meet_but_cannot_connect_are_a_problem():
    port = free_port()
    code = MEET.format(60) + "from ttd.checkup.world import *; say(join(m, 5))"
    wrong = {"GLOO_SOCKET_IFNAME": "nosuch0"}
    said = together((code, rank_of(0, 2, port, **wrong)), (code, rank_of(1, 2, port, **wrong)))
    for finding in said:
        assert finding["status"] == "problem"
        assert finding["text"].startswith("2 of 2 ranks on 2 hosts, but they cannot connect: ")
        assert "GLOO_SOCKET_IFNAME" in finding["remedy"]


def test_a_launch_that_every_command_refuses_is_refused_here_in_the_same_words():
    code = MEET.format(1) + "from ttd.checkup.world import *; say(join(m, 5))"
    [finding] = together((code, {"ACCELERATE_MIXED_PRECISION": "fp16"}))
    assert finding["status"] == "problem"
    assert "1 process, but mixed_precision=fp16 of the launch file is not supported" in finding["text"]


def test_a_rank_that_dies_in_the_all_reduce_is_a_problem_and_no_hang():
    port = free_port()
    code = MEET.format(60) + "from ttd.checkup.world import *; joined = join(m, 30); "
    dies = code + "say(joined); import os; os._exit(1)"
    goes_on = code + "say(all_reduce(m, 0.0))"
    said = together((goes_on, rank_of(0, 2, port)), (dies, rank_of(1, 2, port)))
    assert said[0]["status"] == "problem"
    assert said[0]["text"].startswith("ranks do not answer each other: RuntimeError")


@pytest.mark.parametrize(
    ("told", "expected", "words"),
    [
        ({}, 8, "1 process, 8 are expected"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, None, "Slurm started 4 tasks, but this process has no RANK"),
        (rank_of(0, 1, "0"), 16, "1 ranks, 16 are expected"),
        (rank_of(0, 1, "0", SLURM_STEP_NUM_NODES="2"), None, "1 ranks on 1 of the 2 nodes of this step"),
        (rank_of(0, 1, "none"), None, "found no meeting point at 127.0.0.1:none"),
    ],
)
def test_a_world_smaller_than_it_should_be_is_a_problem(told, expected, words, monkeypatch):
    for name in ("RANK", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, free_port() if (name, value) == ("MASTER_PORT", "0") else value)
    finding = meet(expected, 5).finding
    assert finding.status == "problem"
    assert words in finding.text
