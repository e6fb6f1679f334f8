import numpy as np
import pytest
import trimesh

from ttd.geometry.camera import Camera
from ttd.geometry.meshes import sample_surface
from ttd.geometry.views import BACKGROUND, cloud_view, depth, silhouette
from ttd.simulation import render
from ttd.simulation.scenes import draw_scene, mesh

CAMERA = Camera(eye=render.EYE, target=render.TARGET, half_fov=render.HALF_FOV)
FRONT = Camera(eye=(0, 0, 4), target=(0, 0, 0), half_fov=np.arctan(0.25))  # sees [-1, 1]² at z = 0


@pytest.mark.parametrize("seed", range(4))
def test_depth_and_silhouette_are_those_of_the_sphere_traced_picture(seed):
    scene = draw_scene(seed)
    picture, body = render.render([scene], "base", size=64), mesh(scene)
    mask = picture.mask[0] >= 0
    covered, far = silhouette(body, CAMERA, 64), depth(body, CAMERA, 64)
    np.testing.assert_array_equal(covered, np.isfinite(far))
    assert (covered & mask).sum() / (covered | mask).sum() > 0.9  # its mask stands a quarter of a pixel aside
    both = covered & mask
    assert np.median(np.abs(far[both] - picture.depth[0][both])) < 0.01


def test_a_sphere_ahead_is_a_disc_of_known_size_and_distance():
    ball = trimesh.creation.icosphere(5, 0.5)
    far = depth(ball, FRONT, 129)
    assert far[64, 64] == pytest.approx(3.5, abs=1e-3)
    seen = 4 * np.tan(np.arcsin(0.5 / 4))  # radius of its outline at z = 0
    assert np.isfinite(far).mean() == pytest.approx(np.pi * seen**2 / 4, rel=0.02)


def test_an_object_out_of_sight_leaves_an_empty_silhouette():
    away = trimesh.creation.box((0.1, 0.1, 0.1)).apply_translation([5, 0, 0])
    assert not silhouette(away, FRONT, 16).any()
    assert np.isinf(depth(away, FRONT, 16)).all()


def test_the_nearest_point_covers_the_others_whatever_their_order():
    points = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, -0.5], [0.5, 0.5, 0.0], [0.0, 0.0, 9.0]])  # the last one is behind
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 2, 3]], np.uint8)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        image = cloud_view(points[order], colours[order], FRONT, 65, radius=0.05)
        assert image[32, 32].tolist() == [255, 0, 0]
        assert image[16, 48].tolist() == [0, 0, 255]  # +X right, +Y up
        assert {tuple(c) for c in image.reshape(-1, 3).tolist()} == {(255, 0, 0), (0, 0, 255), BACKGROUND}


def test_a_disc_has_the_size_of_its_radius_and_a_small_one_is_still_a_pixel():
    dot = np.zeros((1, 3))
    for radius in (0.1, 0.3):
        drawn = (cloud_view(dot, np.zeros((1, 3), np.uint8), FRONT, 200, radius=radius) == 0).all(-1)
        assert drawn.sum() == pytest.approx(np.pi * (100 * radius) ** 2, rel=0.05)
    assert (cloud_view(dot, np.zeros((1, 3), np.uint8), FRONT, 20, radius=1e-4) == 0).all(-1).sum() == 1


def test_a_dense_cloud_covers_the_silhouette_of_its_mesh():
    body = mesh(draw_scene(3))
    cloud = sample_surface(body, 8000, seed=0)
    image = cloud_view(cloud.points, np.zeros((8000, 3), np.uint8), CAMERA, 64, radius=0.02)
    drawn, covered = (image == 0).all(-1), silhouette(body, CAMERA, 64)
    assert (drawn & covered).sum() / (drawn | covered).sum() > 0.9
    assert (cloud_view(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), CAMERA, 8) == BACKGROUND).all()
