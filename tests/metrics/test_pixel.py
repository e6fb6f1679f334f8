"""Pixel metrics against closed forms, scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from skimage.metrics import structural_similarity
from torch.nn.functional import interpolate
from torchmetrics.functional.image import structural_similarity_index_measure

from ttd.metrics.pixel import mse, pixcorr, resize, ssim, ssim_columns_as_channels, ssim_rgb_uniform


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


def grating_and_noise() -> tuple[np.ndarray, np.ndarray]:
    """A grating, and the same with faint noise and faint vertical stripes: the definitions of SSIM part there."""
    rng = np.random.default_rng(0)
    noise, stripes = rng.standard_normal((64, 64)), rng.standard_normal((1, 64))
    shown = np.broadcast_to(0.5 + 0.3 * np.sin(2 * np.pi * 4 * np.arange(64) / 64)[:, None], (64, 64))
    seen = np.clip(shown + 0.037 * noise + 0.025 * stripes, 0, 1)
    return np.repeat(seen[None, ..., None], 3, -1), np.repeat(shown[None, ..., None], 3, -1)


def local_ssim(a: np.ndarray, b: np.ndarray, mean, unbiased: float = 1.0) -> np.ndarray:
    """Wang et al., 2004, equation 13, written out with local means by ``mean``."""
    ma, mb = mean(a), mean(b)
    va, vb, cov = (unbiased * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b)))
    c1, c2 = 0.01**2, 0.03**2
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


def test_the_three_definitions_of_ssim_differ_on_one_pair_as_published_scripts_do():
    pair = grating_and_noise()
    assert ssim(*pair)[0] == pytest.approx(0.923, abs=0.001)
    assert ssim_columns_as_channels(*pair)[0] == pytest.approx(0.948, abs=0.001)
    assert ssim_rgb_uniform(*pair)[0] == pytest.approx(0.940, abs=0.001)


def test_plain_ssim_is_the_formula_with_gaussian_windows_of_two_dimensions():
    seen, shown = (x[0, :, :, 0] for x in grating_and_noise())
    values = local_ssim(seen, shown, lambda x: gaussian_filter(x, 1.5, truncate=3.5))
    assert ssim(*grating_and_noise())[0] == pytest.approx(values[5:-5, 5:-5].mean(), abs=1e-9)


def test_plain_ssim_agrees_with_torchmetrics():
    seen, shown = (torch.from_numpy(x[..., :1].transpose(0, 3, 1, 2).copy()) for x in grating_and_noise())
    _, full = structural_similarity_index_measure(seen, shown, sigma=1.5, data_range=1.0, return_full_image=True)
    inside = float(full[..., 5:-5, 5:-5].mean())  # its own mean counts the mirrored border, scikit-image's does not
    assert ssim(*grating_and_noise())[0] == pytest.approx(inside, abs=1e-6)


def test_columns_as_channels_is_the_formula_with_windows_along_the_height_alone():
    seen, shown = (x[0, :, :, 0] for x in grating_and_noise())
    values = local_ssim(seen, shown, lambda x: gaussian_filter1d(x, 1.5, axis=0, truncate=3.5))
    assert ssim_columns_as_channels(*grating_and_noise())[0] == pytest.approx(values[5:-5].mean(), abs=1e-9)


def test_the_rgb_variant_is_dreamdiffusions_call_on_bytes_and_the_formula_with_square_windows():
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 256, (2, 24, 24, 3))
    seen = np.clip(shown + rng.integers(-60, 61, shown.shape), 0, 255)
    expected = [
        structural_similarity(a, b, data_range=255, channel_axis=-1)
        for a, b in zip(seen.astype(np.uint8), shown.astype(np.uint8), strict=True)
    ]
    found = ssim_rgb_uniform(seen / 255, shown / 255)
    assert found == pytest.approx(expected, abs=1e-6)

    def mean(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, (7, 7), axis=(0, 1)).mean((-1, -2))

    assert found[0] == pytest.approx(local_ssim(seen[0] / 255, shown[0] / 255, mean, 49 / 48).mean(), abs=1e-9)


def test_the_variants_of_ssim_are_one_for_equal_pictures():
    x = pictures(2)
    assert ssim_columns_as_channels(x, x) == pytest.approx(1)
    assert ssim_rgb_uniform(x, x) == pytest.approx(1)


def test_unrelated_noise_has_no_structure_in_common_by_any_definition():
    for variant in (ssim, ssim_columns_as_channels, ssim_rgb_uniform):
        assert abs(variant(pictures(10), pictures(10, seed=1)).mean()) < 0.05


def test_pictures_can_be_resized_bicubically():
    x = pictures(1, size=16)
    planes = torch.from_numpy(x).permute(0, 3, 1, 2)
    expected = interpolate(planes, size=(24, 24), mode="bicubic", antialias=True).clamp(0, 1).permute(0, 2, 3, 1)
    assert resize(x, 24, mode="bicubic") == pytest.approx(expected.numpy())
