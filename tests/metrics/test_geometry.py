import itertools

import numpy as np
import pytest
import trimesh
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from ttd.metrics.geometry import (
    METRICS,
    SampledSurface,
    cd_l1_mean,
    cd_l2sq_sum,
    emd_l2_mean,
    fscore,
    lift_consistency,
    normal_consistency,
    score_item,
    score_surfaces,
)


def sphere(radius: float, n: int = 4000, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng(seed).normal(size=(n, 3))
    return radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def lattice() -> np.ndarray:
    """10 x 10 x 10 points with spacing 1: moved by less than 0.5, every point's nearest neighbour is its own image."""
    return np.stack(np.meshgrid(*[np.arange(10.0)] * 3), axis=-1).reshape(-1, 3)


def sampled(mesh: trimesh.Trimesh, n: int = 2500, seed: int = 0) -> SampledSurface:
    points, faces = trimesh.sample.sample_surface(mesh, n, seed=seed)
    return SampledSurface(mesh, np.asarray(points), mesh.face_normals[faces])


def moved(surface: SampledSurface, matrix: np.ndarray) -> SampledSurface:
    """The same surface, points and normals after a turn and a shift."""
    turn, shift = matrix[:3, :3], matrix[:3, 3]
    mesh = surface.mesh.copy().apply_transform(matrix)
    return SampledSurface(mesh, surface.points @ turn.T + shift, surface.normals @ turn.T)


def square(axis: int) -> SampledSurface:
    """A square with its normal along an axis."""
    points = np.random.default_rng(axis).uniform(-0.5, 0.5, (500, 3))
    points[:, axis] = 0
    return SampledSurface(trimesh.Trimesh(), points, np.tile(np.eye(3)[axis], (500, 1)))


def test_the_same_cloud_is_at_distance_zero_and_scores_one():
    cloud = sphere(0.5)
    assert cd_l1_mean(cloud, cloud) == 0
    assert cd_l2sq_sum(cloud, cloud) == 0
    assert fscore(cloud, cloud, 0.01) == 1


def test_a_translated_lattice_gives_the_closed_form_of_each_convention():
    moved = lattice() + np.array([0.3, 0.0, 0.0])
    assert cd_l1_mean(moved, lattice()) == pytest.approx(0.3)  # averaged over directions, not squared
    assert cd_l2sq_sum(moved, lattice()) == pytest.approx(2 * 0.09)  # squared, summed over directions
    assert fscore(moved, lattice(), 0.31) == 1
    assert fscore(moved, lattice(), 0.29) == 0


def test_two_concentric_spheres_are_as_far_apart_as_their_radii_differ():
    scores = score_surfaces(sphere(0.5, 20_000), sphere(0.7, 20_000, seed=1))
    assert scores["cd_l1_mean"] == pytest.approx(0.2, abs=0.005)
    assert scores["cd_l2sq_sum"] == pytest.approx(0.08, abs=0.004)
    assert scores["fscore@0.1"] == 0


def test_half_of_the_truth_found_exactly_scores_two_thirds():
    assert fscore(lattice()[:500], lattice(), 0.1) == pytest.approx(2 / 3)  # precision 1, recall 1/2


def test_the_three_functions_and_the_table_of_all_agree():
    predicted, true = sphere(0.5), sphere(0.52, seed=3)
    scores = score_surfaces(predicted, true)
    assert scores["cd_l1_mean"] == cd_l1_mean(predicted, true)
    assert scores["cd_l2sq_sum"] == cd_l2sq_sum(predicted, true)
    assert scores["fscore@0.05"] == fscore(predicted, true, 0.05)


def test_an_empty_surface_finds_nothing_and_has_no_distance():
    assert score_surfaces(None, sphere(0.5)) == {
        "cd_l1_mean": None,
        "cd_l2sq_sum": None,
        "fscore@0.02": 0.0,
        "fscore@0.05": 0.0,
        "fscore@0.1": 0.0,
    }


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.zeros((0, 3)), "predicted must be points"),
        (np.zeros((5, 2)), "predicted must be points"),
        (np.full((5, 3), np.nan), "predicted holds points that are not finite"),
    ],
)
def test_clouds_that_are_none_are_refused(predicted, message):
    with pytest.raises(ValueError, match=message):
        cd_l1_mean(predicted, sphere(0.5))
    with pytest.raises(ValueError, match="threshold must be positive, got 0"):
        fscore(sphere(0.5), sphere(0.5), 0)


def test_normals_agree_on_the_same_sphere_and_on_opposite_faces_and_not_at_all_on_planes_at_right_angles():
    ball = sampled(trimesh.creation.icosphere(4))
    inside_out = SampledSurface(ball.mesh, ball.points, -ball.normals)
    assert normal_consistency(ball, ball) == pytest.approx(1)
    assert normal_consistency(inside_out, ball) == pytest.approx(1)
    assert normal_consistency(ball, sampled(ball.mesh, seed=1)) > 0.99
    assert normal_consistency(square(0), square(1)) == 0
    assert normal_consistency(square(2), square(2)) == 1


def test_unrelated_normals_give_one_half():
    def random_normals(seed):
        return SampledSurface(trimesh.Trimesh(), sphere(0.5, seed=seed), sphere(1.0, seed=seed + 10))

    assert normal_consistency(random_normals(1), random_normals(2)) == pytest.approx(0.5, abs=0.02)


