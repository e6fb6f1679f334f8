import copy
import math

import numpy as np
import pytest

from ttd.metrics.description import match, mean_scores, score_description


def thing(label: str, color: str, x: int, z: int, rank: int) -> dict:
    return {"label": label, "color": color, "position": {"x": x, "y": -20, "z": z}, "depth_rank": rank}


TRUE = {"objects": [thing("cone", "red", -45, 30, 0), thing("torus", "blue", 45, -30, 1)]}


def test_the_truth_scores_full_marks():
    assert score_description(TRUE, TRUE) == {
        "valid": 1, "count": 1, "label_f1": 1, "color_f1": 1, "position_error": 0, "relation_accuracy": 1,
        "depth_order": 1,
    }  # fmt: skip


def test_objects_are_matched_by_position_and_not_by_their_place_in_the_list():
    turned = {"objects": TRUE["objects"][::-1]}
    assert match(turned, TRUE) == {0: 1, 1: 0}
    assert score_description(turned, TRUE)["label_f1"] == 1


def test_matching_minimises_the_sum_and_not_each_distance():
    # The first true object is nearest to the prediction that the second one needs more.
    true = {"objects": [thing("cone", "red", 0, 0, 0), thing("torus", "blue", 10, 0, 1)]}
    predicted = {"objects": [thing("torus", "blue", 1, 0, 0), thing("cone", "red", -30, 0, 1)]}
    assert match(predicted, true) == {0: 1, 1: 0}  # 30 + 9 = 39; the other way round 1 + 40 = 41


def test_a_right_label_with_a_wrong_colour_counts_once():
    wrong = copy.deepcopy(TRUE)
    wrong["objects"][0]["color"] = "green"
    scores = score_description(wrong, TRUE)
    assert (scores["label_f1"], scores["color_f1"]) == (1.0, 0.5)


def test_a_missed_object_costs_recall_and_every_order():
    scores = score_description({"objects": TRUE["objects"][:1]}, TRUE)
    assert scores["count"] == 0
    assert scores["label_f1"] == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert (scores["position_error"], scores["relation_accuracy"], scores["depth_order"]) == (0, 0, 0)


def test_an_invented_object_costs_precision():
    invented = {"objects": [*TRUE["objects"], thing("box", "red", 0, 0, 2)]}
    assert score_description(invented, TRUE)["label_f1"] == pytest.approx(4 / 5)


def test_the_position_error_is_in_scene_units():
    moved = copy.deepcopy(TRUE)
    moved["objects"][0]["position"]["x"] += 3
    moved["objects"][0]["position"]["y"] += 4
    assert score_description(moved, TRUE)["position_error"] == pytest.approx(0.05 / 2)


def test_left_and_right_are_read_from_the_positions_and_depth_from_the_ranks():
    # Both predicted on one depth plane, ranks exchanged: left-right is kept, behind-before is not stated by positions.
    flat = copy.deepcopy(TRUE)
    for thing_, rank in zip(flat["objects"], (1, 0), strict=True):
        thing_["position"]["z"], thing_["depth_rank"] = 0, rank
    scores = score_description(flat, TRUE)
    assert scores["relation_accuracy"] == 0.5  # x kept, z lost; y is level in truth and not asked
    assert scores["depth_order"] == 0


def test_a_lone_object_stands_in_no_order():
    lone = {"objects": TRUE["objects"][:1]}
    scores = score_description(lone, lone)
    assert scores["relation_accuracy"] is None
    assert scores["depth_order"] is None


def test_a_description_that_did_not_come_out_loses_everything_but_has_no_position_error():
    scores = score_description(None, TRUE)
    assert scores.pop("position_error") is None
    assert set(scores.values()) == {0.0}


def test_unrelated_descriptions_sit_at_the_chance_of_their_vocabulary():
    rng = np.random.default_rng(0)

    def draw() -> dict:
        return {"objects": [thing(str(rng.integers(6)), str(rng.integers(8)), *rng.integers(-50, 50, 2).tolist(), 0)]}

    scores = mean_scores([draw() for _ in range(2000)], [draw() for _ in range(2000)])
    assert scores["label_f1"] == pytest.approx(1 / 6, abs=0.03)
    assert scores["color_f1"] == pytest.approx(1 / 8, abs=0.03)
    assert math.isnan(scores["depth_order"])


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="as many predicted as true descriptions, got 1 and 2"):
        mean_scores([TRUE], [TRUE, TRUE])
