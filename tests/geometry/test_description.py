import copy
import json
import re

import pytest

from ttd.geometry.description import SHAPES, grammar_schema, parse, semantic_problems, to_text
from ttd.simulation.scenes import KINDS, Scene, Solid, describe, draw_scene

NEAR = Solid("cone", "red", "large", 0.4, 0, -0.45, 0.3)
FAR = Solid("torus", "blue", "small", 0.3, 0, 0.45, -0.3)


def pair() -> dict:
    """A red cone in front on the left, a blue torus behind on the right."""
    return describe(Scene((NEAR, FAR), 0))


def test_every_simulated_scene_is_described_in_the_schema_and_agrees_with_itself():
    for seed in range(60):
        description = describe(draw_scene(seed))
        assert parse(to_text(description)) == description
        assert semantic_problems(description) == []


def test_the_description_of_a_known_pair():
    d = pair()
    assert [o["label"] for o in d["objects"]] == ["cone", "torus"]
    assert d["objects"][0]["position"] == {"x": -45, "y": -16, "z": 30}  # -0.5 + 0.85 * 0.4 = -0.16
    assert d["objects"][0]["extent"] == {"x": 64, "y": 68, "z": 64}  # a base of radius 0.8 * 0.4, a height of 1.7 * 0.4
    assert d["depth"] == {"near": ["o0"], "far": ["o1"]}
    assert d["geometry"] == "two solids on a table"


def test_a_lone_solid_is_near_and_nothing_is_far():
    d = describe(Scene((NEAR,), 0))
    assert d["depth"] == {"near": ["o0"], "far": []}
    assert d["relations"] == []


def test_the_schema_knows_every_kind_of_the_simulation():
    assert set(KINDS) < set(SHAPES)


def change(path: str, value) -> dict:
    d = copy.deepcopy(pair())
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    place = d
    for parent in parents:
        place = place[parent]
    place[last] = value
    return d


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("objects.0.position.x", 12.5),
        ("objects.0.position.x", 101),
        ("objects.1.extent.y", -1),
        ("objects.0.label", "Cone"),
        ("objects.0.label", "a" * 25),
        ("objects.0.shape", "pyramid"),
        ("objects.0.id", "o8"),
        ("objects", []),
        ("relations.0.predicate", "beside"),
        ("confidence", 101),
        ("geometry", "two\nsolids"),
    ],
)
def test_a_value_outside_the_schema_is_refused_by_its_name(path, value):
    with pytest.raises(ValueError, match=rf"not of the schema: {path.replace('.', '[.]')}"):
        parse(json.dumps(change(path, value)))


def test_nine_objects_a_further_key_and_a_missing_key_are_refused():
    d = pair()
    for wrong in (
        {**d, "objects": d["objects"][:1] * 9},
        {**d, "seed": 3},
        {name: value for name, value in d.items() if name != "depth"},
    ):
        with pytest.raises(ValueError, match="not of the schema"):
            parse(json.dumps(wrong))


@pytest.mark.parametrize("text", ["", "Sure! Here it is: {}", '{"schema_version": 1', to_text(pair()) + "}"])
def test_what_is_not_json_is_refused_and_never_repaired(text):
    with pytest.raises(ValueError, match="not JSON"):
        parse(text)


def test_the_grammar_writes_what_the_reference_writes():
    guidance = grammar_schema()["x-guidance"]
    assert json.dumps([1, {"a": 2, "b": 3}]) == '[1{item}{{"a"{key}2{item}"b"{key}3}}]'.format(
        item=guidance["item_separator"], key=guidance["key_separator"]
    )
    assert guidance["whitespace_flexible"] is False


def test_every_number_of_the_grammar_is_bounded_every_array_capped_and_no_string_has_a_maximal_length():
    def walk(node):
        if isinstance(node, dict):
            if node.get("type") == "integer" and "const" not in node:
                assert {"minimum", "maximum"} <= set(node), node
            if node.get("type") == "array":
                assert "maxItems" in node, node
            if node.get("type") == "string":
                assert "pattern" in node or "enum" in node, node
            assert node.get("type") != "number"
            assert "maxLength" not in node
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk({k: v for k, v in grammar_schema().items() if k != "x-guidance"})


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("objects.1.id", "o0", "the id o0 is given to 2 objects"),
        ("relations.0.object", "o5", "there is no object o5"),
        ("relations.0.object", "o0", "cannot stand in relation to itself"),
        ("relations.0.predicate", "right_of", "o0 right_of o1: the positions say the opposite"),
        ("relations.1.predicate", "behind", "o0 behind o1: the positions say the opposite"),
        ("relations.1.predicate", "above", None),  # the cone's centre is at -0.16, the torus' at -0.215
        ("relations.1.predicate", "on", None),
        ("relations.1.predicate", "below", "o0 below o1: the positions say the opposite"),
        ("relations.1.predicate", "inside", "o0 inside o1: the positions say the opposite"),
        ("relations.1.predicate", "near", None),
        ("objects.1.depth_rank", 0, r"depth_rank must number the objects from 0 to 1, got \[0, 0\]"),
        ("objects.1.position.z", 90, r"depth_rank does not go from near to far: z by rank is \[30, 90\]"),
        ("depth.near", ["o0", "o1"], "o1 is both near and far"),
        ("depth", {"near": ["o1"], "far": ["o0"]}, "something far stands nearer"),
        ("depth.far", ["o7"], "depth: there is no object o7"),
    ],
)
def test_a_description_that_contradicts_itself_is_told_where(path, value, words):
    problems = semantic_problems(change(path, value))
    if words is None:
        assert problems == []
    else:
        assert any(re.search(words, problem) for problem in problems), problems