def test_the_earth_mover_carries_a_shifted_cloud_by_the_shift_whatever_the_order_of_its_points():
    cloud = sphere(0.5, 1024)
    shifted = np.random.default_rng(1).permutation(cloud) + np.array([0.3, 0.4, 0])
    assert emd_l2_mean(shifted, cloud) == pytest.approx(0.5)
    assert emd_l2_mean(cloud, cloud) == 0
    assert emd_l2_mean(3 * cloud + 40, cloud) == pytest.approx(np.linalg.norm(2 * cloud + 40, axis=1).mean(), rel=0.01)


def test_the_earth_movers_pairing_is_the_best_of_all():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    best = min(np.linalg.norm(a - b[list(p)], axis=1).mean() for p in itertools.permutations(range(6)))
    assert emd_l2_mean(a, b) == pytest.approx(best)
    with pytest.raises(ValueError, match="as many points in both clouds"):
        emd_l2_mean(a, b[:5])


def test_the_earth_movers_distance_is_never_below_chamfer_and_is_symmetric():
    a, b = sphere(0.5, 700), sphere(0.3, 700, seed=1) + np.array([0.9, 0, 0])
    assert emd_l2_mean(a, b) == pytest.approx(emd_l2_mean(b, a))
    assert emd_l2_mean(a, b) > cd_l1_mean(a, b)


def test_an_item_that_is_its_own_truth_is_perfect_raw_and_aligned():
    box = sampled(trimesh.creation.box((0.8, 0.5, 0.3)))
    scores = score_item(box, box)
    for frame in ("raw_", "aligned_"):
        assert scores[f"{frame}cd_l1_mean"] == 0
        assert scores[f"{frame}cd_l2sq_sum"] == 0
        assert scores[f"{frame}emd_l2_mean"] == 0
        assert scores[f"{frame}normal_consistency"] == pytest.approx(1)
        assert {scores[f"{frame}{name}"] for name in ("fscore@0.02", "fscore@0.05", "fscore@0.1", "iou")} == {1}
    assert (scores["empty"], scores["watertight"], scores["components"]) == (0, 1, 1)
    assert set(scores) <= set(METRICS)


def test_a_turned_item_is_wrong_raw_and_right_aligned():
    body = sampled(trimesh.creation.box((0.9, 0.5, 0.3)))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", 65, degrees=True).as_matrix()
    turn[:3, 3] = [0.2, -0.1, 0.3]
    wrong = moved(body, turn)
    scores = score_item(wrong, body)
    there, back = KDTree(body.points).query(wrong.points)[0], KDTree(wrong.points).query(body.points)[0]
    assert scores["raw_cd_l1_mean"] == pytest.approx((there.mean() + back.mean()) / 2)
    assert scores["raw_cd_l2sq_sum"] == pytest.approx((there**2).mean() + (back**2).mean())
    assert scores["raw_iou"] < 0.5
    assert scores["aligned_cd_l1_mean"] < 1e-3
    assert scores["aligned_fscore@0.02"] > 0.99
    assert scores["aligned_iou"] > 0.97
    assert scores["aligned_emd_l2_mean"] < 1e-3
    assert scores["aligned_normal_consistency"] > 0.99


def test_an_item_without_surface_has_no_distances_and_overlaps_nothing():
    scores = score_item(None, sampled(trimesh.creation.box()))
    full = score_item(sampled(trimesh.creation.box()), sampled(trimesh.creation.box()))
    assert set(scores) == set(full)
    assert {name for name, value in scores.items() if value == 0} == {
        f"{frame}_{name}"
        for frame in ("raw", "aligned")
        for name in ("iou", "fscore@0.02", "fscore@0.05", "fscore@0.1")
    }
    assert scores["empty"] == 1
    assert scores["raw_emd_l2_mean"] is scores["mind3d_cd_l2sq_sum"] is scores["watertight"] is None


def test_only_the_frames_asked_for_are_measured():
    ball = sampled(trimesh.creation.icosphere(2))
    assert not [name for name in score_item(ball, ball, frames=("raw_",)) if name.startswith(("aligned_", "mind3d_"))]
    with pytest.raises(ValueError, match=r"unknown frames \['turned_'\]; known: raw_, aligned_, mind3d_"):
        score_item(ball, ball, frames=("turned_",))


def test_consistency_is_the_score_against_the_same_lifters_surface_of_the_picture_shown():
    decoded, oracle = sphere(0.5), sphere(0.52, seed=3)
    scores = lift_consistency(decoded, oracle)
    assert scores == {f"consistency_{n}": v for n, v in score_surfaces(decoded, oracle).items()}
    assert set(scores) <= set(METRICS)
    assert lift_consistency(None, oracle)["consistency_fscore@0.05"] == 0
    assert set(lift_consistency(decoded, None).values()) == {None}
    assert lift_consistency(decoded, None).keys() == scores.keys()


def test_every_figure_says_its_title_unit_direction_and_source():
    for name, facts in METRICS.items():
        better = "higher" if "fscore" in name or "iou" in name else "lower" if "cd_" in name or "emd" in name else None
        assert facts.direction == (better or facts.direction), name
        assert all((facts.title, facts.unit, facts.source)), name
    assert METRICS["mind3d_emd_l2_mean"].direction == "lower"
    assert "without sign" in METRICS["mind3d_cd_l2sq_sum"].title
    assert "pseudo" in METRICS["consistency_cd_l1_mean"].title
    assert len({facts.title for facts in METRICS.values()}) == len(METRICS)
