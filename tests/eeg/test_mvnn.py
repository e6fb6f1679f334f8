"""Multivariate noise normalisation against scikit-learn's and SciPy's own."""

import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power
from sklearn.discriminant_analysis import _cov

from ttd.eeg import mvnn


def epochs(n: int, n_times: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = 0.2 * rng.standard_normal((8, 8)) + np.eye(8)
    return np.einsum("cd,ndt->nct", mixing, rng.standard_normal((n, 8, n_times))) * np.arange(1, 9)[:, None]


def test_the_covariance_is_scikit_learns_private_one():
    for eeg in epochs(3):
        np.testing.assert_allclose(mvnn.covariance(eeg), _cov(eeg.T, shrinkage="auto"), rtol=1e-10)


def test_the_whitener_averages_over_repetitions_before_pictures():
    """A picture shown nine times counts as much as one shown once."""
    eeg = epochs(10)
    matrix = mvnn.whitener([("often", e) for e in eeg[:9]] + [("once", eeg[9])])
    often = np.mean([_cov(e.T, shrinkage="auto") for e in eeg[:9]], axis=0)
    sigma = (often + _cov(eeg[9].T, shrinkage="auto")) / 2
    np.testing.assert_allclose(matrix, fractional_matrix_power(sigma, -0.5), rtol=1e-8, atol=1e-12)


def test_whitened_noise_is_white_and_the_unit_does_not_matter():
    eeg = epochs(4, 20_000)  # so many that nothing is shrunk
    matrix = mvnn.whitener(enumerate(eeg))
    white = np.concatenate(list(matrix @ eeg), axis=1)
    np.testing.assert_allclose(np.cov(white), np.eye(8), atol=0.1)
    np.testing.assert_allclose(mvnn.whitener(enumerate(eeg * 1e-6)) * 1e-6, matrix, rtol=1e-6)


def test_nothing_to_estimate_from_is_refused():
    with pytest.raises(ValueError, match="no epoch"):
        mvnn.whitener([])
    with pytest.raises(ValueError, match="a channel does not vary"):
        mvnn.whitener([(0, np.zeros((3, 100)))])
