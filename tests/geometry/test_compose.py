"""Objects of a description, one by one."""

import numpy as np
import pytest

from ttd.geometry.camera import Camera
from ttd.geometry.compose import alone, box_of, brought_to, composed, cut, joined, region_of, requests_of, within
from ttd.geometry.lifter import LiftResult, Surface

CAMERA = Camera(eye=(0.0, 0.0, 4.0), target=(0.0, 0.0, 0.0), half_fov=float(np.arctan(0.25)))  # sees [-1, 1]² at z = 0


def thing(x: int, *, extent: int = 40, name: str = "o0") -> dict:
    return {"id": name, "position": {"x": x, "y": 0, "z": 0}, "extent": {"x": extent, "y": extent, "z": extent}}


def cube(centre=(0.0, 0.0, 0.0), side: float = 2.0, colour: int = 9) -> Surface:
    import trimesh

    box = trimesh.creation.box(extents=[side] * 3)
    vertices = (np.asarray(box.vertices) + centre).astype(np.float32)
    return Surface(vertices, np.asarray(box.faces, np.int32), np.full((8, 3), colour, np.uint8))


def test_a_box_is_where_the_description_says_in_scene_units():
    assert np.allclose(box_of(thing(50)), [[0.3, -0.2, -0.2], [0.7, 0.2, 0.2]])


def test_the_others_are_painted_over_from_what_stands_beside_them_and_the_own_object_stays():
    image = np.full((80, 80, 3), 50, np.uint8)
    image[32:48, 52:68] = 200  # the right object, at x = 0.5
    image[32:48, 12:28] = 100  # the left one
    objects = [thing(50), thing(-50, name="o1")]
    right = alone(image, objects, 0, CAMERA)
    assert (right[32:48, 52:68] == 200).all()
    assert (right[:, :40] == 50).all(), "the other one is gone"
    assert region_of(objects[0], CAMERA, (80, 80))[40, 60]
    assert not region_of(objects[0], CAMERA, (80, 80))[40, 20]
    assert (image[32:48, 12:28] == 100).all(), "the picture itself stays"


def test_a_cut_is_square_holds_the_object_and_never_leaves_the_picture():
    image = np.arange(80 * 80 * 3, dtype=np.uint8).reshape(80, 80, 3)
    for x in (-90, 0, 50, 90):
        own = cut(image, thing(x), CAMERA)
        assert own.shape[0] == own.shape[1] < 80
    assert np.array_equal(cut(image, thing(1000), CAMERA), image), "a box outside leaves the picture whole"


def test_a_single_object_is_scaled_evenly_into_its_box():
    placed = brought_to(cube(centre=(5, 5, 5), side=2), thing(50))
    assert np.allclose([placed.vertices.min(0), placed.vertices.max(0)], box_of(thing(50)), atol=1e-6)


def test_of_a_scene_only_what_lies_around_the_box_is_kept():
    scene = joined([cube((0.5, 0, 0), 0.4, colour=1), cube((-0.5, 0, 0), 0.4, colour=2)])
    kept = within(scene, thing(50))
    assert set(kept.colours.flatten()) == {1}
    assert len(kept.faces) == 12
    assert np.allclose(kept.vertices[kept.faces].mean((0, 1)), [0.5, 0, 0], atol=1e-6)
    assert within(scene, thing(0, extent=10)) is None


def test_a_scene_of_several_objects_is_their_union_and_says_which_is_missing():
    description = {"objects": [thing(50), thing(-50, name="o1")]}
    results = [LiftResult("k/o0", "ok", surface=cube()), LiftResult("k/o1", "empty", "no surface")]
    scene = composed("k", results, description, whole_scene=False)
    assert (scene.status, len(scene.surface.faces)) == ("ok", 12)
    assert scene.reason == "o1: no surface"
    nothing = composed("k", [results[1], results[1]], description, whole_scene=False)
    assert nothing.status == "empty"
    assert "o0: no surface" in nothing.reason


def test_results_are_brought_into_the_common_frame_first():
    turned = np.diag([1.0, 1.0, -1.0, 1.0])
    turned[:3, 3] = [0.5, 0, 0]
    result = LiftResult("k/o0", "ok", surface=cube(side=0.4), to_frame=turned)
    scene = composed("k", [result], {"objects": [thing(50)]}, whole_scene=True)
    assert scene.surface.vertices[:, 0].mean() == pytest.approx(0.5)


def test_every_object_gets_a_picture_of_its_own():
    image = np.zeros((64, 64, 3), np.uint8)
    requests = requests_of(
        "k", image, {"objects": [thing(50), thing(-50, name="o1")]}, CAMERA, whole_scene=True, seed=3
    )
    assert [r.key for r in requests] == ["k/o0", "k/o1"]
    assert {r.seed for r in requests} == {3}
