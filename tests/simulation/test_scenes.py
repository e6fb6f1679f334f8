import numpy as np
import pytest
import trimesh

from ttd.simulation.scenes import KINDS, Scene, Solid, caption, describe, draw_scene, mesh, signed_distance


def alone(kind: str, **kw) -> Scene:
    return Scene((Solid(kind, "red", "large", **{"radius": 0.48, "yaw": 0.4, "x": 0.1, "z": 0.05, **kw}),), 0)


def test_a_seed_gives_the_same_scene_and_another_seed_another():
    assert draw_scene(3) == draw_scene(3)
    assert draw_scene(3) != draw_scene(4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_signed_distance_is_zero_on_the_mesh_and_its_gradient_has_length_one(kind):
    scene = alone(kind)
    surface, _ = trimesh.sample.sample_surface(mesh(scene), 2000, seed=0)
    assert np.abs(signed_distance(scene, surface)).max() < 4e-3  # the mesh is faceted
    p = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    h = 1e-5
    steps = [signed_distance(scene, p + h * e) - signed_distance(scene, p - h * e) for e in np.eye(3)]
    length = np.linalg.norm(np.stack(steps, -1) / (2 * h), axis=-1)
    assert np.median(length) == pytest.approx(1, abs=1e-6)
    assert (np.abs(length - 1) < 1e-3).mean() > 0.97  # all but the ridges


@pytest.mark.parametrize("kind", KINDS)
def test_the_mesh_is_closed_and_its_inside_is_where_the_distance_is_negative(kind):
    scene = alone(kind)
    body = mesh(scene)
    assert body.is_watertight
    assert body.volume > 0  # faces look outward
    p = np.random.default_rng(1).uniform(-0.6, 0.6, (40_000, 3))
    inside = (signed_distance(scene, p) < 0).mean() * 1.2**3
    assert inside == pytest.approx(body.volume, rel=0.08)


def test_scenes_stay_inside_the_unit_cube_and_solids_do_not_touch():
    for seed in range(200):
        scene = draw_scene(seed)
        assert np.abs(mesh(scene).bounds).max() <= 1.05
        if len(scene.solids) == 2:
            a, b = (mesh(Scene((s,), 0)) for s in scene.solids)
            assert signed_distance(Scene((scene.solids[0],), 0), b.vertices).min() > 0
            assert signed_distance(Scene((scene.solids[1],), 0), a.vertices).min() > 0


def test_place_words_leave_a_gap():
    xs = [abs(s.x) for seed in range(300) for s in draw_scene(seed).solids]
    assert not [x for x in xs if 0.2 <= x <= 0.4]


def test_the_caption_reads_from_left_to_right():
    scene = Scene(
        (Solid("cone", "red", "large", 0.4, 0, -0.45, 0), Solid("torus", "blue", "small", 0.3, 0, 0.45, 0)), 0
    )
    assert caption(scene) == "a large red cone left , a small blue torus right"


def test_the_description_agrees_with_the_geometry():
    for seed in range(30):
        scene = draw_scene(seed, 2)
        d = describe(scene)
        near, far = d["objects"]
        assert near["position"]["z"] >= far["position"]["z"]
        left = d["relations"][0]["predicate"] == "left_of"
        assert left == (near["position"]["x"] < far["position"]["x"])


def test_three_solids_are_refused():
    with pytest.raises(ValueError, match="1 or 2 solids, got n_solids=3"):
        draw_scene(0, 3)
