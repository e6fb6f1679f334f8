"""Real recordings through the entries: a short pretraining beats linear interpolation, a short alignment finds the P300."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttd.data.labelled import load
from ttd.experiments.probe import ProbeConfig
from ttd.probe import by_group, score

ROOT = Path(__file__).resolve().parents[2]
DATA = (ROOT / os.environ.get("TTD_REAL_DATA", "../shared/data")).resolve()
LEFT_OUT, VALIDATION = "2017-02-04-16_03_08", "2017-02-04-15_58_30"

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


def recordings(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"real recordings are missing: {DATA / name} (set TTD_REAL_DATA)")
    return DATA / name


def go(script: str, *arguments: str) -> None:
    command = [sys.executable, script, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"})


def test_sixty_updates_on_eegmmidb_predict_a_left_out_run_better_than_straight_lines(tmp_path):
    folder = f"study.root={recordings('eegmmidb')}"
    windows, out = tmp_path / "windows", tmp_path / "pretrain"
    go("shards/build_unlabelled.py", "--config", "configs/shards/eegmmidb.yaml", folder, f"output_dir={windows}")
    short = ("train.max_steps=60", "report.n_wiener=1", "objective.start=linear")  # a filter would hide what is learnt
    pretrain = ("ttd/pretrain.py", "--config", "configs/pretrain/eegmmidb.yaml", f"data.shards={windows}", *short)
    go(*pretrain, f"output_dir={out}")
    report = json.loads((out / "pretrain_report.json").read_text())
    assert report["runs"] == ["13"]
    assert report["masked_mse"]["model"] < 0.97 * report["masked_mse"]["linear"]


def test_a_short_alignment_tells_targets_from_others_in_a_muse_recording_it_never_saw(tmp_path):
    folder = f"study.root={recordings('muse-P300')}"
    fold, out = tmp_path / "fold", tmp_path / "align"
    parts = (f"parts.test=['{LEFT_OUT}']", f"parts.validation=['{VALIDATION}']")
    go("shards/build_paired.py", "--config", "configs/shards/muse_p300.yaml", folder, f"output_dir={fold}", *parts)
    go("shards/precompute_targets.py", f"shards={fold}", "targets=[clip]")
    align = ("ttd/align.py", "--config", "configs/align/muse_p300.yaml", f"data.shards={fold}", "train.max_steps=100")
    go(*align, f"output_dir={out}")
    classifiers = {
        "aligned": {"name": "aligned", "shards": {LEFT_OUT: fold}, "runs": {LEFT_OUT: out}},
        "lda": {"name": "lda"},
    }
    told = {
        "output_dir": tmp_path,
        "positive": "target",
        "data": {"rejected": {"name": "shards", "shards": fold}},
        "models": {name: {"classifier": content, "permuted_fits": 0} for name, content in classifiers.items()},
    }
    config = ProbeConfig.model_validate(told)
    data = load(config.data["rejected"])
    read = {n: by_group(config, score(config, m, data)[0])[LEFT_OUT].value("auc") for n, m in config.models.items()}
    assert read["aligned"] > 0.6
    assert read["lda"] > 0.7  # 0.764 measured with the same cut and band
