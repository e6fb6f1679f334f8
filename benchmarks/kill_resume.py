"""R1: runs killed by signal 9 at 200 instants, half of them aimed inside the writing of a state, go on to the same bits.

    OMP_NUM_THREADS=1 python benchmarks/kill_resume.py [kills, 200]

A server that has imported everything forks one victim per attempt. The victim's writer announces through a pipe what it
is doing, and stands still where the killer aims; other kills come at any time. A run is killed several times in the
same folder, sometimes one byte of its newest state is changed as well, and then it is left to finish. Exit status 1
when a single run differs from one that nobody disturbed. What only a power cut can lose is not tested here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}  # before torch is imported

from kill_victim import DONE, EVERY, PHASES, STEPS, victim

from ttd.engine.state_files import damage, step_folder, step_folders
from ttd.engine.tracking import read_log

KILLS_PER_RUN, SEED = 6, 20261120


@dataclass
class End:
    """How an attempt ended, and what its writer had announced by then."""

    status: int
    killed: bool
    announced: list[tuple[int, str]] = field(default_factory=list)  # step, phase

    @property
    def inside(self) -> str | None:
        """The phase of the write it was killed in."""
        return self.announced[-1][1] if self.announced and self.announced[-1][1] != DONE else None


def attempt(folder: Path, *, aim: tuple[str, int] | None = None, after_s: float | None = None) -> End:
    """One victim: killed ``after_s`` after its start or after it stood still where it was aimed at, or left alone."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        victim(folder, write, aim)
    os.close(write)
    deadline = time.monotonic() + (after_s if after_s is not None and aim is None else 120)
    text, killed, aimed = b"", False, False
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(process, signal.SIGKILL)
            killed = True
            break
        new = os.read(read, 4096)
        if not new:  # it ended by itself
            break
        text += new
        phases = [line.partition(" ")[2] for line in text.decode().splitlines()]
        if aim and not aimed and phases.count(aim[0]) == aim[1]:
            aimed, deadline = True, time.monotonic() + (after_s or 0)
    _, status = os.waitpid(process, 0)
    while new := os.read(read, 4096):
        text += new
    os.close(read)
    lines = [line.partition(" ") for line in text.decode().splitlines()]
    killed = killed and os.WIFSIGNALED(status)
    return End(status, killed, [(int(step), phase) for step, _, phase in lines])


def newest_intact(folder: Path) -> int:
    return max([int(p.name[5:]) for p in step_folders(folder) if damage(p) is None], default=0)


def damage_file(path: Path, rng: random.Random) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def hexed(folder: Path) -> dict[int, str]:
    """Losses by step, every bit of them."""
    return {r["step"]: float(r["loss"]).hex() for r in read_log(folder) if r["event"] == "train"}


def hashed(folder: Path) -> list[str]:
    """Weights and moments of the last state."""
    last = step_folders(folder)[-1]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(last.glob("*.safetensors"))]


