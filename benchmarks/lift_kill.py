"""R14: a lifting job of two ranks, killed by signal 9 at 50 random instants, ends as an undisturbed one of one rank.

    python benchmarks/lift_kill.py --config configs/lift/demo.yaml n_items=6    [kills: KILLS=50]

After the kills the same command runs to its end. Each item must then have exactly one whole result in every phase, nothing may be
half-made, and every file that the two jobs have in common must be equal: meshes, pictures, figures, the table. Exit status 1
when anything differs. (Records of time and machine are left out: status.json, environment.json, outcome.json, config.yaml.)
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

KILLS = int(os.environ.get("KILLS", "50"))
ROOT = Path(__file__).parents[1]
TOLD = {"status.json", "environment.json", "outcome.json", "config.yaml"}
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "launch/ddp.yaml"]


def start(folder: Path, arguments: list[str], ranks: int) -> subprocess.Popen:
    """The job, quiet."""
    launcher = (
        [sys.executable] if ranks == 1 else [*ACCELERATE, "--num_processes", str(ranks), "--main_process_port", "0"]
    )
    command = [*launcher, "ttd/lift.py", *arguments, f"output_dir={folder}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=env, **quiet)


def kill_all(process: subprocess.Popen) -> None:
    """Signal 9 to the launcher and to every rank at once: ranks have sessions of their own."""
    launcher = psutil.Process(process.pid)
    everyone = [launcher, *launcher.children(recursive=True)]
    for one in everyone:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert not alive, f"{len(alive)} processes outlived signal 9"


def content(folder: Path) -> dict[str, str]:
    """Hash of every file by its path."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in TOLD)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as place:
        straight, disturbed = Path(place) / "straight", Path(place) / "disturbed"
        began = time.monotonic()
        assert start(straight, arguments, 1).wait() == 0, "the undisturbed job failed; run it by hand"
        typical, n_results = time.monotonic() - began, len(list(straight.glob("*/*/status.json")))
        rng, killed, progress, ended = random.Random(14), 0, [], 0
        while killed < KILLS:
            process = start(disturbed, arguments, 2)
            try:
                process.wait(rng.uniform(0.1, 1.0) * typical)
                ended += 1
            except subprocess.TimeoutExpired:
                kill_all(process)
                killed += 1
                progress.append(len(list(disturbed.glob("*/*/status.json"))))
                print(f"kill {killed} of {KILLS}, {progress[-1]} of {n_results} results so far", file=sys.stderr)
            if len(list(disturbed.glob("*/*/status.json"))) == n_results and killed < KILLS:
                shutil.rmtree(disturbed)  # nothing is left to disturb: begin again
        assert start(disturbed, arguments, 2).wait() == 0, "the disturbed job does not come to its end"
        world = json.loads((disturbed / "environment.json").read_text())["world_size"]
        a, b = content(straight), content(disturbed)
        differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        print(
            f"{KILLS} kills, after {len(set(progress))} different numbers of results (0 to {max(progress)}); {ended} ends between"
        )
        print(f"{len(a)} files of 1 rank, {len(b)} of {world} ranks, {len(differing)} differ {differing[:5]}")
        return int(bool(differing) or world != 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
