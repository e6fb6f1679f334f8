"""One pretraining run over studies of 64, 63 and 4 electrodes, and the encoder's way through their caps by name."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pretrain_align import start

import ttd.pretrain
from ttd.config import UserError
from ttd.data.stream import DataConfig, open_index
from ttd.data.writer import ShardWriter
from ttd.eeg.montage import CAPS, THINGS_EEG2_17
from ttd.encoders import load_encoder, save_encoder
from ttd.experiments.pretrain import PretrainConfig

STUDIES = {"Schalk2004": "eegmmidb-64", "Muse": "muse-4", "Simulated": "things-eeg1-63"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """A few windows of each study: 5 Hz waves of the study's own amplitude, common to its electrodes, and noise."""
    root, rng = tmp_path_factory.mktemp("studies"), np.random.default_rng(0)
    for k, (study, cap) in enumerate(STUDIES.items()):
        names, amplitude = list(CAPS[cap]), 10.0 * (k + 1)
        for part, n in (("train", 12), ("validation", 4)):
            with ShardWriter(root / study / part, kind="window") as writer:
                for i in range(n):
                    wave = np.sin(2 * np.pi * 5 * np.arange(128) / 128 + rng.uniform(0, 6.28))
                    eeg = amplitude * (wave + 0.3 * rng.standard_normal((1, len(names), 128)))
                    meta = {"study": study, "subject": "01", "cap": cap}
                    meta |= {"sessions": ["1"], "runs": [part], "onsets": [0.0]}
                    writer.write(f"w{i}", {"eeg.npy": eeg.astype(np.float16), "meta.json": meta})
                statistics = {"mean": [0.0] * len(names), "std": [0.75 * amplitude] * len(names)}
                facts = {"study": study, "part": part, "sfreq": 128.0, "tmin": 0.0, "n_times": 128}
                writer.finish({**facts, "caps": {cap: names}, "statistics": {cap: statistics}})
    return [root / study for study in STUDIES]