@dataclass
class Tally:
    kills: int = 0
    where: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    finished: int = 0
    losses: int = 0
    equal: int = 0
    same_end: int = 0
    damaged: int = 0
    half: int = 0
    steps_lost: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def one_run(folder: Path, straight: Path, kills: int, typical_s: float, rng: random.Random, tally: Tally) -> None:
    """Kill one run up to ``kills`` times, let it finish, and compare."""
    log, changed = folder / "log.jsonl", set[Path]()
    reached = 0
    while True:
        expected = newest_intact(folder)
        began = log.stat().st_size if log.exists() else 0
        aim, after_s = None, None
        if kills:
            aim = (rng.choice(PHASES), rng.randint(1, 3)) if kills % 2 else None
            after_s = rng.uniform(0, 0.01 if aim else typical_s / 2)
        end = attempt(folder, aim=aim, after_s=after_s)

        # Did it go on from the newest intact state?
        lines = log.read_bytes()[began:].decode().splitlines() if log.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        starts = [r["step"] for r in records if r["event"] in ("started", "resumed")]
        if starts and starts != [expected]:
            tally.failures.append(f"{folder.name}: newest intact state {expected}, but it went on from {starts}")
        if starts and reached:
            tally.steps_lost.append(reached - starts[0])
        if not end.killed:
            break

        # Is every state that was finished there, none half there, and at most one interval lost?
        kills -= 1
        tally.kills += 1
        tally.where[end.inside or "between states"] += 1
        saved = max([step for step, phase in end.announced if phase == DONE], default=expected)
        begun = max([step for step, _ in end.announced], default=expected)
        newest = newest_intact(folder)
        half = [p.name for p in step_folders(folder) if p not in changed and damage(p)]
        tally.half += len(half)
        if half or newest < saved or begun - newest > EVERY:
            tally.failures.append(f"{folder.name}: {half} half there, newest {newest}, finished {saved}, begun {begun}")
        steps = [r["step"] for r in records if r["event"] == "train"]
        reached = max(steps, default=reached)
        if len([p for p in step_folders(folder) if damage(p) is None]) > 1 and rng.random() < 0.25:
            path = step_folder(folder, newest)
            damage_file(rng.choice(sorted(path.iterdir())), rng)
            if damage(path) is None:
                tally.failures.append(f"{path}: a changed byte was not found")
            changed.add(path)
            tally.damaged += 1
            reached = 0  # what is done again now is not the kill's doing

    tally.runs += 1
    if end.status:
        tally.failures.append(f"{folder.name}: status {end.status}: {folder.with_suffix('.txt').read_text()[-800:]}")
        return
    tally.finished += 1
    ours, theirs = hexed(folder), hexed(straight)
    tally.losses += len(theirs)
    tally.equal += sum(ours.get(step) == value for step, value in theirs.items())
    tally.same_end += hashed(folder) == hashed(straight)


def main(kills: int) -> bool:
    rng, tally = random.Random(SEED), Tally()
    with tempfile.TemporaryDirectory() as temporary:
        straight, times_s = Path(temporary) / "straight", []
        for _ in range(3):
            shutil.rmtree(straight, ignore_errors=True)
            start = time.monotonic()
            if attempt(straight).status:
                print(straight.with_suffix(".txt").read_text())
                return False
            times_s.append(time.monotonic() - start)
        typical_s = min(times_s)
        while tally.kills < kills and not tally.failures:
            folder = Path(temporary) / f"run-{tally.runs:03d}"
            one_run(folder, straight, min(KILLS_PER_RUN, kills - tally.kills), typical_s, rng, tally)
            shutil.rmtree(folder)
    inside = tally.kills - tally.where["between states"]
    print(
        f"R1 {tally.kills} kills of {tally.runs} runs of {STEPS} steps, a state every {EVERY} (one takes {typical_s:.2f} s):"
    )
    for phase in (*PHASES, "between states"):
        print(f"  {phase}: {tally.where[phase]}")
    print(
        f"R1 inside the writing of a state: {inside} of {tally.kills} ({100 * inside / tally.kills:.0f} %), goal 30 %"
    )
    print(f"R1 finished unattended: {tally.finished} of {tally.runs} runs, goal all; half states: {tally.half}, goal 0")
    print(f"R1 losses equal in every bit: {tally.equal} of {tally.losses}, goal all")
    print(f"R1 last weights and moments equal in every bit: {tally.same_end} of {tally.runs}, goal all")
    lost = sorted(tally.steps_lost)
    print(f"R1 steps done again after a kill: median {lost[len(lost) // 2]}, at most {lost[-1]}; interval {EVERY}")
    print(f"R1 newest state damaged after a kill: {tally.damaged} times; anything wrong: {len(tally.failures)}")
    for failure in tally.failures:
        print(f"  {failure}")
    good = tally.finished == tally.same_end == tally.runs and tally.equal == tally.losses and not tally.failures
    return good and inside >= 0.3 * tally.kills


if __name__ == "__main__":
    sys.exit(0 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 200) else 1)
