import numpy as np
import pytest

from ttd.metrics.geometry import cd_l1_mean, cd_l2sq_sum, fscore, score_surfaces


def sphere(radius: float, n: int = 4000, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng(seed).normal(size=(n, 3))
    return radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def lattice() -> np.ndarray:
    """10 x 10 x 10 points with spacing 1: moved by less than 0.5, every point's nearest neighbour is its own image."""
    return np.stack(np.meshgrid(*[np.arange(10.0)] * 3), axis=-1).reshape(-1, 3)


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
