import numpy as np
import pytest

from ttd.geometry.background import isolate, nearer_part, object_mask, plain_background
from ttd.geometry.lifter import LiftRequest
from ttd.simulation import render
from ttd.simulation.scenes import draw_scene

OBJECT = np.zeros((80, 120), bool)
OBJECT[20:60, 70:90] = True  # 40 high, 20 wide, right of the middle
BUSY = np.random.default_rng(0).integers(0, 256, (80, 120, 3)).astype(np.uint8)


def picture(ground=200) -> np.ndarray:
    image = np.full((80, 120, 3), ground, np.uint8)
    image[OBJECT] = (200, 30, 30)
    return image


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_transparency_comes_before_a_mask_and_a_mask_before_the_plain_ground():
    other = np.zeros_like(OBJECT)
    other[10:30, 10:30] = True
    rgba = np.dstack([picture(), np.where(OBJECT, 255, 0).astype(np.uint8)])
    mask, method = object_mask(LiftRequest("a", rgba, mask=other))
    assert method == "alpha"
    np.testing.assert_array_equal(mask, OBJECT)
    mask, method = object_mask(LiftRequest("a", picture(), mask=other))
    assert method == "mask"
    np.testing.assert_array_equal(mask, other)
    mask, method = object_mask(LiftRequest("a", picture()))
    assert method == "plain"
    assert overlap(mask, OBJECT) > 0.95


def test_alpha_that_hides_nothing_is_no_cut_out():
    opaque = np.dstack([picture(), np.full(OBJECT.shape, 255, np.uint8)])
    assert object_mask(LiftRequest("a", opaque))[1] == "plain"


def test_on_a_busy_ground_the_depth_decides_and_without_it_the_whole_picture_is_kept():
    depth = np.where(OBJECT, 1.0, 3.0).astype(np.float32)
    mask, method = object_mask(LiftRequest("a", BUSY, depth=depth))
    assert method == "depth"
    assert overlap(mask, OBJECT) > 0.95
    whole = isolate(LiftRequest("a", BUSY), size=60)
    assert whole.method == "none"
    assert (whole.rgba[10:50, :, 3] == 255).all()  # 120 x 80 becomes 60 x 40, in the middle
    assert (whole.rgba[:10, :, 3] == 0).all()


def test_a_flat_wall_has_no_nearer_part():
    assert nearer_part(np.full((40, 40), 2.0, np.float32)) is None
    assert nearer_part(np.full((40, 40), np.inf, np.float32)) is None


def test_nothing_on_the_ground_is_no_object():
    assert plain_background(np.full((64, 64, 3), 90, np.uint8)) is None


@pytest.mark.parametrize("look", ["base", "study"])
def test_the_solids_of_simulated_pictures_are_found_on_their_shaded_tables(look):
    pictures = render.render([draw_scene(seed) for seed in range(100, 120)], look, size=128)
    found, true = [plain_background(image) for image in pictures.image], pictures.mask >= 0
    assert all(mask is not None for mask in found)
    assert np.mean([(a & b).sum() / b.sum() for a, b in zip(found, true, strict=True)]) > 0.95
    assert np.mean([overlap(a, b) for a, b in zip(found, true, strict=True)]) > 0.78  # what is too much is dark shadow


def test_the_object_stands_in_the_middle_and_fills_85_percent_of_the_frame():
    cut = isolate(LiftRequest("a", picture()), size=200)
    rows, columns = (np.nonzero((cut.rgba[..., 3] > 127).any(axis))[0] for axis in (1, 0))
    assert len(rows) == pytest.approx(170, abs=6)
    assert len(columns) == pytest.approx(85, abs=6)
    assert rows.mean() == pytest.approx(99.5, abs=2)
    assert columns.mean() == pytest.approx(99.5, abs=2)
    on_white, on_black = cut.on(255), cut.on(0)
    np.testing.assert_array_equal(on_white[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(on_black[0, 0], [0, 0, 0])
    np.testing.assert_allclose(on_white[100, 100], [200, 30, 30], atol=2)
