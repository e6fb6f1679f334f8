from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from ttd.metrics.catalogue import METRICS
from ttd.metrics.published import (
    LEFT_OUT,
    PROTOCOLS,
    RECONSTRUCTION,
    STUDIES,
    WITHIN,
    cells,
    published,
    published_markdown,
    unlike,
)

ALL = [figure for study in STUDIES for figure in published(study)]
OURS = {
    "study": "Gifford2022", "protocol": LEFT_OUT, "subjects": [f"{n:02}" for n in range(1, 11)], "channels": 63,
    "repetitions": 80, "inductive": True, "selection": "validation part", "gallery": 200, "gallery_of": "images",
}  # fmt: skip


def value(study: str, protocol: str, method: str, metric: str, source: str = "") -> float:
    (figure,) = (
        f for f in published(study, [metric], protocol=protocol) if f.method == method and f.source.startswith(source)
    )
    return figure.value


@pytest.mark.parametrize(
    ("protocol", "method", "source", "top1", "top5"),
    [
        (WITHIN, "chance", "", 0.005, 0.025),
        (LEFT_OUT, "chance", "", 0.005, 0.025),
        (WITHIN, "SAMGA", "", 0.913, 0.988),
        (LEFT_OUT, "SAMGA", "", 0.344, 0.648),
        (WITHIN, "NICE", "NICE, arXiv:2308.13234", 0.156, 0.428),
        (WITHIN, "NICE", "NICE, in the table of Shallow Alignment", 0.161, 0.436),
        (WITHIN, "Shallow Alignment", "", 0.826, 0.977),
        (LEFT_OUT, "UBP", "", 0.124, 0.334),
        (LEFT_OUT, "SCORE", "", 0.532, 0.836),
    ],
)
def test_known_figures_of_200_way_retrieval_are_there(protocol, method, source, top1, top5):
    assert value("Gifford2022", protocol, method, "retrieval_top1", source) == top1
    assert value("Gifford2022", protocol, method, "retrieval_top5", source) == top5


def test_known_figures_of_reconstruction_are_there():
    mindeye2 = [0.374, 0.439, 0.979, 0.991, 0.960, 0.937, 0.607, 0.336]
    names = [
        "pixcorr", "ssim", "two_way_alexnet_2", "two_way_alexnet_5", "two_way_inception", "two_way_clip_l",
        "distance_efficientnet", "distance_swav",
    ]  # fmt: skip
    assert [value("NSD", RECONSTRUCTION, "MindEye2, subject 01", name) for name in names] == mindeye2
    assert value("Gifford2022", RECONSTRUCTION, "NEED", "two_way_clip_l") == 0.795
    assert value("ThingsMEG", WITHIN, "Shallow Alignment", "retrieval_top5") == 0.744


def test_every_figure_is_a_fraction_with_a_source_and_a_caveat():
    assert len(ALL) > 100
    for figure in ALL:
        assert 0 <= figure.value <= 1, figure
        assert figure.source.strip(), figure
        assert figure.caveat.strip(), figure
        assert figure.metric in METRICS, figure
        assert figure.protocol in PROTOCOLS, figure
        assert figure.study in STUDIES, figure


def test_no_figure_stands_there_twice():
    count = Counter((f.study, f.protocol, f.method, f.metric, f.source) for f in ALL)
    assert max(count.values()) == 1


def test_more_hits_are_found_among_five_than_first():
    by_row: dict[tuple, dict[str, float]] = {}
    for f in ALL:
        by_row.setdefault((f.study, f.protocol, f.method, f.source), {})[f.metric] = f.value
    for row in by_row.values():
        if {"retrieval_top1", "retrieval_top5"} <= set(row):
            assert row["retrieval_top1"] < row["retrieval_top5"]


