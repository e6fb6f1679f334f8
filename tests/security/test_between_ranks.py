"""Between ranks go tensors and JSON: nothing that is unpickled, by the launcher, the engine, accelerate or DeepSpeed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEADLINE_S = 200
WATCH = """
import os, pathlib, pickle, traceback

folder = pathlib.Path(os.environ["WATCHED"])
(folder / f"process-{os.getpid()}").touch()


def watched(real):
    def call(*args, **options):
        with (folder / "unpickled").open("a") as file:
            file.write(f"{real.__name__}\\n{''.join(traceback.format_stack(limit=8))}\\n")
        return real(*args, **options)
    return call


pickle.loads, pickle.load = watched(pickle.loads), watched(pickle.load)
import torch.distributed.distributed_c10d as c10d
for name in ("_object_to_tensor", "_tensor_to_object"):
    setattr(c10d, name, watched(getattr(c10d, name)))
if os.environ.get("RANK") and os.environ.get("SEND_OBJECT"):
    real = c10d.init_process_group
    def init_process_group(*args, **options):
        real(*args, **options)
        c10d.broadcast_object_list(["an object"])
    c10d.init_process_group = init_process_group
    import torch.distributed
    torch.distributed.init_process_group = init_process_group
"""
"""Becomes ``sitecustomize``, which every Python process imports before anything else."""


def launch(config: str, folder: Path, **more: str) -> tuple[int, str]:
    """Two ranks of a small training; returns how many processes were watched, and who unpickled what."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(WATCH)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TTD_", "RANK"))}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "WATCHED": str(folder)}
    environment |= {"PYTHONPATH": f"{folder / 'site'}:{ROOT}", **more}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [f"launch/{config}.yaml", "--num_processes", "2", "--main_process_port", "0"]
    command += ["tests/distributed/toy_train.py", f"output_dir={folder / 'run'}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        printed = process.communicate(timeout=DEADLINE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end after {DEADLINE_S} s:\n{process.communicate()[0][-3000:]}")
    assert json.loads((folder / "run" / "outcome.json").read_text())["message"] == "done", printed[-3000:]
    assert '"world": 2' in printed, printed[-3000:]
    seen = folder / "unpickled"
    return len(list(folder.glob("process-*"))), seen.read_text() if seen.exists() else ""


@pytest.mark.distributed
@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize("config", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_a_training_of_two_ranks_unpickles_nothing(config, tmp_path):
    processes, unpickled = launch(config, tmp_path)
    assert processes >= 3  # the launcher and both ranks
    assert unpickled == ""


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(2 * DEADLINE_S)
def test_an_object_between_ranks_would_be_seen(tmp_path):
    _, unpickled = launch("ddp", tmp_path, SEND_OBJECT="1")
    assert "_tensor_to_object" in unpickled


def test_launchers_meet_by_the_static_rendezvous_which_unpickles_nothing():
    """torchrun's c10d rendezvous unpickles what it finds in its store, which asks nobody for a password (torch 2.13)."""
    files = sorted((ROOT / "launch").glob("*.yaml"))
    assert len(files) >= 5
    for path in files:
        assert yaml.safe_load(path.read_text()).get("rdzv_backend", "static") == "static", path
    for path in (ROOT / "slurm").glob("*.sh"):
        assert "c10d" not in path.read_text(), path


LISTENING = """
import os, socket
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
import torch
import torch.distributed as dist

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
dist.all_reduce(torch.ones(1))
mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
for line in [*open("/proc/net/tcp"), *open("/proc/net/tcp6")]:
    words = line.split()
    if words[3] == "0A" and f"socket:[{words[9]}]" in mine:
        address, number = words[1].split(":")
        print("store" if int(number, 16) == port else "gloo", "everywhere" if set(address) == {"0"} else address)
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from Linux's /proc")
def test_the_store_listens_everywhere_and_gloo_on_the_interface_it_is_given():
    """What docs/security.md says of torch 2.13; where the first changes for the better, the page can."""
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, timeout=DEADLINE_S)
    assert sorted(done.stdout.splitlines()) == ["gloo 0100007F", "store everywhere"], done.stderr
