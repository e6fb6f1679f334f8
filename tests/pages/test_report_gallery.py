"""Which items the gallery shows, which ones it picks, and what it says of the score that picks."""

import json
import math
from pathlib import Path

import pytest

from ttd.config import UserError
from ttd.metrics.row import Row
from ttd.pages.gallery import introduction, said_of_strip
from ttd.pages.items import Cell, Item, metrics_of, picks, read_scores, words


def item(i: int, **scores: float) -> Item:
    return Item(i, "01", f"picture-{i}", "red_cone", 4, Path("shown.png"), (Cell("LoRA", Path("made.png"), scores),))


def test_best_median_and_worst_follow_the_score_and_its_direction():
    items = [item(i, two_way_clip=(3 * i % 7) / 10) for i in range(7)]  # 0 .3 .6 .2 .5 .1 .4
    assert [(why, it.order) for why, it in picks(items, "two_way_clip", seed=0)[:3]] == [
        ("best", 2), ("median", 1), ("worst", 0),
    ]  # fmt: skip
    items = [item(i, mse=(3 * i % 7) / 10) for i in range(7)]
    assert [it.order for _, it in picks(items, "mse", seed=0)[:3]] == [0, 1, 2]


def test_equal_scores_stand_in_the_order_of_the_manifest():
    chosen = dict(picks([item(i, two_way_clip=1.0) for i in range(5)], "two_way_clip", seed=0)[:3])
    assert [chosen[why].order for why in ("best", "median", "worst")] == [0, 2, 4]


def test_random_items_depend_on_the_seed_and_on_no_score():
    low, high = ([item(i, two_way_clip=v(i)) for i in range(50)] for v in (lambda i: i / 50, lambda i: 1 - i / 50))

    def drawn(items, metric, seed):
        return [it.order for why, it in picks(items, metric, seed=seed) if why == "random"]

    assert len(set(drawn(low, "two_way_clip", 0))) == 3
    assert drawn(low, "two_way_clip", 0) == drawn(high, "two_way_clip", 0) == drawn(low, None, 0)
    assert len({tuple(drawn(low, None, seed)) for seed in range(20)}) > 15


def test_items_without_a_score_are_never_the_best_nor_the_worst():
    items = [item(0), item(1, two_way_clip=0.5), item(2)]
    assert [it.order for _, it in picks(items, "two_way_clip", seed=0)[:3]] == [1, 1, 1]
    assert math.isnan(items[0].score("two_way_clip"))
    assert len(picks(items, None, seed=0)) == 3


def test_the_strip_says_its_score_chance_and_control():
    items = [item(i, two_way_clip=0.9) for i in range(2)]
    items = [
        Item(*(getattr(it, f) for f in ("order", "subject", "image_id", "concept", "repetitions", "shown")),
             (*it.cells, Cell("wrong EEG", Path("made.png"), {"two_way_clip": 0.4 + it.order / 10})))
        for it in items
    ]  # fmt: skip
    row = Row("two_way_clip", "LoRA", "mean", 0.9, 0.8, 1.0, 0.5, 0.5, 0.4, 0.6, 50)
    said = said_of_strip(items, "two_way_clip", [row], seed=7)
    assert (
        "two-way identification, CLIP of LoRA (higher is better; chance 0.5; wrong EEG reaches 0.450 on average)"
        in said
    )
    assert "drawn by the report's seed (7) before any score is looked at" in said
    assert "chance: see the results" in said_of_strip(items, "two_way_clip", [], seed=0)
    row = Row("mse", "LoRA", "mean", 0.1, 0.1, 0.1, None, 0.2, 0.2, 0.2, 50)
    assert "(lower is better; no chance level)" in said_of_strip(items, "mse", [row], seed=0)


def test_a_gallery_without_its_control_says_so():
    text = " ".join(introduction([item(0)], [4]))
    assert "4 repetitions averaged" in text
    assert "The control from wrong EEG was not generated" in text


def test_scores_are_joined_by_run_and_key_and_unknown_ones_are_left_aside(tmp_path):
    lines = [
        {"run": "LoRA", "key": "a", "scores": {"mse": 0.1, "of_tomorrow": 3}},
        {"run": "no LoRA", "key": "a", "scores": {"mse": None, "two_way_clip": 1}},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = read_scores(tmp_path)
    assert scores["LoRA", "a"]["scores"] == {"mse": 0.1}
    assert scores["no LoRA", "a"]["scores"] == {"two_way_clip": 1.0}
    assert metrics_of([item(0, two_way_clip=1.0, mse=0.1)]) == ["mse", "two_way_clip"]
    assert read_scores(tmp_path / "nowhere") == read_scores(None) == {}


def test_a_damaged_line_of_scores_is_named(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"run": "LoRA", "key": "a", "scores": {}}\n{"run": "LoRA"}\n')
    with pytest.raises(UserError, match=r"items.jsonl, line 2: not an item .*run ttd/eval.py again"):
        read_scores(tmp_path)


def test_what_the_judge_names_is_read_as_one_says_it():
    assert words({"kind": "sphere", "colour": "green"}) == "green sphere"
    assert words({"kind": "sphere", "colour": None}) == "sphere"
    assert words(None) == ""
