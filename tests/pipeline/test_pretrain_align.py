"""Pretraining, alignment from what it exported, and the refusals of both, on shards of a minute."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ttd.align
import ttd.pretrain
from ttd.config import run
from ttd.data.index import ShardIndex
from ttd.data.writer import ShardWriter
from ttd.experiments.align import AlignConfig
from ttd.experiments.pretrain import PretrainConfig
from ttd.objectives.contrastive import load_aligned

SFREQ, CAP, FEWER = 128.0, ["O1", "Oz", "O2", "Pz"], ["Oz", "O1", "Fz"]
SMALL = [
    "encoder.embed_dim=16",
    "encoder.depth=1",
    "encoder.n_heads=2",
    "train.log_every=5",
    "train.checkpoint_every=5",
]


def facts(part: str, names: list[str], n_times: int) -> dict:
    return {
        "study": "Simulated", "part": part, "sfreq": SFREQ, "tmin": 0.0, "n_times": n_times, "simulated": True,
        "caps": {"cap": names}, "statistics": {"cap": {"mean": [0.0] * len(names), "std": [10.0] * len(names)}},
    }  # fmt: skip


def meta(subject: str, run_: str, n: int, image: int | None = None) -> dict:
    more = {} if image is None else {"image_id": f"i{image}", "concept": f"c{image}", "image_sha256": sha(image)}
    return {
        "study": "Simulated", "subject": subject, "cap": "cap", "sessions": ["1"] * n, "runs": [run_] * n,
        "onsets": [float(i) for i in range(n)], **more,
    }  # fmt: skip


def sha(image: int) -> str:
    return hashlib.sha256(str(image).encode()).hexdigest()


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    """Slow waves common to four electrodes, and noise."""
    rng, folder = np.random.default_rng(0), tmp_path / "windows"
    for part, n in (("train", 24), ("validation", 8)):
        with ShardWriter(folder / part, kind="window") as writer:
            for i in range(n):
                wave = np.sin(2 * np.pi * 5 * np.arange(128) / SFREQ + rng.uniform(0, 6.28))
                eeg = 10 * wave + 3 * rng.standard_normal((1, 4, 128))
                writer.write(f"w{part}{i}", {"eeg.npy": eeg.astype(np.float16), "meta.json": meta("01", part, 1)})
            writer.finish(facts(part, CAP, 128))
    return folder


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    """Two subjects, each picture with a pattern of its own, on another cap."""
    rng, folder = np.random.default_rng(0), tmp_path / "paired"
    patterns = rng.standard_normal((24, 3, 64))
    for part, images in (("train", range(12)), ("validation", range(12, 24))):
        with ShardWriter(folder / part, kind="paired") as writer:
            for subject in ("01", "02"):
                for i in images:
                    eeg = (10 * (patterns[i] + rng.standard_normal((4, 3, 64)))).astype(np.float16)
                    writer.write(f"s{subject}-{i}", {"eeg.npy": eeg, "meta.json": meta(subject, part, 4, i)})
            writer.finish(facts(part, FEWER, 64))
    for name, shape in (("clip", (6,)), ("dinov2.8-tokens", (4, 6))):
        with ShardWriter(folder / "targets" / name, kind="target") as writer:
            for i in range(24):
                writer.write(sha(i), {"target.npy": rng.standard_normal(shape).astype(np.float32)})
            writer.finish({"study": "Simulated"})
    return folder


def start(module, schema, *overrides: str) -> int:
    with pytest.raises(SystemExit) as stop:
        run(module.main, schema, doc=module.__doc__, check=module.check, argv=[*SMALL, *overrides])
    return stop.value.code


def pretraining(tmp_path: Path, windows: Path, *more: str) -> list[str]:
    return [
        f"output_dir={tmp_path / 'pretrain'}", f"data.shards={windows}", "global_batch_size=8", "train.max_steps=4",
        "objective.masking.span=8", "objective.decoder.width=16", "objective.decoder.depth=1",
        "objective.decoder.n_heads=2", "report.n_wiener=4", *more,
    ]  # fmt: skip


def alignment(tmp_path: Path, paired: Path, *more: str) -> list[str]:
    return [
        f"output_dir={tmp_path / 'align'}", f"data.shards={paired}", "global_batch_size=8", "train.max_steps=4",
        "train.validate_every=2", *more,
    ]  # fmt: skip


def test_from_windows_to_an_encoder_aligned_on_another_cap(tmp_path, windows, paired, capsys):
    assert start(ttd.pretrain, PretrainConfig, *pretraining(tmp_path, windows)) == 0
    report = json.loads((tmp_path / "pretrain" / "pretrain_report.json").read_text())
    assert {"model", "zero", "channel mean", "linear"} == set(report["masked_mse"])
    assert report["hidden_fraction"] == 0.5
    assert report["masked_mse_on_wiener_windows"]["wiener"] < report["masked_mse_on_wiener_windows"]["zero"]
    assert "Masked error on the validation part, runs validation" in capsys.readouterr().out

    more = f"pretrained={tmp_path / 'pretrain'}"
    assert start(ttd.align, AlignConfig, *alignment(tmp_path, paired, more)) == 0
    facts_ = json.loads((tmp_path / "align" / "export" / "encoder" / "config.json").read_text())
    assert facts_["transfer"]["mapped"] == ["Oz", "O1"]
    aligned = load_aligned(tmp_path / "align" / "export")
    assert torch.allclose(aligned(torch.randn(2, 3, 64)).norm(dim=1), torch.ones(2))
    lines = [json.loads(line) for line in (tmp_path / "align" / "log.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line["event"] == "validation"]
    assert [line["step"] for line in scores] == [2, 4]
    assert scores[0]["chance"] == pytest.approx(1 / 12)


@pytest.mark.parametrize("module", [ttd.pretrain, ttd.align])
def test_bfloat16_arithmetic_gives_nearly_the_losses_of_float32(tmp_path, windows, paired, module, other_precision):
    found = {}
    for precision in ("no", "bf16"):
        other_precision()
        folder = tmp_path / precision
        if module is ttd.pretrain:
            given, schema = pretraining(folder, windows), PretrainConfig
        else:
            given, schema = alignment(folder, paired), AlignConfig
        assert start(module, schema, *given, f"engine.mixed_precision={precision}", "train.log_every=1") == 0
        run_folder = next(folder.iterdir())
        lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
        found[precision] = [line["loss"] for line in lines if line["event"] == "train"]
    assert len(found["no"]) == 4
    assert found["bf16"] != found["no"]
    assert found["bf16"] == pytest.approx(found["no"], rel=0.05)


def test_damage_that_whitening_finds_before_the_first_batch_goes_into_quarantine_too(tmp_path, paired, capsys):
    index = ShardIndex.read(paired / "train")
    shard, _, _, offset, size, _ = index.places(np.array([5]), "eeg.npy")[0]
    content = bytearray((paired / "train" / shard).read_bytes())
    content[offset + size - 1] ^= 1
    (paired / "train" / shard).write_bytes(content)
    given = alignment(tmp_path, paired, "data.damage=quarantine", "encoder.whiten=true")
    assert start(ttd.align, AlignConfig, *given) == 2
    assert "quarantine.json now, the next start leaves it out" in capsys.readouterr().err
    assert ShardIndex.read(paired / "train").quarantined == [index.keys[5]]
    assert start(ttd.align, AlignConfig, *given) == 0


def test_pretraining_without_a_subject_that_nobody_is_is_refused(tmp_path, windows, capsys):
    assert start(ttd.pretrain, PretrainConfig, *pretraining(tmp_path, windows, "data.leave_out=['1']")) == 2
    assert "data.leave_out: no subject '1' in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("micro_batch_size=4", "alignment compares only the samples of one pass; give global_batch_size=4"),
        ("data.shards=nowhere", "nowhere"),
        ("pretrained=nowhere", "no exported encoder"),
        ("objective.target=dino", "has no targets"),
        ("objective.target=dinov2.8-tokens", "one embedding per picture is needed, this target is [4, 6]"),
        ("encoder.token_ms=4000", "shorter than one token"),
        ("data.montage=union", "several caps in one run are for pretraining"),
        ("objective.linear_ms=4000", "objective.linear_ms=4000: longer than the epochs"),
    ],
)
def test_alignment_refuses_what_cannot_work(tmp_path, paired, capsys, more, words):
    assert start(ttd.align, AlignConfig, *alignment(tmp_path, paired, more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "align").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("data.shards=nowhere", "nowhere"),
        ("report.part=test", "holds no part test"),
        ("objective.masking.ratio=1", "hides 128 of 128"),
    ],
)
def test_pretraining_refuses_what_cannot_work(tmp_path, windows, capsys, more, words):
    assert start(ttd.pretrain, PretrainConfig, *pretraining(tmp_path, windows, more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "pretrain").exists()


def test_a_linear_readout_travels_with_the_export_and_counts(tmp_path, paired):
    assert start(ttd.align, AlignConfig, *alignment(tmp_path, paired, "objective.linear_ms=24")) == 0
    aligned = load_aligned(tmp_path / "align" / "export")
    linear = aligned.head.linear
    assert linear is not None
    assert linear.weight.abs().sum() > 0
    eeg = torch.randn(4, 3, 64)
    alone = torch.nn.functional.normalize(aligned.head(aligned.encoder(eeg)), dim=1)
    with_it = torch.nn.functional.normalize(alone + torch.nn.functional.normalize(linear(eeg), dim=1), dim=1)
    assert torch.allclose(aligned(eeg), with_it, atol=1e-5)
    assert not torch.allclose(aligned(eeg), alone, atol=1e-2)


def test_a_pretrained_encoder_of_another_rate_is_refused(tmp_path, windows, paired, capsys):
    assert start(ttd.pretrain, PretrainConfig, *pretraining(tmp_path, windows, "train.max_steps=1")) == 0
    path = tmp_path / "pretrain" / "export" / "encoder" / "config.json"
    facts_ = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    path.write_text(json.dumps(facts_ | {"sfreq": 160.0}))
    more = f"pretrained={tmp_path / 'pretrain'}"
    assert start(ttd.align, AlignConfig, *alignment(tmp_path, paired, more)) == 2
    assert "trained at 160 Hz, the shards hold 128 Hz" in capsys.readouterr().err
