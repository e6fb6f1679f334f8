"""Each check of one machine, with the fault it is for really there."""

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading

import pytest
import torch
from doctor_runs import ask, flip, write_shards

from ttd.checkup import machine
from ttd.checkup.shards import fingerprints, read_shards


def test_the_python_line_warns_below_the_patch_level_of_its_line():
    finding = machine.python()
    assert finding.text.startswith(".".join(map(str, sys.version_info[:3])) + ", ")
    safe = sys.version_info[:3] >= {11: (3, 11, 14), 12: (3, 12, 12), 13: (3, 13, 6)}.get(sys.version_info[1], (3,))
    assert (finding.status, "CVE-2025-8194" in finding.text) == (("ok", False) if safe else ("warning", True))


SHM = "from ttd.checkup import machine; say(machine.shared_memory(1.0))"


def test_a_small_dev_shm_is_a_warning_for_one_rank_and_a_problem_for_several():
    small = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    assert machine.shared_memory(0.0).status == "ok"
    alone = ask(SHM, inside=small)
    assert alone["status"] == "warning"
    assert alone["text"].startswith("0.07 of 0.07 GB free in /dev/shm")
    several = ask(SHM, inside=small, LOCAL_WORLD_SIZE="8")
    assert several["status"] == "problem"
    assert "8 ranks of this host" in several["text"]


def disk_of(folder, least: float) -> str:
    return (
        f"from pathlib import Path; from ttd.checkup import machine; say(machine.disk(Path({str(folder)!r}), {least}))"
    )


def test_the_disk_of_a_run_folder_that_is_not_there_yet_is_measured(tmp_path):
    finding = machine.disk(tmp_path / "a" / "b", 0.0)
    assert finding.status == "ok"
    free = shutil.disk_usage(tmp_path).free / 1e9
    assert float(finding.text.removeprefix(f"{tmp_path}/a/b: ").split()[0]) == pytest.approx(free, rel=0.05)


@pytest.mark.parametrize(
    ("inside", "least", "words"),
    [
        ("mount -t tmpfs -o size=8m tmpfs {}", 1.0, "{}/run needs 1 GB"),
        ("mount -t tmpfs -o size=8m tmpfs {0}; head -c 8m /dev/zero > {0}/full", 0.0, "No space left on device"),
        ("mount -t tmpfs -o ro tmpfs {}", 0.0, "Read-only file system"),
    ],
    ids=["small", "full", "read-only"],
)
def test_a_disk_that_cannot_hold_a_run_is_a_problem(inside, least, words, tmp_path):
    finding = ask(disk_of(tmp_path / "run", least), inside=inside.format(tmp_path))
    assert finding["status"] == "problem"
    assert words.format(tmp_path) in finding["text"]
    assert str(tmp_path) in finding["text"]


def test_a_full_temporary_folder_is_a_problem(tmp_path):
    """The libraries unpack and compile there, while the runs' disk has space."""
    (tmp_path / "tmp").mkdir()
    inside = f"mount -t tmpfs -o size=8m tmpfs {tmp_path}/tmp"
    finding = ask(disk_of(tmp_path / "run", 0.0), inside=inside, TMPDIR=str(tmp_path / "tmp"))
    assert finding["status"] == "problem"
    assert finding["remedy"] == "make room there, or give another TMPDIR"


def test_attention_without_a_kernel_is_a_problem():
    assert machine.attention().status == "ok"
    switches = ("flash_sdp", "mem_efficient_sdp", "math_sdp")
    before = {name: getattr(torch.backends.cuda, f"{name}_enabled")() for name in switches}
    try:
        for name in switches:
            getattr(torch.backends.cuda, f"enable_{name}")(False)
        finding = machine.attention()
    finally:
        for name, value in before.items():
            getattr(torch.backends.cuda, f"enable_{name}")(value)
    assert finding.status == "problem"
    assert "SDPA does not run on cpu: RuntimeError: No viable backend" in finding.text


def test_attention_that_is_wrong_or_has_no_fast_kernel_is_told(monkeypatch):
    """No kernel of this machine is so; these stand for them."""
    right = torch.nn.functional.scaled_dot_product_attention

    def math_alone(*tensors):
        if not torch.backends.cuda.math_sdp_enabled():
            raise RuntimeError("No available kernel")
        return right(*tensors)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", math_alone)
    assert (machine.attention().status, "math alone" in machine.attention().text) == ("warning", True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *tensors: right(*tensors) + 0.1)
    finding = machine.attention()
    assert (finding.status, finding.text) == ("problem", "SDPA on cpu is wrong by 0.1")


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a CPU build of torch")
def test_a_cpu_build_beside_an_nvidia_driver_is_a_problem(tmp_path, monkeypatch):
    if machine.nvidia_driver() == "":
        assert machine.torch_build().status == "ok"
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0 |'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding = machine.torch_build()
    assert finding.status == "problem"
    assert "is built for CPUs, but there is an NVIDIA driver 580.65.06" in finding.text


