"""How the processes of one launch find each other, hand their reports to rank 0, and part.

Everything travels as JSON through the launcher's store (torch's TCPStore): no pickled objects, no collective that a hanging
rank could hold up, and whoever is missing is known by rank and host.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ttd.checkup.findings import Finding, RankReport, first_line, host_name, ok, places, problem

ONE_EACH = "give each process a rank of its own: expand $SLURM_NODEID inside srun's task, not before"


@dataclass
class Meeting:
    """Who came. ``store`` is None for a process alone, and for one that found no store."""

    rank: int
    world: int
    finding: Finding
    store: Any = None
    hosts: dict[int, str] = field(default_factory=dict)
    """Rank → host, of those that came."""

    @property
    def complete(self) -> bool:
        return self.finding.status == "ok"


def meet(expected: int | None, timeout_s: float) -> Meeting:
    """Find the other processes of this launch at MASTER_ADDR:MASTER_PORT.

    Args:
        expected: processes there should be; None: as many as the launcher says.
    """
    host = host_name()
    if "RANK" not in os.environ:
        return Meeting(0, 1, _alone(expected), None, {0: host})
    rank, world = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store = _store(rank, world, timeout_s)
    except (RuntimeError, KeyError, ValueError) as error:
        text = f"rank {rank} of {world} on {host} found no meeting point at {place} within {timeout_s:g} s: "
        remedy = (
            "MASTER_ADDR must be the first node, reachable from all, MASTER_PORT free and the same everywhere; "
            "rank 0 must run there"
        )
        return Meeting(rank, world, problem(text + first_line(error), remedy), None, {rank: host})
    if store.add(f"claims/{rank}", 1) > 1:
        text = f"rank {rank} of {world} on {host} was there already: several processes say that they are it"
        return Meeting(rank, world, problem(text, ONE_EACH), None, {rank: host})
    store.set(f"came/{rank}", json.dumps({"host": host, "world": world}))
    came = wait_for(store, [f"came/{r}" for r in range(world)], timeout_s)
    told = {int(key.partition("/")[2]): json.loads(store.get(key)) for key in came}
    hosts = {r: words["host"] for r, words in told.items()}
    worlds = {r: words["world"] for r, words in told.items()}
    return Meeting(rank, world, _judge(world, expected, hosts, worlds, timeout_s), store, hosts)


def _store(rank: int, world: int, timeout_s: float) -> Any:
    from torch.distributed import PrefixStore, TCPStore

    launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then it holds the store, else rank 0 does
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world,
        is_master=rank == 0 and not launcher,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,  # who is missing is told below, by rank
        multi_tenant=True,
    )
    return PrefixStore(f"ttd-doctor-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def wait_for(store: Any, keys: Sequence[str], timeout_s: float) -> list[str]:
    """Those of ``keys`` that are there when all are, or after ``timeout_s`` seconds."""
    end = time.monotonic() + timeout_s
    for key in keys:
        try:
            store.wait([key], timedelta(seconds=max(end - time.monotonic(), 0.01)))
        except RuntimeError:  # DistStoreError: the time is over
            break
    try:
        return [key for key in keys if store.check([key])]
    except RuntimeError:  # DistNetworkError: the process that held the store is gone
        return []


def _alone(expected: int | None) -> Finding:
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        text = f"Slurm started {tasks} tasks, but this process has no RANK: each would train a world of its own"
        return problem(
            text, "let each task start `accelerate launch --machine_rank $SLURM_NODEID ...`, as slurm/*.sh do"
        )
    if expected not in (None, 1):
        return problem(f"1 process, {expected} are expected", "start with accelerate launch --num_processes N")
    return ok("1 process")


def _judge(
    world: int,
    expected: int | None,
    hosts: Mapping[int, str],
    worlds: Mapping[int, int],
    timeout_s: float,
) -> Finding:
    """What is wrong with who came; ``worlds`` is the number of processes that each rank was told."""
    missing = sorted(set(range(world)) - set(hosts))
    if missing:
        listed = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        text = f"{len(hosts)} of {world} ranks came within {timeout_s:g} s: {places(hosts, world)}; missing: {listed}"
        return problem(text, "look at the launcher's log of the node that is not named; can it reach MASTER_ADDR?")
    if len(set(worlds.values())) > 1:
        common = Counter(worlds.values()).most_common(1)[0][0]
        others = {r: hosts[r] for r in worlds if worlds[r] != common}
        text = f"{places(others, world)} was told {worlds[next(iter(others))]} processes, the others {common}"
        return problem(text, "give every launcher the same --num_processes and --num_machines")
    if expected not in (None, world):
        return problem(f"{world} ranks, {expected} are expected", "--num_processes counts all nodes: nodes × GPUs")
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if len(set(hosts.values())) < nodes:
        text = (
            f"{world} ranks on {len(set(hosts.values()))} of the {nodes} nodes of this step: each node trains by itself"
        )
        remedy = (
            "launch/multi_node.yaml (deepspeed_multinode_launcher: standard) with --num_machines and --machine_rank"
        )
        return problem(text, remedy)
    n = len(set(hosts.values()))
    return ok(f"{world} of {world} ranks on {n} host{'s' if n > 1 else ''}")


def collect(meeting: Meeting, mine: RankReport, timeout_s: float) -> tuple[list[RankReport], Finding | None]:
    """On rank 0 the reports of all ranks that came, and what is wrong with the others; elsewhere only its own."""
    if meeting.rank != 0:
        with contextlib.suppress(RuntimeError):  # DistNetworkError: rank 0 is gone, as ``part`` will find
            meeting.store.set(f"report/{mine.rank}", json.dumps(mine.to_json()))
        return [mine], None
    keys = {f"report/{rank}": rank for rank in meeting.hosts if rank != 0}
    arrived = wait_for(meeting.store, list(keys), timeout_s)
    reports = [mine, *(RankReport.from_json(json.loads(meeting.store.get(key))) for key in arrived)]
    twice = [rank for rank in meeting.hosts if meeting.store.add(f"claims/{rank}", 0) > 1]
    if twice:
        return reports, problem(f"several processes say that they are rank {twice[0]}", ONE_EACH)
    silent = {rank: meeting.hosts[rank] for key, rank in keys.items() if key not in arrived}
    if not silent:
        return reports, None
    text = f"{places(silent, meeting.world)}: came, but did not report within {timeout_s:g} s"
    return reports, problem(text, "look at that node: `py-spy dump --pid PID` shows where its process hangs")


def part(meeting: Meeting, status: str, timeout_s: float) -> str:
    """End together: rank 0 tells its ``status`` and waits until the others know; returns rank 0's, "" where none came."""
    if meeting.store is None:
        return status
    if meeting.rank == 0:
        meeting.store.set("status", status)
        wait_for(meeting.store, [f"left/{rank}" for rank in meeting.hosts if rank != 0], 5.0)
        return status
    if not wait_for(meeting.store, ["status"], timeout_s):
        return ""
    told = meeting.store.get("status").decode()
    with contextlib.suppress(RuntimeError):  # rank 0 waited long enough
        meeting.store.set(f"left/{meeting.rank}", "")
    return told
