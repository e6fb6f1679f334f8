"""Pixel metrics against closed forms and against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from ttd.metrics.pixel import mse, pixcorr, resize, ssim


def pictures(n: int, seed: int = 0, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).random((n, size, size, 3)).astype(np.float32)


def test_a_perfect_reconstruction_scores_zero_error_and_full_correlation():
    x = pictures(3)
    assert mse(x, x) == pytest.approx(0)
    assert pixcorr(x, x) == pytest.approx(1)
    assert ssim(x, x) == pytest.approx(1)


def test_mse_of_a_constant_offset_is_its_square():
    x = 0.5 * pictures(2)
    assert mse(x + 0.25, x) == pytest.approx(0.0625, rel=1e-5)


def test_pixcorr_ignores_contrast_and_changes_sign_with_the_negative():
    x = pictures(2)
    assert pixcorr(0.3 + 0.5 * x, x) == pytest.approx(1, abs=1e-6)
    assert pixcorr(1 - x, x) == pytest.approx(-1, abs=1e-6)


def test_pixcorr_equals_corrcoef_of_the_flattened_picture():
    x, y = pictures(4), pictures(4, seed=1)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y, strict=True)]
    assert pixcorr(x, y) == pytest.approx(expected, abs=1e-6)


def test_a_picture_of_one_colour_correlates_with_nothing():
    assert pixcorr(np.full((1, 8, 8, 3), 0.5), pictures(1, size=8)) == pytest.approx(0)


def test_ssim_is_the_two_dimensional_one_of_scikit_image():
    x, y = pictures(2), np.clip(pictures(2) + 0.2 * pictures(2, seed=1), 0, 1)
    weights = np.array([0.2125, 0.7154, 0.0721])  # luminance of rgb2gray
    expected = [
        structural_similarity(
            a @ weights, b @ weights, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        for a, b in zip(x.astype(float), y.astype(float), strict=True)
    ]
    assert ssim(x, y) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_two_flat_pictures_is_the_luminance_term_alone():
    a, b = np.full((1, 16, 16, 3), 0.2), np.full((1, 16, 16, 3), 0.6)
    expected = (2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_unrelated_noise_sits_near_zero_correlation():
    assert abs(pixcorr(pictures(50), pictures(50, seed=1)).mean()) < 0.01


def test_resizing_keeps_a_flat_picture_flat_and_the_same_size_untouched():
    flat = np.full((2, 20, 20, 3), 0.3, np.float32)
    assert resize(flat, 31).shape == (2, 31, 31, 3)
    assert resize(flat, 31) == pytest.approx(0.3)
    assert resize(flat, 20) is flat


def test_wrong_shapes_and_ranges_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        mse(pictures(2), pictures(3))
    with pytest.raises(ValueError, match=r"\[N, H, W, 3\]"):
        mse(np.zeros((2, 3, 8, 9)), np.zeros((2, 3, 8, 9)))
    with pytest.raises(ValueError, match=r"shown pictures must lie in \[0, 1\]"):
        ssim(pictures(1), 255 * pictures(1))
    with pytest.raises(ValueError, match="reconstructed"):
        mse(np.full((1, 8, 8, 3), np.nan), pictures(1, size=8))
