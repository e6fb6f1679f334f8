"""Shards and runs so small that a job on the cluster is mostly imports, and the same runs without Slurm beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ttd.data.writer import ShardWriter
from ttd.engine.tracking import read_log

ROOT = Path(__file__).parents[2]
NAMES = ["O1", "Oz", "O2", "Pz"]
MODEL = [
    "encoder.embed_dim=16", "encoder.depth=1", "encoder.n_heads=2", "encoder.whiten=false", "encoder.stem_dropout=0",
    "encoder.dropout=0", "objective.masking.span=16", "objective.decoder.width=16", "objective.decoder.depth=1",
    "objective.decoder.n_heads=2", "objective.decoder.dropout=0", "global_batch_size=8", "optim.warmup_steps=2",
    "train.log_every=1", "report.n_wiener=2",
]  # fmt: skip


def write_windows(folder: Path) -> Path:
    """Windows of a 5 Hz wave in noise, for training and validation."""
    rng = np.random.default_rng(0)
    for part in ("train", "validation"):
        with ShardWriter(folder / part, kind="window") as writer:
            for i in range(24):
                wave = np.sin(2 * np.pi * 5 * np.arange(128) / 128 + rng.uniform(0, 6.28))
                eeg = 10 * (wave + 0.3 * rng.standard_normal((1, len(NAMES), 128)))
                meta = {"study": "Simulated", "subject": "01", "cap": "four", "sessions": ["1"], "runs": ["1"]}
                writer.write(f"w-{i}", {"eeg.npy": eeg.astype(np.float16), "meta.json": meta | {"onsets": [0.0]}})
            statistics = {"four": {"mean": [0.0] * len(NAMES), "std": [8.0] * len(NAMES)}}
            facts = {"study": "Simulated", "part": part, "sfreq": 128.0, "tmin": 0.0, "n_times": 128}
            writer.finish({**facts, "caps": {"four": NAMES}, "statistics": statistics})
    return folder


def pretraining(shards: Path, steps: int, *more: str) -> list[str]:
    """What follows the run folder in ``sbatch slurm/pretrain.sh RUN_DIR ...``."""
    length = [f"train.max_steps={steps}", f"train.checkpoint_every={steps}", f"train.validate_every={steps}"]
    return [f"data.shards={shards}", *MODEL, *length, *more]


def without_slurm(entry: str, run_dir: Path, words: list[str], *, config: str = "zero2", ranks: int = 4) -> None:
    """The same run by ``accelerate launch`` on this machine."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TTD_"))}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [f"launch/{config}.yaml", "--num_processes", str(ranks), "--main_process_port", "0"]
    done = subprocess.run(
        [*command, entry, *words, f"output_dir={run_dir}"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert outcome(run_dir)["status"] == 0, done.stdout + done.stderr


def outcome(run_dir: Path) -> dict:
    return json.loads((run_dir / "outcome.json").read_text())


def losses(run_dir: Path) -> dict[int, float]:
    """Training loss by step; of steps that were done again, the last."""
    return {r["step"]: r["loss"] for r in read_log(run_dir) if r["event"] == "train"}


def environment(run_dir: Path) -> dict:
    return json.loads((run_dir / "environment.json").read_text())
