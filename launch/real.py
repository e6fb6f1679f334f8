"""The same code on real recordings: pretraining on PhysioNet eegmmidb, and the Muse P300 recordings from CSV to pictures.

    make real DATA=../shared/data

DATA holds ``eegmmidb/S001/*.edf`` and ``muse-P300/`` (subject1/session1/*.csv.gz and stimuli/). Ends with two tables:
the masked error on a left-out run beside trivial predictors, and per left-out recording the AUC of target against other.
The same command goes on where it was: every step knows its own finished result.

The pictures prove the path only: the study logged the class of a trial, not its picture, so pairing is by class, and
photographs lie outside what the tiny base model has seen.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from ttd.config import STOPPED, interruptible, run_step

ROOT = Path(__file__).resolve().parent.parent
WINDOWS, SHARDS, RUNS = Path("data/eegmmidb/windows"), Path("data/muse-p300"), Path("runs/real")
PICTURES = """# Pictures from Muse P300 recordings: they prove the path only

The study logged the class of a trial, target or not, and not which picture was shown: trials are paired with a picture of
their class. Photographs also lie outside what the tiny base model has seen. These pictures are no reconstructions, and no
measure of likeness to the shown ones means anything.
"""


def go(script: str, config: str | None, *overrides: str) -> None:
    """One command of the chain, shown before it runs; a failure ends everything with its status."""
    command = [sys.executable, script, *(["--config", config] if config else []), *overrides]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    status = run_step(command)
    if status:
        print(f"make real: {script} ended with status {status}; the same command goes on from here", file=sys.stderr)
        sys.exit(status)
    print(f"    {time.monotonic() - start:.0f} s", flush=True)


def pretrain(data: Path) -> None:
    """Masked pretraining on runs 01 02 03 07; the report is on the left-out run 13."""
    folder = f"study.root={data / 'eegmmidb'}"
    go("shards/build_unlabelled.py", "configs/shards/eegmmidb.yaml", folder, f"output_dir={WINDOWS}")
    go("ttd/pretrain.py", "configs/pretrain/eegmmidb.yaml", f"data.shards={WINDOWS}", f"output_dir={RUNS / 'pretrain'}")


def align(data: Path) -> str:
    """Every recording left out once: shards, targets, alignment, and the AUC of all; returns the last recording."""
    study = f"study.root={data / 'muse-P300'}"
    paths = (data / "muse-P300").rglob("data_*.csv.gz")
    runs = sorted(path.name.removeprefix("data_").removesuffix(".csv.gz") for path in paths)
    shards = ("shards/build_paired.py", "configs/shards/muse_p300.yaml", study)
    for i, run in enumerate(runs):
        fold = SHARDS / f"fold-{run}"
        go(*shards, f"output_dir={fold}", f"parts.test=['{run}']", f"parts.validation=['{runs[i - 1]}']")
        go("shards/precompute_targets.py", None, f"shards={fold}")
        go("ttd/align.py", "configs/align/muse_p300.yaml", f"data.shards={fold}", f"output_dir={RUNS / f'align-{run}'}")
    go(*shards, f"output_dir={SHARDS / 'unrejected'}", f"parts.test=['{runs[-1]}']", "epochs.reject_uv=null")
    go("ttd/probe.py", "configs/probe/muse_p300.yaml")
    return runs[-1]


def generate(run: str) -> None:
    """Fine-tune on the fold that leaves out ``run`` and draw pictures from it."""
    shards, finetuned, pictures = SHARDS / f"fold-{run}", RUNS / "finetune", RUNS / "generate"
    start = f"start.run={RUNS / f'align-{run}'}"
    go(
        "ttd/finetune.py", "configs/finetune/muse_p300.yaml", f"data.shards={shards}", start, f"output_dir={finetuned}"
    )  # fmt: skip
    where = (f"shards={shards}", f"finetune={finetuned}", f"output_dir={pictures}")
    go("ttd/generate.py", "configs/generate/muse_p300.yaml", *where)
    (pictures / "README.md").write_text(PICTURES)


def main() -> None:
    """Both parts; DATA must hold the recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with eegmmidb/ and muse-P300/")
    data = parser.parse_args().data.resolve()
    missing = [str(data / name) for name in ("eegmmidb", "muse-P300") if not (data / name).is_dir()]
    if missing:
        print(f"make real: not found: {', '.join(missing)}; give DATA=<folder that holds them>", file=sys.stderr)
        sys.exit(2)
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    start = time.monotonic()
    pretrain(data)
    generate(align(data))
    print(f"\n{(RUNS / 'pretrain' / 'export' / 'README.md').read_text()}\n{(RUNS / 'probe' / 'table.md').read_text()}")
    print(f"pictures: {RUNS / 'generate'}. They prove the path only: trials are paired with pictures by class.")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        with interruptible():
            main()
    except KeyboardInterrupt:
        print("make real: stopped; the same command goes on", file=sys.stderr)
        sys.exit(STOPPED)
