"""Several real processes: what the ranks of a launch find out about each other; every test has a deadline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from doctor_runs import (
    DEADLINE_S,
    doctor,
    end,
    flip,
    found,
    free_port,
    plant_version,
    rank_of,
    start,
    write_shards,
)

from ttd.doctor import Check

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(2 * DEADLINE_S)]


def launch(config: str, output_dir, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [f"launch/{config}.yaml", "--num_processes", "2", "--main_process_port", "0", "ttd/doctor.py"]
    return end(start([*command, f"output_dir={output_dir}", *arguments]))


def test_two_ranks_of_ddp_agree_and_tell_their_bandwidth(tmp_path):
    write_shards(tmp_path / "shards")
    arguments = (
        f"shards={tmp_path / 'shards'}",
        "processes=2",
        "min_bus_gb_s=1000",
        "only=[shards,code,shared,all-reduce]",
    )
    status, printed = launch("ddp", tmp_path / "out", *arguments)
    assert status == 0, printed
    content = json.loads((tmp_path / "out/doctor.json").read_text())
    assert content["world"] == 2
    assert [report["rank"] for report in content["ranks"]] == [0, 1]
    assert [report["findings"]["shards"]["status"] for report in content["ranks"]] == ["ok", "ok"]
    lines = found(tmp_path / "out")
    assert lines["world"]["text"] == "2 of 2 ranks on 1 host, MULTI_CPU over gloo, cpu"
    assert lines["shared"]["text"] == f"{tmp_path / 'out'} is the same folder on 2 ranks"
    assert lines["code"]["text"].startswith("the same on 2 ranks: python ")
    speed = lines["all-reduce"]
    assert (speed["status"], speed["text"].startswith("93 MB ")) == ("warning", True)
    seconds, gb_s = float(speed["text"].split(" in ")[1].split()[0]), float(speed["text"].split(" GB/s")[0].split()[-1])
    assert gb_s == pytest.approx(4 * 23_224_320 / seconds / 1e9, abs=0.01 + 0.02 * gb_s)  # 2 (n − 1) / n = 1
    assert printed.count("all-reduce") == 1, "rank 0 alone prints"


@pytest.mark.slow
def test_two_ranks_of_zero2_agree_on_every_line(tmp_path):
    status, printed = launch("zero2", tmp_path, "min_disk_gb=0")
    assert status == 0, printed
    assert list(found(tmp_path)) == [name for name in get_args(Check) if name != "shards"]
    assert found(tmp_path)["world"]["text"] == "2 of 2 ranks on 1 host, DEEPSPEED over gloo, cpu"
    assert json.loads((tmp_path / "doctor.json").read_text())["world"] == 2


def test_the_rank_with_another_version_a_damaged_copy_or_another_folder_is_named_with_its_host(tmp_path):
    """Each node has its own disk under the same names; that of node1 lost a bit."""
    tars = write_shards(tmp_path / "node0" / "shards")
    shutil.copytree(tmp_path / "node0", tmp_path / "node1")
    flip(tmp_path / "node1" / "shards" / tars[0].name, 1000)  # in the sample that rank 1 reads
    other = plant_version(tmp_path / "planted", "mne", "1.13.0")
    port, arguments = free_port(), ("shards=shards", "only=[shards,code,shared]")
    ranks = [
        doctor(Path("out"), *arguments, cwd=tmp_path / "node0", **rank_of(0, 2, port)),
        doctor(Path("out"), *arguments, cwd=tmp_path / "node1", **rank_of(1, 2, port, PYTHONPATH=other)),
    ]
    (status_0, printed), (status_1, silent) = map(end, ranks)
    assert (status_0, status_1) == (2, 2)
    content = json.loads((tmp_path / "node0/out/doctor.json").read_text())
    assert content["world"] == 2
    lines = found(tmp_path / "node0/out")
    assert list(lines) == ["torch", "shards", "world", "code", "shared"]
    assert lines["world"]["text"].startswith("2 of 2 ranks on 2 hosts, ")
    assert (lines["shards"]["status"], lines["shards"]["where"]) == ("problem", "rank 1 on node1")
    assert "shards/000000.tar: sample " in lines["shards"]["text"]
    assert lines["code"]["status"] == "problem"
    assert lines["code"]["text"].startswith("rank 1 on node1: mne 1.13.0 (others ")
    assert (lines["shared"]["status"], lines["shared"]["where"]) == ("problem", "rank 1 on node1")
    assert printed.count("[rank 1 on node1]") == 2
    assert "✓" not in silent
    assert not list((tmp_path / "node0/out").glob(".doctor-*"))


def test_a_rank_that_never_comes_is_named(tmp_path):
    status, printed = end(doctor(tmp_path, "timeout_s=1", "only=[disk]", **rank_of(0, 3, free_port())))
    assert status == 2
    assert found(tmp_path)["world"]["text"] == "1 of 3 ranks came within 1 s: rank 0 on node0; missing: 1, 2"
    assert "✗ world" in printed


@pytest.mark.slow
def test_a_slow_network_is_measured_as_it_is(tmp_path):
    """Both ranks in a network namespace whose link carries 400 Mbit/s: 0.05 GB/s."""
    ready = "ip link set lo up && tc qdisc add dev lo root tbf rate 400mbit burst 256kb latency 50ms"
    tried = (
        subprocess.run(["unshare", "--net", "bash", "-ec", ready], capture_output=True) if not os.geteuid() else None
    )
    if tried is None or tried.returncode:
        pytest.skip("shaping a network of its own needs root and tc")
    both = " & ".join(
        f"RANK={rank} SLURMD_NODENAME=node{rank} {sys.executable} ttd/doctor.py output_dir={tmp_path} only=[all-reduce]"
        for rank in (1, 0)
    )
    told = rank_of(0, 2, "29500")
    status, printed = end(start(["unshare", "--net", "bash", "-ec", f"{ready}; {both}"], **told))
    assert status in (0, 2), printed
    speed = found(tmp_path)["all-reduce"]
    assert speed["status"] == "warning"
    assert 0.01 < float(speed["text"].split(" GB/s")[0].split()[-1]) < 0.06
    assert "NCCL_SOCKET_IFNAME" in speed["remedy"]
