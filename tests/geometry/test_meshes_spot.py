"""A real mesh with a texture through export, reload and every figure; clouds and bytes of what is written."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from bids_study import real_data  # noqa: F401
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from ttd.geometry.camera import Camera
from ttd.geometry.meshes import (
    cloud_from_ply,
    cloud_to_ply,
    from_glb,
    sample_points,
    sample_surface,
    to_glb,
    to_ply,
    vertex_colours,
)
from ttd.geometry.views import silhouette, view
from ttd.metrics.geometry import METRICS, SampledSurface, score_item
from ttd.metrics.volume import surface_facts
from ttd.simulation.scenes import draw_scene, mesh

CAMERA = Camera(eye=(0, 0, 6), target=(0, 0, 0), half_fov=0.3)


@pytest.fixture
def spot(real_data) -> trimesh.Trimesh:  # noqa: F811
    """Spot the cow (Keenan Crane, public domain), its extent set to 1.6 of the scene's 2."""
    body = trimesh.load_mesh(real_data("meshes") / "spot" / "spot_triangulated.obj", process=False)
    body.apply_translation(-body.bounds.mean(0))
    return body.apply_scale(1.6 / body.extents.max())


def turned(surface: SampledSurface, degrees: float) -> SampledSurface:
    turn = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    whole = np.eye(4)
    whole[:3, :3] = turn
    return SampledSurface(surface.mesh.copy().apply_transform(whole), surface.points @ turn.T, surface.normals @ turn.T)


def test_spot_comes_back_from_glb_with_its_surface_and_is_at_distance_zero_from_itself(spot):
    data = to_glb(spot, {"source": "Keenan Crane"})
    assert data == to_glb(spot, {"source": "Keenan Crane"})
    back = from_glb(data)
    assert back.faces.shape == spot.faces.shape
    assert back.area == pytest.approx(spot.area, rel=1e-5)
    assert surface_facts(spot) == surface_facts(back) == {"empty": 0.0, "watertight": 1.0, "components": 1.0}
    scores = score_item(sample_surface(back, 3000, seed=0), sample_surface(spot, 3000, seed=0))
    for frame in ("raw_", "aligned_"):
        assert scores[f"{frame}cd_l1_mean"] < 1e-6
        assert scores[f"{frame}emd_l2_mean"] < 1e-6
        assert scores[f"{frame}fscore@0.02"] == 1
        assert scores[f"{frame}iou"] > 0.9995
        assert scores[f"{frame}normal_consistency"] > 0.9999
    assert scores.keys() <= METRICS.keys()
    same = sample_surface(spot, 3000, seed=0)
    assert score_item(same, same, frames=("raw_",))["raw_cd_l2sq_sum"] == 0


def test_a_turned_spot_is_as_far_away_as_scipy_says_and_alignment_turns_it_back(spot):
    true = sample_surface(spot, 3000, seed=0)
    wrong = turned(true, 75)
    scores = score_item(wrong, true)
    there, at_true = KDTree(true.points).query(wrong.points)
    back, at_wrong = KDTree(wrong.points).query(true.points)
    assert scores["raw_cd_l1_mean"] == pytest.approx((there.mean() + back.mean()) / 2)
    assert scores["raw_cd_l2sq_sum"] == pytest.approx((there**2).mean() + (back**2).mean())
    precision, recall = (there < 0.05).mean(), (back < 0.05).mean()
    assert scores["raw_fscore@0.05"] == pytest.approx(2 * precision * recall / (precision + recall))
    cosines = [
        np.abs((wrong.normals * true.normals[at_true]).sum(1)).mean(),
        np.abs((true.normals * wrong.normals[at_wrong]).sum(1)).mean(),
    ]
    assert scores["raw_normal_consistency"] == pytest.approx(np.mean(cosines))
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (20_000, 3))
    inside = [
        m.merge_vertices(merge_tex=True, merge_norm=True) or m.contains(points)
        for m in (wrong.mesh.copy(), spot.copy())
    ]
    assert scores["raw_iou"] == pytest.approx((inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum(), abs=0.03)
    assert scores["aligned_cd_l1_mean"] < 1e-6
    assert scores["aligned_iou"] > 0.999


def test_mind3ds_figure_of_spot_is_that_of_the_published_steps_and_not_zero(spot):
    surface = sample_surface(spot, 2048, seed=0)
    centred = spot.vertices - spot.vertices.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred / (len(centred) - 1))
    figures = []
    for signs in np.ndindex(2, 2, 2):  # each axis may point either way
        turn = axes[:, ::-1] * (1 - 2 * np.array(signs))
        clouds = []
        for cloud in ((surface.points - spot.center_mass) @ turn.T, surface.points):
            cloud = cloud - cloud.mean(0)
            clouds.append(cloud / (2 * np.sqrt((cloud**2).sum(1)).max()))
        nearest = [KDTree(b).query(a)[0] for a, b in (clouds, clouds[::-1])]
        figures.append(sum((d**2).mean() for d in nearest))
    ours = score_item(surface, surface, frames=("mind3d_",))["mind3d_cd_l2sq_sum"]
    assert np.isclose(figures, ours).any()
    assert max(figures) > min(figures) + 1e-3  # what the unknown sign is worth
    assert ours > 0


