"""From one's own recordings to a report: the whole chain, read from one file.

    python launch/own_data.py --config configs/own_data/table.yaml study.root=data/my_study --dry-run
    python launch/own_data.py --config configs/own_data/table.yaml study.root=data/my_study

Shards, targets, alignment, fine-tuning, generation, evaluation, report: each step is a process of its own, whose experiment
is written to ``<output_dir>/configs/<step>.yaml``. The same command goes on where it was: every step knows its own finished
result, and refuses to go on with another one. docs/own_data.md says how recordings, events and pictures must lie.
"""

from __future__ import annotations

import collections
import os
import runpy
import sys
import time
from pathlib import Path

import yaml

from ttd.config import (
    BAD_INPUT,
    FAILED_ITEMS,
    STOPPED,
    FailedItemsError,
    Plan,
    StoppedError,
    UserError,
    finished_at,
    load_config,
    run,
    run_step,
)
from ttd.eeg.studies import open_study
from ttd.experiments.own_data import SCRIPTS, OwnDataConfig, schema_of

ROOT = Path(__file__).resolve().parent.parent
PARTS, FEWEST = ("train", "validation", "test"), 6
"""Pictures that each part needs at least: hits among the first five are counted, which five would give for nothing."""


def check(config: OwnDataConfig) -> Plan:
    """Every step's experiment, the recordings with their events and pictures, and the base model."""
    plan, built = Plan(), None
    for step in SCRIPTS:
        try:
            loaded = load_config(schema_of(step), [], overrides(config, step))
        except UserError as error:
            plan.problems += [f"{step}.{line}" for line in str(error).splitlines()]
            continue
        built = loaded if step == "shards" else built
    from ttd.diffusion.targets import find_missing

    for field, problem in (("base", find_missing(config.base, "vae")), ("clip", find_missing(config.clip))):
        plan.problems += [f"{field}: {problem}"] if problem else []
    if built is None:
        return plan
    of_shards = runpy.run_path(str(ROOT / SCRIPTS["shards"]))["check"](built)
    plan.problems += of_shards.problems
    plan.notes += of_shards.notes
    if not of_shards.problems and config.study.root.is_dir():
        plan.problems += too_few(config)
    plan.notes.append(f"then {', '.join(list(SCRIPTS)[1:])}; all of it below {config.output_dir}")
    return plan


def too_few(config: OwnDataConfig) -> list[str]:
    """Parts of the split with too few pictures to train, choose or test on."""
    shown: dict[str, set[str]] = collections.defaultdict(set)
    for recording in open_study(config.study).recordings():
        for event in recording.events():
            shown[config.parts.part(recording, event)].add(event.image_id)
    remedy = "fill in column part, or name concepts, subjects, sessions or runs in parts.validation and parts.test"
    return [
        f"parts: {part} has {len(shown[part])} pictures, the chain needs {FEWEST} at least; {remedy}"
        for part in PARTS
        if len(shown[part]) < FEWEST
    ]


def overrides(config: OwnDataConfig, step: str) -> list[str]:
    """A step's experiment as the command line would give it."""
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in config.trees()[step].items()]


def main(config: OwnDataConfig) -> None:
    """Write the experiment of every step and run it; a step that fails ends everything with its status.

    Shards and targets look for themselves whether recordings and models are still the same. A later step is left out where
    its experiment is the same and it finished after all that it reads: the test part is not opened for nothing. A step that
    refuses its experiment keeps the one it finished with.
    """
    folder, trees = config.output_dir / "configs", config.trees()
    folder.mkdir(parents=True, exist_ok=True)
    commands = {step: f"python {script} --config {folder / step}.yaml" for step, script in SCRIPTS.items()}
    trees["report"]["commands"] = list(commands.values())
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it tells of processors that nothing here uses
    latest = 0.0
    for number, (step, script) in enumerate(SCRIPTS.items(), start=1):
        path, text = folder / f"{step}.yaml", yaml.safe_dump(trees[step], sort_keys=False, allow_unicode=True)
        same, former = path.is_file() and path.read_text() == text, folder / f".{step}.former"
        begun = path.stat().st_mtime if same else 0.0
        head, reads_recordings = f"\n[{number}/{len(SCRIPTS)}] {commands[step]}", step in ("shards", "targets")
        finished = finished_at(config.output_dir / step)
        if not reads_recordings and same and finished > latest and finished >= begun:
            print(f"{head} - finished before", flush=True)
        else:
            print(head, flush=True)
            if path.is_file():
                path.replace(former)
            path.write_text(text)
            start = time.monotonic()
            status = run_step([sys.executable, ROOT / script, "--config", path])
            if status == BAD_INPUT and former.is_file():
                former.replace(path)
            former.unlink(missing_ok=True)
            if status:
                kind = {FAILED_ITEMS: FailedItemsError, STOPPED: StoppedError}.get(status, UserError)
                raise kind(f"step {step} ended with status {status}; the same command goes on from here")
            print(f"    {time.monotonic() - start:.0f} s", flush=True)
        made = [path.stat().st_mtime for path in (config.output_dir / "shards").rglob("index.json")]
        latest = max([latest, *(made if reads_recordings else [finished_at(config.output_dir / step)])])
    print(f"\n{(config.output_dir / 'eval' / 'table.md').read_text().rstrip()}")
    print(f"\nreport: {config.output_dir / 'report' / 'index.html'}")


if __name__ == "__main__":
    run(main, OwnDataConfig, doc=__doc__, check=check)
