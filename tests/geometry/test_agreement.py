import copy

import pytest
import trimesh

from ttd.geometry.agreement import agreement, parts_by_object
from ttd.metrics.geometry import METRICS
from ttd.simulation.scenes import Scene, Solid, describe, draw_scene, mesh, solid_mesh

TWO = [draw_scene(seed, 2) for seed in range(12)]


def balls(*centres: tuple[float, float, float], radius: float = 0.1) -> trimesh.Trimesh:
    return trimesh.util.concatenate([trimesh.creation.icosphere(2, radius).apply_translation(c) for c in centres])


def said(*centres: tuple[int, int, int], relations: list[tuple[str, str, str]] = ()) -> dict:
    """A description of objects at integer centres with (subject, predicate, object) relations."""
    return {
        "objects": [{"id": f"o{i}", "position": dict(zip("xyz", c, strict=True))} for i, c in enumerate(centres)],
        "relations": [dict(zip(("subject", "predicate", "object"), r, strict=True)) for r in relations],
    }


@pytest.mark.parametrize("scene", TWO, ids=lambda s: str(s.seed))
def test_every_described_relation_holds_in_the_scene_itself(scene):
    found = agreement(describe(scene), mesh(scene))
    assert found.scores["relations_held"] == 1
    assert found.scores["objects_found"] == 1
    assert found.scores["position_error"] < 0.02
    assert (found.broken, found.unchecked) == ([], [])
    assert found.scores.keys() <= METRICS.keys()


def test_the_mirrored_scene_breaks_left_and_right_and_keeps_front_and_behind():
    scene = Scene(
        (Solid("box", "red", "large", 0.4, 0.3, -0.45, 0.3), Solid("cone", "blue", "small", 0.3, 0, 0.45, -0.3)), 0
    )
    mirrored = mesh(scene)
    mirrored.vertices[:, 0] *= -1
    relations = describe(scene)["relations"]
    by_position = agreement(describe(scene), mirrored)
    assert by_position.scores["relations_held"] in (0.5, 1)  # who is who is only known from the positions
    parts = {"o0": solid_mesh(scene.solids[0]), "o1": solid_mesh(scene.solids[1])}
    for part in parts.values():
        part.vertices[:, 0] *= -1
    found = agreement(describe(scene), parts)
    assert found.scores["relations_held"] == 0.5
    assert found.broken == [r for r in relations if r["predicate"] == "left_of"]


@pytest.mark.parametrize(
    ("predicate", "first", "second"),
    [
        ("left_of", (-50, 0, 0), (50, 0, 0)),
        ("right_of", (50, 0, 0), (-50, 0, 0)),
        ("above", (0, 50, 0), (0, -50, 0)),
        ("below", (0, -50, 0), (0, 50, 0)),
        ("in_front_of", (0, 0, 50), (0, 0, -50)),
        ("behind", (0, 0, -50), (0, 0, 50)),
    ],
)
def test_each_predicate_has_its_axis_and_its_direction(predicate, first, second):
    surface = balls(*[tuple(v / 100 for v in c) for c in (first, second)])
    holds = said(first, second, relations=[("o0", predicate, "o1")])
    fails = said(first, second, relations=[("o1", predicate, "o0")])
    assert agreement(holds, surface).scores["relations_held"] == 1
    assert agreement(fails, surface).scores["relations_held"] == 0
    assert agreement(fails, surface).broken == fails["relations"]


def test_an_object_without_a_surface_breaks_its_relations_and_crumbs_are_no_objects():
    description = said((-50, 0, 0), (50, 0, 0), relations=[("o0", "left_of", "o1")])
    for surface in (
        balls((-0.5, 0, 0)),
        trimesh.util.concatenate([balls((-0.5, 0, 0)), balls((0.5, 0, 0), radius=0.005)]),
    ):
        found = agreement(description, surface)
        assert found.scores == {"relations_held": 0, "objects_found": 0.5, "position_error": pytest.approx(0, abs=1e-3)}
        assert found.broken == description["relations"]


def test_parts_go_to_the_described_objects_and_a_torn_object_keeps_all_of_its_parts():
    description = said((-50, 0, 0), (50, 0, 0))
    parts = parts_by_object(description, balls((0.45, 0.2, 0), (-0.4, 0, 0), (0.45, -0.2, 0)))
    assert parts["o0"].centroid == pytest.approx([-0.4, 0, 0], abs=1e-6)
    assert parts["o1"].centroid == pytest.approx([0.45, 0, 0], abs=1e-6)
    assert parts["o1"].extents[1] == pytest.approx(0.6, abs=0.01)
    near_both = parts_by_object(said((-50, 0, 0), (-40, 0, 0)), balls((-0.45, 0, 0), (0.5, 0, 0)))
    assert {name: part.centroid[0] > 0 for name, part in near_both.items()} == {"o0": False, "o1": True}


def test_what_centres_cannot_decide_is_left_out_and_nothing_to_check_is_no_figure():
    description = said((0, 50, 0), (0, -50, 0), relations=[("o0", "on", "o1"), ("o0", "above", "o1")])
    found = agreement(description, balls((0, 0.5, 0), (0, -0.5, 0)))
    assert found.scores["relations_held"] == 1
    assert [r["predicate"] for r in found.unchecked] == ["on"]
    assert agreement(said((0, 0, 0)), balls((0, 0, 0))).scores["relations_held"] is None
    assert agreement(said((0, 0, 0)), {}).scores == {"relations_held": None, "objects_found": 0, "position_error": None}


def test_the_description_stays_as_it_is():
    description = describe(TWO[0])
    before = copy.deepcopy(description)
    agreement(description, mesh(TWO[1]))
    assert description == before
