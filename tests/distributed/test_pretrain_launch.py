"""Pretraining over two caps on two ranks: DDP and ZeRO-2 see the same windows and fall to the same losses."""

import json

import numpy as np
import pytest
import test_engine_launch
from test_engine_launch import launch, losses

from ttd.data.writer import ShardWriter

CAPS = {"four": ["O1", "Oz", "O2", "Pz"], "two": ["Oz", "Fz"]}

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture
def windows(tmp_path):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "windows" / "train", kind="window") as writer:
        for cap, names in CAPS.items():
            for i in range(12):
                wave = np.sin(2 * np.pi * 5 * np.arange(128) / 128 + rng.uniform(0, 6.28))
                eeg = 10 * (wave + 0.3 * rng.standard_normal((1, len(names), 128)))
                meta = {
                    "study": "Simulated",
                    "subject": "01",
                    "cap": cap,
                    "sessions": ["1"],
                    "runs": ["1"],
                    "onsets": [0.0],
                }
                writer.write(f"{cap}-{i}", {"eeg.npy": eeg.astype(np.float16), "meta.json": meta})
        statistics = {cap: {"mean": [0.0] * len(names), "std": [8.0] * len(names)} for cap, names in CAPS.items()}
        facts = {"study": "Simulated", "part": "train", "sfreq": 128.0, "tmin": 0.0, "n_times": 128}
        writer.finish({**facts, "caps": CAPS, "statistics": statistics})
    (tmp_path / "windows" / "validation").symlink_to(tmp_path / "windows" / "train")
    return tmp_path / "windows"


def test_ddp_and_zero2_pretrain_alike_on_several_caps(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(test_engine_launch, "TOY", "ttd/pretrain.py")
    options = [
        f"data.shards={windows}", "data.montage=union", "encoder.embed_dim=16", "encoder.depth=1", "encoder.n_heads=2",
        "encoder.whiten=false", "encoder.stem_dropout=0", "encoder.dropout=0", "objective.masking.span=16",
        "objective.masking.electrodes=0.25", "objective.decoder.width=16", "objective.decoder.depth=1",
        "objective.decoder.n_heads=2", "objective.decoder.dropout=0", "objective.start=wiener", "objective.fill=start",
        "global_batch_size=8", "train.max_steps=4", "train.log_every=1", "train.checkpoint_every=4", "report.n_wiener=2",
    ]  # fmt: skip
    for config in ("ddp", "zero2"):
        printed = launch(config, tmp_path / config, *options)
        assert "Masked error on the validation part" in printed, printed[-3000:]
    assert losses(tmp_path / "zero2") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-4)
    report = json.loads((tmp_path / "ddp" / "pretrain_report.json").read_text())
    assert {cap: row["n_windows"] for cap, row in report["by_cap"].items()} == {"four": 12, "two": 12}
