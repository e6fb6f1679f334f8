"""Submits jobs to the cluster of ``cluster.py`` as a user does, and waits for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cluster

ROOT = Path(__file__).parents[2]


class Submitter:
    """Calls of sbatch from the checkout, with the settings that a user gives: the environment and sbatch's options."""

    def __init__(self, folder: Path):
        self.logs = folder / "slurm-logs"
        self.logs.mkdir()
        mine = ("ACCELERATE_", "TTD_", "WANDB_", "SLURM_", "SBATCH_", "RANK", "WORLD_SIZE", "PYTEST")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
        self.env |= {"TTD_ROOT": str(ROOT), "TTD_VENV": sys.prefix, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        self.env |= {
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
            "SLURM_CONF": str(cluster.FOLDER / "etc/slurm.conf"),
        }

    def __call__(self, *words: str, **env: str) -> str:
        """Submit and return the job's number; the log is ``log(number)``."""
        output = "--output=" + str(
            self.logs / "%A_%a.out" if any(w.startswith("--array") for w in words) else self.logs / "%j.out"
        )
        return cluster.on("ctl", "sbatch", "--parsable", output, *words, env={**self.env, **env}, cwd=ROOT).strip()

    def log(self, job: str) -> str:
        path = self.logs / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, seconds: float = 180, *, states: tuple[str, ...] = ("COMPLETED",)) -> dict[str, str]:
        """Wait until the job is in one of ``states``; ending in another one fails with the end of its log."""
        last = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL")

        def there() -> bool:
            now = cluster.state(job)["JobState"]
            if now in last and now not in states:
                raise AssertionError(f"job {job} is {now}\n{self.log(job)[-4000:]}")
            return now in states

        try:
            cluster.wait_for(there, seconds, f"job {job} {' or '.join(states)}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; it is {cluster.state(job)['JobState']}\n{self.log(job)[-4000:]}") from None
        return cluster.state(job)

    def wait_log(self, job: str, words: str, seconds: float = 120) -> None:
        """Wait until the job's log holds ``words``."""
        try:
            cluster.wait_for(lambda: words in self.log(job), seconds, f"{words!r} in the log of job {job}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(job)[-4000:]}") from None
