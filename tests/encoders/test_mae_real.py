"""Masked pretraining of the ViT-MAE on real recordings, through the entry: the error on a left-out run falls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = (ROOT / os.environ.get("TTD_REAL_DATA", "../shared/data")).resolve() / "eegmmidb"
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent; set TTD_REAL_DATA"),
]


def go(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    subprocess.run([sys.executable, script, *arguments], cwd=ROOT, check=True, env=environment)


def test_the_masked_error_on_a_left_out_run_of_eegmmidb_falls_with_the_updates(tmp_path):
    windows = tmp_path / "windows"
    folders = (f"study.root={DATA}", f"output_dir={windows}")
    go("shards/build_unlabelled.py", "--config", "configs/shards/eegmmidb.yaml", *folders)
    found = {}
    for steps in (20, 400):
        out = tmp_path / str(steps)
        short = (
            f"train.max_steps={steps}",
            f"optim.warmup_steps={steps // 5}",
            "report.n_wiener=1",
            "optim.schedule=constant",
            f"output_dir={out}",
        )
        go("ttd/pretrain.py", "--config", "configs/pretrain/mae_eegmmidb.yaml", f"data.shards={windows}", *short)
        report = json.loads((out / "pretrain_report.json").read_text())
        assert report["runs"] == ["13"]
        assert report["hidden_fraction"] == pytest.approx(0.5)
        found[steps] = report["masked_mse"]
    assert found[20]["model"] > 0.95 * found[20]["zero"]
    assert found[400]["model"] < 0.85 * found[400]["zero"]
