"""FID and KID against closed forms and torchmetrics, and what few pictures do to them."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from ttd.metrics.distribution import fid, frechet_distance, kid, squared_mmd


class Flat(torch.nn.Module):
    """A feature network that hands its input through, so that torchmetrics sees our features."""

    def __init__(self, n_features: int):
        super().__init__()
        self.num_features = n_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def features(n: int, seed: int, width: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) @ np.random.default_rng(9).standard_normal((width, width)) / 3 + 0.1 * seed


def as_images(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).reshape(len(x), 3, 2, -1)


def test_the_distance_of_two_gaussians_is_the_closed_form_for_covariances_that_commute():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.0])
    mean, other = np.zeros(3), np.array([1.0, 2.0, 2.0])
    expected = 9 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    found = frechet_distance(mean, turn @ np.diag(a) @ turn.T, other, turn @ np.diag(b) @ turn.T)
    assert found == pytest.approx(expected)


def test_the_distance_in_one_dimension_is_that_of_means_and_deviations():
    assert frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]])) == pytest.approx(5)


def test_fid_equals_torchmetrics():
    a, b = features(300, 0), features(200, 1)
    peer = FrechetInceptionDistance(feature=Flat(12), input_img_size=(3, 2, 2), normalize=True)
    peer.set_dtype(torch.float64)
    peer.update(as_images(a), real=True)
    peer.update(as_images(b), real=False)
    assert fid(a, b) == pytest.approx(float(peer.compute()), rel=1e-4)


def test_fid_of_a_set_with_itself_is_zero_also_with_fewer_pictures_than_features():
    assert fid(features(300, 0), features(300, 0)) == pytest.approx(0, abs=1e-8)
    assert fid(features(6, 0), features(6, 0)) == pytest.approx(0, abs=1e-5)


def test_fid_of_few_pictures_is_biased_upwards_and_kid_is_not():
    few = [(features(40, 0, 32), np.random.default_rng(i).permutation(features(4000, 0, 32))[:40]) for i in range(20)]
    many = fid(features(4000, 0, 32)[:2000], features(4000, 0, 32)[2000:])
    assert np.mean([fid(a, b) for a, b in few]) > 10 * many
    halves = [np.random.default_rng(i).permutation(features(800, 0, 32)) for i in range(20)]
    values = [squared_mmd(x[:400], x[400:]) for x in halves]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(20)
    assert min(values) < 0


def test_the_discrepancy_of_one_subset_equals_torchmetrics():
    a, b = features(80, 0), features(80, 1)
    assert squared_mmd(a, b) == pytest.approx(float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b))), rel=1e-9)


def test_the_discrepancy_equals_the_double_sum_it_is_defined_by():
    a, b = features(9, 0, 4), features(7, 1, 4)

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    expected = (
        np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
        + np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
        - 2 * np.mean([kernel(x, y) for x in a for y in b])
    )
    assert squared_mmd(a, b) == pytest.approx(expected)


def test_kid_over_subsets_agrees_with_torchmetrics():
    a, b = features(300, 0), features(300, 1)
    peer = KernelInceptionDistance(feature=Flat(12), subsets=100, subset_size=100, normalize=True)
    peer.set_dtype(torch.float64)
    torch.manual_seed(0)
    peer.update(as_images(a), real=True)
    peer.update(as_images(b), real=False)
    expected_mean, expected_sd = (float(x) for x in peer.compute())
    mean, sd = kid(a, b, seed=0, subset_size=100)
    assert mean == pytest.approx(expected_mean, abs=4 * expected_sd / 10)  # its subsets are other ones
    assert sd == pytest.approx(expected_sd, rel=0.3)
    assert kid(a, b, seed=0, subset_size=100) == (mean, sd)


def test_kid_of_the_whole_sets_has_no_spread():
    mean, sd = kid(features(50, 0), features(50, 1), seed=0, n_subsets=3, subset_size=50)
    assert mean == pytest.approx(squared_mmd(features(50, 0), features(50, 1)))
    assert sd == pytest.approx(0, abs=1e-12)


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"must be \[N, F\] and \[M, F\] of at least 2 pictures, got"):
        fid(np.ones((1, 3)), np.ones((5, 3)))
    with pytest.raises(ValueError, match="not all finite"):
        squared_mmd(np.full((3, 3), np.nan), np.ones((3, 3)))
    with pytest.raises(ValueError, match="subset_size=1000 must be between 2 and the 200 pictures of a side"):
        kid(features(300, 0), features(200, 1), seed=0)
    with pytest.raises(ValueError, match="shapes do not fit"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