def test_what_was_chosen_on_the_test_part_says_so():
    chosen = {(f.protocol, f.method) for f in ALL if f.labels.get("selection") == "test part"}
    expected = {
        (WITHIN, "SAMGA"),
        (LEFT_OUT, "SAMGA"),
        (LEFT_OUT, "UBP"),
        (WITHIN, "ATM-S"),
        (WITHIN, "CognitionCapturer"),
    }
    assert chosen == expected
    for figure in ALL:
        if figure.labels.get("selection") == "test part":
            assert "test p" in figure.caveat, figure


def test_what_knows_the_test_set_says_that_it_is_transductive():
    known = {f.method for f in ALL if f.labels.get("inductive") is False}
    assert known == {"NVOL with CSLS", "SCORE", "Perceptogram, one subject"}
    assert all("transductive" in f.caveat for f in ALL if f.labels.get("inductive") is False)


def test_labels_that_differ_or_are_not_known_are_named():
    (figure,) = (f for f in published("Gifford2022", ["retrieval_top1"], protocol=LEFT_OUT) if f.method == "SAMGA")
    reasons = unlike(figure, OURS)
    assert "how the state was selected: test part, ours validation part" in reasons
    assert {"channels: not stated", "gallery of images or of prototypes: not stated"} <= set(reasons)
    assert not any(reason.startswith(("study", "protocol", "number of subjects", "size")) for reason in reasons)
    assert "study: Gifford2022, ours Simulated" in unlike(figure, OURS | {"study": "Simulated"})
    assert "number of subjects: 10, ours 4" in unlike(figure, OURS | {"subjects": ["01", "02", "03", "04"]})
    assert "repetitions averaged: 80, ours 20" in unlike(figure, OURS | {"repetitions": 20})
    without = {name: label for name, label in OURS.items() if name != "protocol"}
    assert f"protocol: {LEFT_OUT}, of ours not known" in unlike(figure, without)


def test_a_transductive_figure_is_unlike_an_inductive_one():
    (figure,) = (f for f in published("Gifford2022", ["retrieval_top1"]) if f.method == "NVOL with CSLS")
    assert "inductive or transductive: transductive, ours inductive" in unlike(figure, OURS)


def test_chance_may_stand_beside_any_row_of_its_gallery_and_protocol():
    (chance,) = (f for f in published("Gifford2022", ["retrieval_top1"], protocol=LEFT_OUT) if f.method == "chance")
    assert unlike(chance, OURS) == []
    assert unlike(chance, OURS | {"gallery": 50}) == ["size of the gallery: 200, ours 50"]


def test_every_other_published_figure_differs_from_ours_in_something():
    """So none of them may stand in one column with ours."""
    for figure, selection in product(ALL, ["validation part", "test part"]):
        if figure.method != "chance":
            assert unlike(figure, OURS | {"selection": selection, "protocol": figure.protocol}), figure


def test_the_table_has_a_caveat_in_every_line_and_names_what_is_not_stated():
    for study, protocol in product(STUDIES, PROTOCOLS):
        header, lines = cells(published(study, protocol=protocol))
        assert header[-1] == "caveat"
        assert all(len(line) == len(header) and line[-1].strip() for line in lines)
    text = published_markdown("Gifford2022", ["retrieval_top1", "retrieval_top5"])
    assert text.startswith("## Published, not run here")
    within = text.split(f"### {WITHIN}")[1].split("###")[0].splitlines()
    (line,) = (row for row in within if row.startswith("| SAMGA |"))
    assert (
        "| 0.913 | 0.988 | SAMGA, arXiv:2604.17782 | its code chooses the state on the test part; not stated: chan"
        in line
    )
    (line,) = (row for row in within if row.startswith("| chance |"))
    assert line.endswith("| 0.005 | 0.025 | closed form | k of 200 pictures |")


def test_a_study_that_nobody_has_published_on_has_no_table():
    assert published("Simulated") == []
    assert published_markdown("Simulated") == ""


def test_a_metric_or_protocol_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no metric accuracy"):
        published("Gifford2022", ["accuracy"])
    with pytest.raises(ValueError, match="no protocol 'within'"):
        published("Gifford2022", protocol="within")
    with pytest.raises(ValueError, match="one table holds one study and protocol"):
        cells(ALL)
