import math

import numpy as np
import pytest
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from ttd.config import UserError
from ttd.geometry.camera import Camera
from ttd.geometry.depth_lifter import DepthConfig, DepthLifter, from_relative, into_frame, sheet
from ttd.geometry.lifter import LiftRequest
from ttd.geometry.meshes import from_glb, to_glb, to_trimesh, vertex_colours
from ttd.simulation import render
from ttd.simulation.scenes import Scene, Solid, signed_distance

CAMERA = Camera(eye=render.EYE, target=render.TARGET, half_fov=render.HALF_FOV)
PICTURE = np.zeros((60, 80, 3), np.uint8)
PICTURE[:, :40] = (220, 20, 20)  # red on the left
PICTURE[:20] = (20, 20, 220)  # blue above


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Depth Anything of 120 k parameters; its last layer is made to speak loud enough to differ from zero."""
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=70, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=32, neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16, head_in_channels=16, head_hidden_size=8,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for layer in (model.head.conv1, model.head.conv2, model.head.conv3):
            layer.weight.mul_(30)
        model.head.conv3.bias.fill_(1.0)
    path = tmp_path_factory.mktemp("depth")
    model.save_pretrained(path)
    size = {"height": 70, "width": 70}
    DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(path)
    return path


def lifter(folder, **more) -> DepthLifter:
    return DepthLifter.prepare(DepthConfig(model=str(folder), grid=40, cut=10.0, **more))


def test_a_saved_random_depth_anything_gives_a_glb_that_reloads_and_says_25d(folder):
    lift = lifter(folder)
    result = lift.lift([LiftRequest("item", PICTURE)])[0]
    assert result.status == "ok", result.reason
    assert (lift.info().kind, result.facts["kind"]) == ("2.5D", "2.5D")
    mesh = to_trimesh(result)
    assert len(mesh.vertices) == 40 * 30
    assert np.abs(mesh.vertices).max() == pytest.approx(1)
    back = from_glb(to_glb(mesh, {}))
    np.testing.assert_array_equal(back.faces, mesh.faces)
    assert not back.is_watertight  # open at the back


def test_left_and_above_in_the_picture_are_left_and_above_in_the_scene(folder):
    for camera in (None, CAMERA):
        result = lifter(folder).lift([LiftRequest("item", PICTURE, camera=camera)])[0]
        mesh = to_trimesh(result)
        colours = vertex_colours(mesh)
        red, blue, black = (
            mesh.vertices[(colours[:, 0] > 150)], mesh.vertices[colours[:, 2] > 150], mesh.vertices[colours.max(1) < 50]
        )  # fmt: skip
        assert red[:, 0].mean() < black[:, 0].mean() - 0.2
        assert blue[:, 1].mean() > red[:, 1].mean() + 0.2
        eye = result.to_frame[:3, 3]  # where the camera's own origin comes to lie
        assert ((mesh.face_normals * (eye - mesh.triangles_center)).sum(1) > 0).all()  # every face looks at the camera
    np.testing.assert_array_equal(eye, CAMERA.eye)


def test_what_is_assumed_is_said(folder):
    facts = lifter(folder, half_fov_deg=20).lift([LiftRequest("item", PICTURE)])[0].facts
    assert (facts["field_of_view"], facts["half_fov_deg"], facts["far_over_near"]) == ("assumed", 20, 2.0)
    facts = lifter(folder).lift([LiftRequest("item", PICTURE, camera=CAMERA)])[0].facts
    assert (facts["field_of_view"], facts["half_fov_deg"]) == ("known", 14.8)


def test_true_depth_gives_back_the_true_surface():
    scene = Scene((Solid("box", "red", "large", 0.48, 0.3, -0.45, 0.1),), seed=0)
    picture = render.render([scene], "base", size=64)
    directions = CAMERA.rays(128).reshape(128, 128, 3)[
        ::2, ::2
    ]  # the depth is that of the top left of 2 x 2 subsamples
    along = -(directions @ CAMERA.axes[2])  # cosine between ray and axis
    depth = np.where(np.isfinite(picture.depth[0]), picture.depth[0] * along, 6.0)
    surface = sheet(depth, picture.image[0].astype(float), CAMERA.half_fov, cut=0.08)
    matrix = into_frame(surface.vertices, CAMERA)
    scale = np.linalg.norm(matrix[:3, 0])  # no picture tells it; taken out here to compare
    points = surface.vertices @ matrix[:3, :3].T / scale + matrix[:3, 3]
    solid = -surface.vertices[:, 2] < 5.5
    assert solid.sum() > 200
    assert points[solid][:, 0].max() < 0.1  # the box stands on the left
    assert np.abs(signed_distance(scene, points[solid])).mean() < 0.02  # half a pixel is 0.016
    faces = solid[surface.faces]
    assert (faces.all(1) | ~faces.any(1)).all()  # nothing joins the solid and what lies behind it


def test_a_plane_of_constant_depth_has_the_width_of_its_field_of_view():
    flat = sheet(np.full((5, 9), 3.0), np.zeros((5, 9, 3)), math.radians(45), cut=0.1)
    assert len(flat.faces) == 2 * 4 * 8
    assert np.ptp(flat.vertices[:, 0]) == pytest.approx(
        2 * 3.0 * 8 / 9
    )  # from the middle of a pixel to that of the last
    assert np.ptp(flat.vertices[:, 1]) == pytest.approx(2 * 3.0 * 4 / 9)


def test_relative_answers_become_the_assumed_range_with_the_largest_nearest():
    depth = from_relative(torch.tensor([[4.0, 8.0], [6.0, 4.0]]), 2.0)
    torch.testing.assert_close(depth, torch.tensor([[2.0, 1.0], [4 / 3, 2.0]]))


def test_a_sheet_that_falls_apart_is_empty(folder):
    noisy = np.where(np.indices((6, 6)).sum(0) % 2, 1.0, 3.0)
    assert sheet(noisy, np.zeros((6, 6, 3)), 0.4, cut=0.1) is None


def test_the_larger_models_are_refused_until_their_licence_is_accepted():
    larger = DepthConfig(model="depth-anything/Depth-Anything-V2-Large-hf")
    with pytest.raises(UserError, match=r"accept_license.*CC-BY-NC-4\.0"):
        DepthLifter.prepare(larger)
    accepted = larger.model_copy(update={"accept_license": "CC-BY-NC-4.0"})
    with pytest.raises(UserError, match="hf download"):  # allowed now, but not here
        DepthLifter.prepare(accepted)