def test_spot_has_a_picture_and_a_ply_in_colours(spot):
    image = view(spot, CAMERA, 64)
    assert silhouette(spot, CAMERA, 64).mean() > 0.05
    assert image.std() > 5
    assert vertex_colours(spot).shape == (len(spot.vertices), 3)
    points, colours = cloud_from_ply(to_ply(spot))
    np.testing.assert_allclose(points, spot.vertices, atol=1e-6)
    assert colours.shape == points.shape


def test_a_texture_gives_each_vertex_its_colour():
    from PIL import Image

    picture = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    body = trimesh.creation.box((1, 1, 1))
    body.visual = trimesh.visual.TextureVisuals(uv=np.where(body.vertices[:, :2] > 0, 1.0, 0.0), image=picture)
    expected = np.where(body.vertices[:, :1] > 0, [[0, 0, 255]], [[255, 0, 0]])
    np.testing.assert_array_equal(vertex_colours(body), expected)
    np.testing.assert_array_equal(vertex_colours(trimesh.creation.box()), np.full((8, 3), 102))


def test_clouds_and_meshes_come_back_from_ply_and_are_the_same_bytes_every_time():
    rng = np.random.default_rng(0)
    points, colours = rng.normal(size=(50, 3)), rng.integers(0, 256, (50, 3), np.uint8)
    data = cloud_to_ply(points, colours)
    assert data == cloud_to_ply(points, colours)
    back, painted = cloud_from_ply(data)
    np.testing.assert_allclose(back, points, atol=1e-6)
    np.testing.assert_array_equal(painted, colours)
    body = mesh(draw_scene(1, 2))
    assert to_ply(body) == to_ply(mesh(draw_scene(1, 2)))
    assert b"property float nx" in to_ply(body)[:600]
    vertices, painted = cloud_from_ply(to_ply(body))
    np.testing.assert_allclose(vertices, body.vertices, atol=1e-6)
    np.testing.assert_array_equal(painted, vertex_colours(body))
    with pytest.raises(ValueError, match="not a readable PLY"):
        cloud_from_ply(b"ply\nnonsense")


def test_two_processes_write_the_same_bytes():
    code = (
        "import hashlib; from ttd.geometry.meshes import *; from ttd.simulation.scenes import draw_scene, mesh;"
        "m = mesh(draw_scene(1, 2)); p = sample_points(m, 100, seed=1);"
        "files = to_glb(m, {'a': 1, 'b': [2]}), to_ply(m), cloud_to_ply(p, (p * 0).astype('uint8'));"
        "print(*[hashlib.sha256(f).hexdigest() for f in files])"
    )
    body = mesh(draw_scene(1, 2))
    points = sample_points(body, 100, seed=1)
    files = to_glb(body, {"a": 1, "b": [2]}), to_ply(body), cloud_to_ply(points, (points * 0).astype(np.uint8))
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True)
    assert run.stdout.decode().split() == [hashlib.sha256(f).hexdigest() for f in files]


def test_normals_of_sampled_points_are_those_of_the_sphere_there():
    ball = sample_surface(trimesh.creation.icosphere(5, 0.7), 500, seed=3)
    np.testing.assert_allclose(
        ball.normals, ball.points / np.linalg.norm(ball.points, axis=1, keepdims=True), atol=0.04
    )
    np.testing.assert_array_equal(ball.points, sample_points(ball.mesh, 500, seed=3))
