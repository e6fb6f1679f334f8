import numpy as np
import pytest
import trimesh
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from ttd.metrics.surface_alignment import align, mind3d_turn, mind3d_unit, move_normals, move_points


def teapot(n: int = 3000, seed: int = 0) -> np.ndarray:
    """Points of a body that no turn carries onto itself: a flat box with an arm and a knob."""
    body = trimesh.creation.box((0.8, 0.3, 0.5))
    arm = trimesh.creation.box((0.5, 0.12, 0.12)).apply_translation([0.6, 0.1, 0.1])
    knob = trimesh.creation.icosphere(3, 0.15).apply_translation([-0.2, 0.3, -0.1])
    points, _ = trimesh.sample.sample_surface(trimesh.util.concatenate([body, arm, knob]), n, seed=seed)
    return np.asarray(points)


def similarity(degrees: float, scale: float, shift: list[float], tilt: float = 0.0) -> np.ndarray:
    move = np.eye(4)
    move[:3, :3] = scale * Rotation.from_euler("yx", [degrees, tilt], degrees=True).as_matrix()
    move[:3, 3] = shift
    return move


def chamfer(a: np.ndarray, b: np.ndarray) -> float:
    return float(KDTree(b).query(a)[0].mean() + KDTree(a).query(b)[0].mean()) / 2


@pytest.mark.parametrize("degrees", [0, 5, 44, 95, 180, 271])
def test_the_move_that_was_made_is_found_and_undone(degrees):
    true = teapot()
    made = similarity(degrees, 0.7, [0.4, -0.3, 0.2], tilt=4)
    found = align(move_points(true, made), true)
    np.testing.assert_allclose(found @ made, np.eye(4), atol=1e-6)


def test_another_sample_of_the_moved_surface_is_set_back_to_within_the_noise_of_sampling():
    true, other = teapot(), teapot(seed=1)
    back = align(move_points(other, similarity(130, 1.5, [0.5, 0, -0.5])), true)
    again = move_points(move_points(other, similarity(130, 1.5, [0.5, 0, -0.5])), back)
    assert chamfer(again, true) == pytest.approx(chamfer(other, true), rel=0.1)


def test_what_is_in_place_stays_there():
    true = teapot()
    np.testing.assert_allclose(align(true, true), np.eye(4), atol=1e-9)


def test_alignment_never_makes_it_worse():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a = rng.normal(size=(1000, 3)) * rng.uniform(0.1, 0.5, 3) + rng.uniform(-0.3, 0.3, 3)
        b = rng.normal(size=(1000, 3)) * rng.uniform(0.1, 0.5, 3)
        assert chamfer(move_points(a, align(a, b)), b) <= chamfer(a, b)


def test_a_mirror_image_is_not_mirrored_back():
    true = teapot()
    move = align(true * [-1, 1, 1], true)
    assert np.linalg.det(move[:3, :3]) > 0
    assert chamfer(move_points(true * [-1, 1, 1], move), true) > 0.01


def test_normals_turn_with_the_surface_and_keep_their_length():
    normals = move_normals(np.eye(3), similarity(90, 3.0, [1, 2, 3]))
    np.testing.assert_allclose(normals, [[0, 0, -1], [0, 1, 0], [1, 0, 0]], atol=1e-12)


def test_a_cloud_in_one_place_cannot_be_aligned():
    with pytest.raises(ValueError, match="predicted must be at least 3 points that are not all the same"):
        align(np.zeros((10, 3)), teapot())
    with pytest.raises(ValueError, match="true must be at least 3 points"):
        align(teapot(), teapot(2))


def test_mind3ds_matrix_has_the_principal_axes_as_columns_largest_variance_first():
    axes = Rotation.from_euler("xyz", [20, 40, 60], degrees=True).as_matrix()
    vertices = np.random.default_rng(0).normal(size=(20_000, 3)) * [0.3, 0.1, 0.9] @ axes.T
    turn = mind3d_turn(vertices)
    np.testing.assert_allclose(np.abs(turn.T @ axes), np.eye(3)[[2, 0, 1]], atol=0.02)
    assert (turn[np.abs(turn).argmax(0), np.arange(3)] > 0).all()
    np.testing.assert_array_equal(mind3d_turn(vertices), turn)


def test_mind3ds_unit_cloud_is_centred_and_reaches_one_half():
    cloud = mind3d_unit(teapot() * 7 + 3)
    np.testing.assert_allclose(cloud.mean(0), 0, atol=1e-12)
    assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(0.5)
