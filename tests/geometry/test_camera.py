import math

import numpy as np
import pytest
import torch

from ttd.geometry.camera import Camera
from ttd.simulation import render

CAMERA = Camera(eye=render.EYE, target=render.TARGET, half_fov=render.HALF_FOV)


def test_it_is_the_camera_of_the_simulated_pictures():
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(CAMERA.project(points), render.project(points), atol=1e-5)
    np.testing.assert_allclose(CAMERA.rays(16), render.rays(16).numpy(), atol=1e-6)


def test_right_is_right_up_is_up_and_the_target_is_in_the_middle():
    target, right, above = (np.array(p) for p in (render.TARGET, [0.5, -0.16, 0.0], [0.0, 0.5, 0.0]))
    assert CAMERA.project(target) == pytest.approx([0, 0], abs=1e-12)
    assert CAMERA.project(right)[0] > 0
    assert CAMERA.project(above)[1] < 0  # picture coordinates run downwards


def test_a_point_on_a_pixels_ray_is_seen_in_that_pixel():
    size = 8
    points = np.array(CAMERA.eye) + 3.0 * CAMERA.rays(size)
    u = (np.arange(size) + 0.5) / size * 2 - 1
    np.testing.assert_allclose(CAMERA.project(points), np.stack(np.meshgrid(u, u), -1).reshape(-1, 2), atol=1e-9)


def test_a_quarter_turn_carries_the_camera_to_the_right_side():
    eye = Camera(eye=(0, 1, 4), target=(0, 0, 0), half_fov=0.3).turned(math.pi / 2).eye
    assert eye == pytest.approx((4, 1, 0))
