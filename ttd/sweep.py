"""Fit settings × subjects × seeds, each in a run folder of its own, and compare them in one table with intervals.

    python ttd/sweep.py --config configs/sweep/simulated_protocol.yaml --dry-run
    python ttd/sweep.py --config configs/sweep/simulated_protocol.yaml
    python ttd/sweep.py --config configs/sweep/simulated_protocol.yaml launch=slurm   # writes a job array instead

Every fit is a process of ``ttd/align.py`` (and of ``ttd/pretrain.py`` before it), one after the other; the linear baselines
are fitted here. The same command goes on where it was: what is finished and scored is left alone. Opens the test part; the
ledger beside the split manifest counts it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    to_yaml,
    write_json,
)
from ttd.experiments.sweep import WITHIN, Fit, Ridge, SweepConfig
from ttd.pages.sweep_scores import Scorer
from ttd.pages.sweep_table import write_comparison

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = {
    "pretrain": ("ttd.experiments.pretrain", "PretrainConfig"),
    "align": ("ttd.experiments.align", "AlignConfig"),
}
ARRAY = """#!/bin/bash
# One task per fit of {config}: sbatch [--account=... --partition=...] this file where the checkout is,
# then run ttd/sweep.py with that configuration once more for the table.
#SBATCH --job-name=ttd-sweep
#SBATCH --array=0-{last}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-logs/%x-%A-%a.out
set -euo pipefail
# shellcheck source=slurm/env.sh
. "${{TTD_ROOT:-${{SLURM_SUBMIT_DIR:-$PWD}}}}/slurm/env.sh"
python ttd/sweep.py --config "{config}" "task=$SLURM_ARRAY_TASK_ID"
"""


def check(config: SweepConfig) -> Plan:
    """Every step's experiment must be valid; what needs the shards is checked by the step itself."""
    plan, fits = Plan(), config.fits()
    for fit in fits:
        for step, tree in fit.steps.items():
            module, schema = SCHEMAS[step]
            given = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in tree.items()]
            try:
                load_config(getattr(importlib.import_module(module), schema), [], given)
            except UserError as error:
                lines = [f"settings.{fit.setting}.{step}.{line}" for line in str(error).splitlines()]
                plan.problems += [line for line in lines if line not in plan.problems]
    if config.task is not None and config.task >= len(fits):
        plan.problems.append(f"task={config.task}: there are {len(fits)} fits, numbered from 0")
    for preparation in config.before:
        if not (ROOT / preparation.script).is_file():
            plan.problems.append(f"before: {preparation.script} is no script of this project")
    if not (config.shards / "train" / "index.json").is_file() and not plan.problems:
        plan.problems += first_step(config)
    for name in config.settings:
        n = sum(fit.setting == name for fit in fits)
        plan.notes.append(
            f"{name}: {n} fits" if n else f"{name}: {len(list(config.who(name)))} fits, within this process"
        )
    return plan


def first_step(config: SweepConfig) -> list[str]:
    """What keeps the first preparation from starting, as its own dry run says; later ones need what it makes."""
    if not config.before:
        return [f"shards: {config.shards} holds no shards; build them, or name the commands in before"]
    first = config.before[0]
    given = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in first.fields.items()]
    command = [sys.executable, str(ROOT / first.script), "--config", str(first.config), *given, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [f"before: {first.script}: {line}" for line in done.stderr.splitlines()] if done.returncode else []


def main(config: SweepConfig) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    fits = config.fits()
    if config.task is not None:
        return fit_one(fits[config.task])
    recorded = config.output_dir / "config.yaml"
    recorded.parent.mkdir(parents=True, exist_ok=True)
    recorded.write_text(to_yaml(config.model_copy(update={"launch": "here"})))
    for number, preparation in enumerate(config.before):
        path = config.output_dir / "before" / f"{number}-{preparation.script.stem}.yaml"
        execute(preparation.script, path, preparation.tree(), name=str(preparation.script))
    if config.launch == "slurm":
        array = config.output_dir / "array.sh"
        array.write_text(ARRAY.format(config=recorded, last=len(fits) - 1))
        print(f"{array}: {len(fits)} tasks; mkdir -p slurm-logs; sbatch {array}")
        return None
    for number, fit in enumerate(fits, start=1):
        print(f"[{number}/{len(fits)}] {fit.folder}", flush=True)
        fit_one(fit)
    scorer, tables, cpu = Scorer(config), {}, {}
    for name, setting in config.settings.items():
        for mode in config.modes(name):
            chosen = [fit for fit in fits if (fit.setting, fit.mode) == (name, mode)]
            if isinstance(setting, Ridge):
                left_out = [who for who in config.who(name) if (who is None) == (mode == WITHIN)]
                tables[name, mode] = {0: [scorer.of_ridge(name, setting, who) for who in left_out]}
            else:
                tables[name, mode] = {s: [scorer.of_fit(f) for f in chosen if f.seed == s] for s in seeds_of(chosen)}
                cpu[name, mode] = [sum(cpu_of(fit).values()) for fit in chosen]
    write_comparison(config, tables, cpu, scorer.facts())
    print((config.output_dir / "table.md").read_text())
    return None


def seeds_of(fits: list[Fit]) -> list[int]:
    return sorted({fit.seed for fit in fits})


# --- fits -----------------------------------------------------------------------------------------------------------


def fit_one(fit: Fit) -> None:
    """Run the steps of a fit that have not finished with these experiments, or whose input was made anew since."""
    latest = 0.0
    for step, tree in fit.steps.items():
        read = [tree["data"]["shards"], *tree["data"].get("also", [])]
        made = [path.stat().st_mtime for folder in read for path in Path(folder).rglob("index.json")]
        latest = max([latest, *made])
        path, folder = fit.folder / f"{step}.yaml", Path(tree["output_dir"])
        same = path.is_file() and yaml.safe_load(path.read_text()) == yaml.safe_load(dump(tree))
        if not (same and finished_at(folder) > max(latest, path.stat().st_mtime)):
            execute(Path("ttd") / f"{step}.py", path, tree, name=f"{fit.folder} {step}")
        latest = max(latest, finished_at(folder))


def execute(script: Path, path: Path, tree: dict[str, Any], *, name: str) -> None:
    """Run a script with an experiment written to ``path``; its CPU seconds are added up beside it.

    Raises:
        UserError, FailedItemsError, StoppedError: it ended with that status.
    """
    spent = path.with_suffix(".cpu.json")
    if path.is_file() and path.read_text() != dump(tree):
        spent.unlink(missing_ok=True)  # another experiment's seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    former = path.read_text() if path.is_file() else None
    path.write_text(dump(tree))
    before = children_cpu_s()
    status = run_step([sys.executable, ROOT / script, "--config", path])
    total = (json.loads(spent.read_text())["cpu_s"] if spent.is_file() else 0.0) + children_cpu_s() - before
    write_json(spent, {"cpu_s": round(total, 1)})
    if status == BAD_INPUT and former is not None:
        path.write_text(former)  # a refused experiment is not the one that the folder holds
    if status:
        kind = {FAILED_ITEMS: FailedItemsError, STOPPED: StoppedError}.get(status, UserError)
        raise kind(f"{name} ended with status {status}; the same command goes on from here")


def dump(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cpu_of(fit: Fit) -> dict[str, float]:
    """CPU seconds of each step of a fit, in all attempts together."""
    return {step: json.loads((fit.folder / f"{step}.cpu.json").read_text())["cpu_s"] for step in fit.steps}


if __name__ == "__main__":
    run(main, SweepConfig, doc=__doc__, check=check)