HUB = "from ttd.checkup import packages; say(packages.hub())"


def test_offline_with_an_empty_cache_is_told(tmp_path):
    finding = ask(HUB, HF_HOME=str(tmp_path))
    assert finding["status"] == "warning"
    assert finding["text"].startswith(f"offline, 0 repositories (0.0 GB) in {tmp_path}/hub")


def repository(home, name: str, *, whole: bool) -> None:
    folder = home / "hub" / f"models--org--{name}"
    (folder / "blobs").mkdir(parents=True)
    if whole:
        (folder / "snapshots/abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("abc")
        (folder / "snapshots/abc/config.json").write_text("{}")


def test_a_cache_is_counted_and_a_damaged_one_is_told(tmp_path):
    repository(tmp_path, "good", whole=True)
    finding = ask(HUB, HF_HOME=str(tmp_path))
    assert (finding["status"], "offline, 1 repositories" in finding["text"]) == ("ok", True)
    repository(tmp_path, "torn", whole=False)
    finding = ask(HUB, HF_HOME=str(tmp_path))
    assert finding["status"] == "warning"
    assert "1 damaged: " in finding["text"]
    assert "models--org--torn" in finding["text"]


class Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


def test_a_hub_that_answers_refuses_or_hangs_is_told_in_a_few_seconds(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        places = {"answers": server.server_port, "hangs": silent.getsockname()[1], "refuses": 1}
        online = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        said = {what: ask(HUB, HF_ENDPOINT=f"http://127.0.0.1:{port}", **online) for what, port in places.items()}
        server.shutdown()
    assert {what: finding["status"] for what, finding in said.items()} == {
        "answers": "ok",
        "hangs": "warning",
        "refuses": "warning",
    }
    assert "answers (200)" in said["answers"]["text"]
    assert "HF_HUB_OFFLINE=1" in said["refuses"]["remedy"]


def test_whole_shards_are_read_by_every_rank(tmp_path):
    write_shards(tmp_path)
    for paths in ([tmp_path], [tmp_path / "index.json"]):
        finding = read_shards(paths, rank=3)
        assert finding.status == "ok"
        assert "a sample of each of 2 shards, 0.0 MB" in finding.text


FAULTS = {
    "truncated": (lambda tars: os.truncate(tars[1], 5000), "000001.tar: has 5000 bytes, 7168 were written"),
    "missing": (lambda tars: tars[0].unlink(), "000000.tar"),
    "flipped": (lambda tars: flip(tars[1], 4000), "damaged: the checksum differs from the index"),
    "index": (lambda tars: flip(tars[0].with_name("index.npz"), 40), "index.npz: damaged"),
    "no index": (lambda tars: tars[0].with_name("index.json").unlink(), "holds no shards"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_shard_is_named(fault, tmp_path):
    damage, words = FAULTS[fault]
    damage(write_shards(tmp_path))
    finding = read_shards([tmp_path])
    assert finding.status == "problem"
    assert str(tmp_path) in finding.text
    assert words in finding.text
    assert f"shards/verify.py shards={tmp_path}" in finding.remedy


def test_ranks_read_different_samples_of_a_shard(tmp_path):
    flip(write_shards(tmp_path)[0], 1000)  # within the first of two samples
    assert [read_shards([tmp_path], rank=rank).status for rank in range(4)] == ["ok", "problem", "ok", "problem"]


def test_other_shards_under_the_same_name_have_another_fingerprint(tmp_path):
    for node, n in (("a", 4), ("b", 4), ("c", 6)):
        write_shards(tmp_path / node / "shards", n)
    a, b, c = ([*fingerprints([tmp_path / node / "shards"]).values()] for node in "abc")
    assert len(a) == 1
    assert a == b != c


def test_shards_that_take_too_long_are_counted(tmp_path):
    write_shards(tmp_path)
    finding = read_shards([tmp_path], budget_s=0.0)
    assert (finding.status, "2 shards were not reached" in finding.text) == ("warning", True)


def test_df_agrees():
    """The figures are those of a tool that everybody knows."""
    printed = subprocess.run(["df", "-B1", "--output=avail", "/dev/shm"], capture_output=True, text=True).stdout
    free = float(machine.shared_memory(0.0).text.split()[0])
    assert free == pytest.approx(int(printed.split()[-1]) / 1e9, abs=0.2)
