"""Tables: no figure stands unmarked below one with other labels, and TeX reads what is meant."""

import dataclasses

import numpy as np
import pytest

from ttd.metrics.published import published_markdown
from ttd.metrics.row import MEAN, Row
from ttd.metrics.rows import rows_of
from ttd.metrics.table import control_cells, latex, means_markdown, summary_cells, table_latex, table_markdown
from ttd.metrics.uncertainty import bootstrap_interval


def row(model: str, **labels) -> Row:
    labels = {"gallery": 200, "repetitions": 20, "selection": "validation part", "channels": 63, **labels}
    figures = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.005, "control": 0.0, "control_low": 0.0}
    return Row("retrieval_top1", model, MEAN, **figures, control_high=0.01, n=200, labels=labels)


def test_a_figure_with_another_label_carries_a_mark_and_a_note_that_names_it():
    rows = [row("ours"), row("theirs", selection="test part", channels=17)]
    text = means_markdown(rows)
    assert "| ours |" in text
    assert "| theirs (1) |" in text
    assert text.endswith(
        "(1) other labels than the first figure of the metric: theirs: selection test part instead of validation part, "
        "channels 17 instead of 63"
    )


def test_figures_with_equal_labels_are_not_marked_and_another_gallery_is_another_metric():
    rows = [row("ours"), row("theirs"), row("theirs", gallery=50), row("theirs", repetitions=1)]
    assert "(1)" not in means_markdown(rows)


def test_controls_stand_in_a_table_of_their_own_beside_the_figure_of_the_model():
    rows = [row("ours"), dataclasses.replace(row("ours", control="noise EEG"), value=0.004)]
    assert len(summary_cells(rows)[1]) == 1
    (cells,) = control_cells(rows)[1]
    assert cells[3] == "noise EEG"
    assert cells[4].startswith("0.004")
    assert cells[-1] == "0.500"
    assert "## What must fail" in table_markdown(rows, "x")
    assert "What must fail" not in table_markdown(rows[:1], "x")


def test_what_tex_would_read_otherwise_is_written_as_it_is_meant():
    text = latex(["a_b & 50 %"], [["p < 0.001 – {x} ↑ # $ ~ ^ \\"]])
    assert r"a\_b \& 50 \% \\" in text
    assert r"p $<$ 0.001 -- \{x\} $\uparrow$ \# \$ \textasciitilde{} \textasciicircum{} \textbackslash{} \\" in text
    assert text.startswith(r"\begin{tabular}{l}")
    assert table_latex([row("ours")], "50 %").count(r"\toprule") == 1


def test_pictures_of_one_concept_that_move_together_widen_the_interval_by_their_number_s_root():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=100), 4)  # 100 concepts of 4 equal pictures
    low, high = bootstrap_interval(values, seed=0)
    wide_low, wide_high = bootstrap_interval(values, seed=0, groups=np.repeat(np.arange(100), 4))
    assert (wide_high - wide_low) / (high - low) == pytest.approx(2, rel=0.1)
    assert wide_high - wide_low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)


def test_one_picture_per_concept_has_no_second_interval():
    subject, picture = np.repeat("01", 30), np.arange(30)
    common = {"chance": 0.5, "labels": {}, "seed": 0, "n_resamples": 100}
    value = np.random.default_rng(0).random(30)
    for concept, there in ((picture, False), (picture // 3, True), (np.zeros(30), False)):
        (mean, _) = rows_of("ssim", "x", lambda r, own: value[r], subject, picture, concept=concept, **common)
        assert (mean.concept_low is not None) == there


def test_figures_of_others_stand_below_ours_and_never_among_them():
    others = published_markdown("Gifford2022", ["retrieval_top1"])
    text = table_markdown([row("ours")], "x", others)
    ours, below = text.split("## Published, not run here")
    assert "NICE" not in ours
    assert "| NICE |" in below
    assert published_markdown("Simulated", ["retrieval_top1"]) == ""
