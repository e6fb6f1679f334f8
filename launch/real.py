"""The same code on real recordings: pretraining on PhysioNet eegmmidb, and the Muse P300 recordings from CSV to pictures.

    make real DATA=../shared/data

DATA holds ``eegmmidb/S001/*.edf`` and ``muse-P300/`` (subject1/session1/*.csv.gz and stimuli/). Ends with two tables: the masked
error on a left-out run beside trivial predictors, and per left-out recording the AUC of target against other. Every step that
has finished is skipped when the command is run again.

The pictures prove the path only: the study logged the class of a trial, not its picture, so pairing is by class, and
photographs lie outside what the tiny base model has seen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINDOWS, SHARDS, RUNS = Path("data/eegmmidb/windows"), Path("data/muse-p300"), Path("runs/real")


def go(script: str, config: str | None, *overrides: str) -> None:
    """One command of the chain, shown before it runs; a failure ends everything with its status."""
    command = [sys.executable, script, *(["--config", config] if config else []), *overrides]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def pretrain(data: Path) -> None:
    """Masked pretraining on runs 01 02 03 07; the report is on the left-out run 13."""
    folder = f"study.folder={data / 'eegmmidb'}"
    go("shards/build_unlabelled.py", "configs/shards/eegmmidb.yaml", folder, f"output_dir={WINDOWS}")
    go("ttd/pretrain.py", "configs/pretrain/eegmmidb.yaml", f"data.shards={WINDOWS}", f"output_dir={RUNS / 'pretrain'}")


def muse(data: Path) -> None:
    """Every recording left out once: shards, targets, alignment; the last fold goes on to pictures."""
    runs = sorted(
        p.name.removeprefix("data_").removesuffix(".csv.gz") for p in (data / "muse-P300").rglob("data_*.csv.gz")
    )
    study = f"study.folder={data / 'muse-P300'}"
    for i, run in enumerate(runs):
        parts = [f"parts.test=[{run!r}]", f"parts.validation=[{runs[i - 1]!r}]"]
        fold, rejecting_none = SHARDS / f"fold-{run}", SHARDS / f"fold-{run}-all"
        go("shards/build_paired.py", "configs/shards/muse_p300.yaml", study, f"output_dir={fold}", *parts)
        go(
            "shards/build_paired.py",
            "configs/shards/muse_p300.yaml",
            study,
            f"output_dir={rejecting_none}",
            *parts,
            "epochs.reject_uv=null",
        )
        go("shards/precompute_targets.py", None, f"shards={fold}")
        go("ttd/align.py", "configs/align/muse_p300.yaml", f"data.shards={fold}", f"output_dir={RUNS / f'align-{run}'}")
    last = runs[-1]
    shards = f"{SHARDS / f'fold-{last}'}"
    go(
        "ttd/finetune.py",
        "configs/finetune/muse_p300.yaml",
        f"data.shards={shards}",
        f"start.run={RUNS / f'align-{last}'}",
        f"output_dir={RUNS / 'finetune'}",
    )
    go(
        "ttd/generate.py",
        "configs/generate/muse_p300.yaml",
        f"shards={shards}",
        f"finetune={RUNS / 'finetune'}",
        f"output_dir={RUNS / 'generate'}",
    )
    go(
        "ttd/probe.py",
        None,
        f"output_dir={RUNS / 'probe'}",
        f"folds={{{', '.join(f'{r}: {SHARDS}/fold-{r}' for r in runs)}}}",
        f"unrejected={{{', '.join(f'{r}: {SHARDS}/fold-{r}-all' for r in runs)}}}",
        f"aligned={{{', '.join(f'{r}: {RUNS}/align-{r}' for r in runs)}}}",
    )
    print(f"pictures of the last left-out recording: {RUNS / 'generate'} (pairing by class: they prove the path only)")


def main() -> None:
    """Both parts; DATA must hold the recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with eegmmidb/ and muse-P300/")
    data = parser.parse_args().data
    missing = [str(data / name) for name in ("eegmmidb", "muse-P300") if not (data / name).is_dir()]
    if missing:
        print(f"make real: not found: {', '.join(missing)}; give DATA=<folder that holds them>", file=sys.stderr)
        sys.exit(2)
    data = data.resolve()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    pretrain(data)
    muse(data)


if __name__ == "__main__":
    main()
