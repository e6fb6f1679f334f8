"""Runs of ``ttd/doctor.py`` with something planted, and small shards, for the tests of this folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ttd.data.writer import ShardWriter

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120
CLEAN = ("ACCELERATE_", "TTD_", "SLURM", "HF_", "TORCHELASTIC_", "MASTER_", "TRANSFORMERS_")
SAID = "import dataclasses, json; say = lambda finding: print(json.dumps(dataclasses.asdict(finding)))\n"


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a launch, offline, on the CPU, with ``more``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN) and k not in ("RANK", "WORLD_SIZE")}
    fixed = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **fixed, **more}


def start(command: list[str], cwd: Path = ROOT, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Status and output; whoever is not done at the deadline is killed with all its children."""
    try:
        printed = process.communicate(timeout=DEADLINE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end after {DEADLINE_S} s:\n{process.communicate()[0][-3000:]}")
    return process.returncode, printed


def doctor(output_dir: Path, *arguments: str, cwd: Path = ROOT, **more: str) -> subprocess.Popen:
    """The command itself, without a launcher."""
    return start([sys.executable, str(ROOT / "ttd/doctor.py"), f"output_dir={output_dir}", *arguments], cwd, **more)


def found(output_dir: Path) -> dict[str, dict]:
    """The first finding of each line of ``doctor.json``."""
    content = json.loads((output_dir / "doctor.json").read_text())
    return {name: findings[0] for name, findings in content["findings"].items()}


def ask(code: str, *, inside: str = "", **more: str) -> dict:
    """The finding that ``code`` says (``say(finding)``), in a process of its own; ``inside`` mounts first, as root, in a
    namespace of its own."""
    command = [sys.executable, "-c", SAID + code]
    if inside:
        if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
            pytest.skip("mounting in a namespace of its own needs root")
        command = ["unshare", "--mount", "bash", "-ec", f'{inside}; exec "$@"', "bash", *command]
    status, printed = end(start(command, **more))
    assert status == 0, printed
    return json.loads(printed.splitlines()[-1])


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def rank_of(rank: int, world: int, port: str, **more: str) -> dict[str, str]:
    """What ``srun python`` gives a rank: no launcher. Nodes are told apart by their name."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "SLURMD_NODENAME": f"node{rank}", **place, **more}


def plant(folder: Path, package: str, code: str) -> str:
    """A package that runs ``code`` when it is imported, found before the installed one; returns PYTHONPATH."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(code)
    return str(folder)


def plant_version(folder: Path, package: str, version: str) -> str:
    """What pip would have left of another version of ``package``; returns PYTHONPATH."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return str(folder)


def write_shards(folder: Path, n: int = 4) -> list[Path]:
    """``n`` samples of targets in shards of two; sample i is filled with i."""
    with ShardWriter(folder, kind="target", samples_per_shard=2) as writer:
        for i in range(n):
            writer.write(f"{i:064x}", {"target.npy": np.full(1000, i, np.float16)})
        writer.finish({"study": "Simulated"})
    return sorted(folder.glob("*.tar"))


def flip(path: Path, at: int) -> None:
    """Change one bit of a file, ``at`` bytes from its start."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
