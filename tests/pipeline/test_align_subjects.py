"""Alignment with a subject left out, with subject layers, and with a target of an intermediate layer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_pretrain_align import alignment, paired, sha, start  # noqa: F401 - a fixture

import ttd.align
from ttd.data.writer import ShardWriter
from ttd.experiments.align import AlignConfig
from ttd.objectives.contrastive import load_aligned


def test_a_subject_left_out_gets_the_mean_of_the_other_layers(tmp_path, paired, capsys):  # noqa: F811
    more = ["data.leave_out=['02']", "objective.subject_layers=true", "train.max_steps=2"]
    assert start(ttd.align, AlignConfig, *alignment(tmp_path, paired, *more)) == 0
    export = tmp_path / "align" / "export"
    assert "12 training samples of\n1 subjects (left out: 02)" in (export / "README.md").read_text()
    assert "alignment: 12 samples of 1 subjects" in capsys.readouterr().err
    aligned = load_aligned(export, subject_layers=True)
    assert aligned.layers.subjects == ["01"]
    assert aligned.layers.weight.abs().sum() > 0  # it was trained
    eeg = torch.randn(2, 3, 64)
    assert torch.equal(
        aligned(eeg, aligned.layers.places(["01", "01"])), aligned(eeg, aligned.layers.places(["02", "02"]))
    )


def test_a_pooled_embedding_of_an_intermediate_layer_is_a_target_like_any_other(tmp_path, paired):  # noqa: F811
    rng = np.random.default_rng(1)
    with ShardWriter(paired / "targets/dinov2.8-mean", kind="target") as writer:
        for i in range(24):
            writer.write(sha(i), {"target.npy": rng.standard_normal(5).astype(np.float16)})
        writer.finish({"study": "Simulated"})
    assert start(ttd.align, AlignConfig, *alignment(tmp_path, paired, "objective.target=dinov2.8-mean")) == 0
    aligned = load_aligned(tmp_path / "align" / "export")
    assert (aligned.target, aligned(torch.randn(2, 3, 64)).shape[1]) == ("dinov2.8-mean", 5)
    facts = json.loads((tmp_path / "align/export/clip_head/config.json").read_text())
    assert "subjects" not in facts


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("data.leave_out=['7']", "data.leave_out: no subject '7' in"),
        ("data.leave_out=['01', '02']", "holds no other subject"),
    ],
)
def test_leaving_out_nobody_or_everybody_is_refused(tmp_path, paired, capsys, more, words):  # noqa: F811
    assert start(ttd.align, AlignConfig, *alignment(tmp_path, paired, more)) == 2
    assert words in capsys.readouterr().err