def options(folders: list[Path], out: Path, *more: str) -> list[str]:
    return [
        f"output_dir={out}", f"data.shards={folders[0]}", f"data.also=[{', '.join(map(str, folders[1:]))}]",
        "data.montage=union", "encoder.whiten=false", "global_batch_size=12", "train.max_steps=6", "report.n_wiener=6",
        "objective.masking.span=16", "objective.masking.electrodes=0.25", "objective.decoder.width=16",
        "objective.decoder.depth=1", "objective.decoder.n_heads=2", "objective.start=linear", "objective.fill=start",
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(folders, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "pretrain"
    assert start(ttd.pretrain, PretrainConfig, *options(folders, out)) == 0
    return out


def test_three_caps_train_one_encoder_on_the_union_of_their_electrodes(folders, pretrained):
    facts = json.loads((pretrained / "export" / "encoder" / "config.json").read_text())
    union = list(dict.fromkeys(name for cap in STUDIES.values() for name in CAPS[cap]))
    assert facts["ch_names"] == union
    assert len(union) == 68  # FT9, FT10, TP9 and TP10 are not among the 64
    report = json.loads((pretrained / "pretrain_report.json").read_text())
    assert {cap: row["n_windows"] for cap, row in report["by_cap"].items()} == {
        "0-eegmmidb-64": 4, "1-muse-4": 4, "2-things-eeg1-63": 4,
    }  # fmt: skip
    for row in report["by_cap"].values():  # every study was scaled by its own statistics
        assert row["zero"] == pytest.approx(1.0, abs=0.15)
    lines = [json.loads(line) for line in (pretrained / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if line["event"] in ("train", "validation"))
    bands = report["spectrum"]["wiener"]
    assert [band["low"] for band in bands] == [0, 8, 13, 30]  # 8 Hz apart: no frequency lies in 4 to 8 Hz
    assert bands[1]["power_ratio"] < 1
    assert "| 1-muse-4 | 4 |" in (pretrained / "export" / "README.md").read_text()


def test_a_resumed_run_ends_with_the_same_weights(folders, tmp_path):
    more = ("objective.start=wiener", "optim.schedule=constant", "train.checkpoint_every=3")
    for name, steps in (("whole", (6,)), ("resumed", (3, 6))):
        for n in steps:
            assert (
                start(ttd.pretrain, PretrainConfig, *options(folders, tmp_path / name, *more, f"train.max_steps={n}"))
                == 0
            )
    whole, resumed = (load_file(tmp_path / name / "export/encoder/model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    stored = load_file(tmp_path / "whole/export/decoder/component_filter.safetensors")
    assert stored["components"].shape == (68, 68)


def test_resuming_with_another_montage_is_refused(folders, pretrained, capsys):
    more = options(folders, pretrained, "data.montage=[TP9, AF7, Oz]", "train.max_steps=8")
    assert start(ttd.pretrain, PretrainConfig, *more) == 2
    assert "data.montage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("encoder.whiten=true", "one matrix cannot whiten several caps"),
        ("data.montage=null", "several studies need common channels"),
        ("data.montage=[Oz]", "cap 1-muse-4 has no electrode of data.montage"),
        ("objective.start=zero", "fill=start needs start=linear or start=wiener"),
    ],
)
def test_what_several_caps_cannot_do_is_refused(folders, tmp_path, capsys, more, words):
    assert start(ttd.pretrain, PretrainConfig, *options(folders, tmp_path / "out", more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plan_says_what_each_cap_has_of_the_montage(folders, tmp_path, capsys):
    assert start(ttd.pretrain, PretrainConfig, *options(folders, tmp_path / "out"), "--dry-run") == 0
    assert "caps have: 0-eegmmidb-64 (64), 1-muse-4 (4), 2-things-eeg1-63 (63)" in capsys.readouterr().err


def test_an_encoder_moves_from_64_to_63_to_17_to_4_electrodes_by_name(pretrained, tmp_path, caplog):
    """Every step keeps the weights of the electrodes both caps have, says so, and stores what it did."""
    folder, old = pretrained / "export" / "encoder", list(CAPS["eegmmidb-64"])
    first = load_encoder(folder, ch_names=old)
    save_encoder(tmp_path / "64", first)
    folder, weights = tmp_path / "64", first.state_dict()["stem.spatial.weight"]  # [M, C]
    for names in (list(CAPS["things-eeg1-63"]), list(THINGS_EEG2_17), ["Oz", "TP9", "O1", "AF7"]):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="ttd"):
            moved = load_encoder(folder, ch_names=names)
        kept = [name for name in names if name in old]
        new = moved.state_dict()["stem.spatial.weight"]
        for name in kept:
            assert torch.equal(new[:, names.index(name)], weights[:, old.index(name)])
        folder = tmp_path / str(len(names))
        save_encoder(folder, moved)
        stored = json.loads((folder / "config.json").read_text())["transfer"]
        assert stored["mapped"] == kept
        assert stored["initialised"] == [name for name in names if name not in old]
        assert stored["dropped"] == [name for name in old if name not in names]
        assert f"{len(kept)} mapped; {len(names) - len(kept)} initialised" in caplog.text
        assert torch.isfinite(moved.eval()(torch.randn(2, len(names), 128))).all()
        weights, old = new, names
    assert len(list(THINGS_EEG2_17)) == 17


def test_a_part_of_an_encoder_loads_only_where_that_is_asked_for(pretrained, tmp_path, caplog):
    folder = tmp_path / "encoder"
    shutil.copytree(pretrained / "export" / "encoder", folder)
    weights = load_file(folder / "model.safetensors")
    del weights["norm.bias"], weights["stem.project.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_encoder(folder, ch_names=list(CAPS["muse-4"]))
    assert "norm.bias: missing in the file" in str(error.value)
    assert "stem.project.weight: missing in the file" in str(error.value)
    load_encoder(folder, ch_names=list(CAPS["muse-4"]), allow_partial=True)
    assert "norm.bias: missing in the file" in caplog.text


def test_one_folder_without_a_montage_is_read_as_before(folders):
    index = open_index(DataConfig(shards=folders[1]))
    assert (index.montage, index.ch_names) == (None, list(CAPS["muse-4"]))
