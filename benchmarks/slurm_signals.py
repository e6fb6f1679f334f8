"""R2: a training on a real Slurm, asked to stop at random instants by USR1 to its batch shell and by TERM to its ranks.

    python benchmarks/slurm_signals.py [signals of each kind, 50]

Needs root and Slurm's packages (tests/slurm/cluster.py). One job on two ranks; after each signal it must have saved a complete
state, have left status 75 (stopped) and be queued again within 30 seconds, and then go on. At the end its losses are compared,
bit for bit, with those of a run that nobody disturbed. Exit status 1 when anything differs.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/slurm"))

import cluster
from small_runs import losses, outcome, pretraining, without_slurm, write_windows
from submitter import Submitter

from ttd.engine.state_files import damage, step_folders
from ttd.engine.tracking import progress, read_log

KINDS = ("USR1", "TERM")
LIMIT_S = 30.0  # KillWait, between TERM and KILL, as sites commonly set it
LATEST_S = 1.5  # of a random instant after the first step: training and saving alternate every few steps
SEED = 0


@dataclass
class Tally:
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    failures: list[str] = field(default_factory=list)
    steps: int = 0
    equal: int = 0

    def __str__(self) -> str:
        lines = []
        for kind, values in self.seconds.items():
            if values:
                middle = sorted(values)[len(values) // 2]
                spread = f"median {middle:.1f} s, at most {max(values):.1f} s, goal {LIMIT_S:.0f} s"
                lines.append(f"R2 {kind}: {len(values)} times saved, stopped and queued again; {spread}")
        lines.append(
            f"R2 losses equal in every bit: {self.equal} of {self.steps}; anything wrong: {len(self.failures)}"
        )
        return "\n".join(lines + [f"  {failure}" for failure in self.failures])


def signals(n: int, folder: Path, submit: Submitter) -> Tally:
    """``n`` signals of each kind, in random order, to one job; then the undisturbed run of as many steps."""
    rng, tally, run_dir = random.Random(SEED), Tally(), folder / "run"
    kinds = [kind for kind in KINDS for _ in range(n)]
    rng.shuffle(kinds)
    # a constant rate: the length of the run that is compared is not known yet
    words = pretraining(write_windows(folder / "windows"), 10**6, "train.checkpoint_every=7", "optim.min_lr_ratio=1")
    env = {"TTD_LAUNCH": "launch/ddp.yaml", "MAX_RESTARTS": "1000"}
    job = submit("--gpus-per-node=2", "slurm/pretrain.sh", str(run_dir), *words, **env)
    for life, kind in enumerate(progress(kinds, desc="signals")):
        begins = lambda: [r for r in log_of(run_dir) if r["event"] in ("started", "resumed")]  # noqa: E731
        cluster.wait_for(lambda: len(begins()) > life, 120, f"start {life}")  # noqa: B023
        time.sleep(rng.uniform(0, LATEST_S))
        asked = time.monotonic()
        # USR1 to the batch shell alone, as before the time limit; TERM to the step: launcher and ranks
        cluster.on("ctl", "scancel", f"--signal={kind}", *(["--batch"] if kind == "USR1" else []), job)
        try:
            cluster.wait_for(lambda: int(cluster.state(job)["Restarts"]) > life, 2 * LIMIT_S, f"{kind}: queued again")  # noqa: B023
        except TimeoutError as error:
            tally.failures.append(f"{error}\n{submit.log(job)[-2000:]}")
            break
        tally.seconds[kind].append(time.monotonic() - asked)
        tally.failures += wrong(run_dir, life, kind, tally.seconds[kind][-1])
    cluster.wait_for(lambda: len(begins()) > len(kinds), 120, "the last start")
    cluster.on("ctl", "scancel", job)
    submit.wait(job, 60, states=("CANCELLED",))
    ours = losses(run_dir)
    tally.steps = step_of(step_folders(run_dir)[-1])
    end = [f"train.max_steps={tally.steps}", f"train.checkpoint_every={tally.steps}"]
    without_slurm("ttd/pretrain.py", folder / "straight", [*words, *end], config="ddp", ranks=2)
    theirs = losses(folder / "straight")
    tally.equal = sum(ours.get(step) == value for step, value in theirs.items())
    return tally


def log_of(run_dir: Path) -> list[dict]:
    return read_log(run_dir) if (run_dir / "log.jsonl").exists() else []


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def wrong(run_dir: Path, life: int, kind: str, seconds: float) -> list[str]:
    """What is not as promised after a signal."""
    found, left, newest = [], outcome(run_dir), step_folders(run_dir)[-1]
    stopped = [r["step"] for r in read_log(run_dir) if r["event"] == "stopped"]
    if seconds > LIMIT_S:
        found.append(f"{life} {kind}: queued again after {seconds:.1f} s")
    if left["status"] != 75:
        found.append(f"{life} {kind}: status {left['status']}: {left['message']}")
    if damage(newest) or len(stopped) != life + 1 or step_of(newest) != stopped[-1]:
        found.append(
            f"{life} {kind}: newest state {newest.name} ({damage(newest) or 'whole'}), stopped at {stopped[-1:]}"
        )
    return found


def main(n: int) -> bool:
    reason = cluster.why_not()
    if reason:
        print(f"no Slurm here: {reason}")
        return False
    cluster.up()
    try:
        with tempfile.TemporaryDirectory() as folder:
            tally = signals(n, Path(folder), Submitter(Path(folder)))
    finally:
        cluster.down()
    print(tally)
    return not tally.failures and tally.equal == tally.steps > 0


if __name__ == "__main__":
    sys.exit(0 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 50) else 1)
