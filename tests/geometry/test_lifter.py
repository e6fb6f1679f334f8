from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ttd.config import UserError
from ttd.geometry.camera import Camera
from ttd.geometry.lifter import LiftRequest
from ttd.geometry.meshes import from_glb, sample_points, to_glb, to_trimesh
from ttd.geometry.sdf_lifter import SDFLifter, SDFLifterConfig
from ttd.geometry.sdf_network import Features, SDFNetwork, SDFNetworkConfig, load_network, save_network
from ttd.geometry.views import to_gif, to_png, turntable, view
from ttd.simulation import render
from ttd.simulation.base_report import load_vae
from ttd.simulation.lifter_figures import held_out_figures
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.scenes import Scene, Solid, mesh, signed_distance
from ttd.simulation.tiny_vae import reconstruct

CAMERA = Camera(eye=render.EYE, target=render.TARGET, half_fov=render.HALF_FOV)
SMALL = SDFNetworkConfig(camera=CAMERA, channels=(8, 8, 16, 16), feature_dim=8, code_dim=8, hidden_dim=16, n_blocks=1)
WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
LEFT = Scene((Solid("box", "red", "large", 0.45, 0.3, -0.45, 0.1),), seed=0)
IMAGE = np.zeros((64, 64, 3), np.uint8)


class Exact(SDFNetwork):
    """Answers with a known scene's truncated distance and red: what a perfect network would say."""

    def __init__(self, scene: Scene | None):
        super().__init__(SMALL)
        self.scene, self.asked = scene, 0

    def query(self, features: Features, points: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += points.shape[1]
        rgb = torch.tensor([1.0, 0.0, 0.0]).expand(*points.shape)
        if self.scene is None:
            return torch.full(points.shape[:2], 0.15), rgb
        distance = torch.from_numpy(signed_distance(self.scene, points[0].numpy())).float()
        return distance.clamp(-0.15, 0.15)[None], rgb


def lift(network: SDFNetwork, **more):
    return SDFLifter(network, **more).lift([LiftRequest("item", IMAGE)])[0]


def test_a_solid_on_the_left_of_the_picture_is_at_negative_x_of_the_mesh():
    picture = render.render([LEFT], "base")
    columns = np.nonzero(picture.mask[0] >= 0)[1]
    assert columns.mean() < 24  # of 64: on the left
    body = to_trimesh(lift(Exact(LEFT)))
    assert body.bounds[:, 0].max() < 0
    np.testing.assert_allclose(body.bounds, mesh(LEFT).bounds, atol=0.03)
    assert np.mean(CAMERA.project(np.asarray(body.vertices))[:, 0] * 32 + 32) == pytest.approx(columns.mean(), abs=3)


def test_an_exact_field_gives_the_true_surface_closed_and_wound_outwards():
    body = to_trimesh(lift(Exact(LEFT)))
    assert body.is_watertight
    assert body.volume == pytest.approx(mesh(LEFT).volume, rel=0.03)
    assert np.abs(signed_distance(LEFT, sample_points(body, 1000, seed=0))).max() < 0.02


def test_the_refined_grid_agrees_with_the_dense_one_at_a_fraction_of_the_questions():
    network = Exact(LEFT)
    field, n_asked = SDFLifter(network).field(network.encode(torch.zeros(1, 3, 64, 64)))
    axis = np.linspace(-1, 1, 65)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    dense = signed_distance(LEFT, points).reshape(65, 65, 65)
    np.testing.assert_array_equal(field < 0, dense < 0)
    near = np.abs(dense) < 0.05
    np.testing.assert_allclose(field[near], dense[near], atol=1e-5)
    assert n_asked == network.asked < len(points) / 5


def test_a_picture_without_surface_is_a_status_and_not_a_crash():
    result = lift(Exact(None))
    assert (result.status, result.surface) == ("empty", None)
    assert "no surface" in result.reason
    with pytest.raises(ValueError, match="'item' has no surface: empty"):
        to_trimesh(result)


def test_a_picture_of_another_camera_is_outside_the_domain():
    request = LiftRequest("item", IMAGE, camera=CAMERA.turned(0.5))
    result = SDFLifter(Exact(LEFT)).lift([request])[0]
    assert result.status == "refused"
    assert "camera" in result.reason


@pytest.mark.parametrize("image", [IMAGE.astype(np.float32), IMAGE[..., :2], IMAGE[..., 0]])
def test_what_is_no_rgb_picture_is_an_error(image):
    with pytest.raises(ValueError, match=r"uint8 \[S, S, 3\]"):
        SDFLifter(Exact(LEFT)).lift([LiftRequest("item", image)])


def test_a_picture_that_is_not_square_is_outside_the_domain():
    result = SDFLifter(Exact(LEFT)).lift([LiftRequest("item", IMAGE[:32])])[0]
    assert (result.status, result.surface) == ("refused", None)
    assert "not square" in result.reason


def test_glb_comes_back_with_its_colours_and_is_the_same_bytes_every_time():
    body = to_trimesh(lift(Exact(LEFT), cells=32))
    data = to_glb(body, {"domain": "procedural-primitives"})
    assert data == to_glb(to_trimesh(lift(Exact(LEFT), cells=32)), {"domain": "procedural-primitives"})
    assert b'"NORMAL"' in data
    assert b"procedural-primitives" in data
    back = from_glb(data)
    np.testing.assert_allclose(back.vertices, body.vertices, atol=1e-6)
    np.testing.assert_array_equal(back.faces, body.faces)
    np.testing.assert_array_equal(back.visual.vertex_colors, np.tile([255, 0, 0, 255], (len(body.vertices), 1)))
    np.testing.assert_array_equal(sample_points(back, 50, seed=1), sample_points(back, 50, seed=1))
    with pytest.raises(ValueError, match="not a readable GLB"):
        from_glb(data[: len(data) // 2])


def test_the_view_of_the_picture_camera_shows_the_solid_where_the_picture_does():
    picture = render.render([LEFT], "base", size=64)
    body = mesh(LEFT)
    seen = view(body, CAMERA, 64)
    shown = seen[..., 0].astype(int) - seen[..., 2] > 40  # red on grey
    drawn = picture.mask[0] >= 0
    assert (shown & drawn).sum() / (shown | drawn).sum() > 0.93
    frames = turntable(body, CAMERA, n_frames=4, size=64)
    np.testing.assert_array_equal(frames[0], seen)
    behind = np.nonzero(frames[2][..., 0].astype(int) - frames[2][..., 2] > 40)[1]
    assert behind.mean() > 40  # from behind, left is right
    assert to_png(seen)[:4] == b"\x89PNG"
    assert to_gif(frames)[:3] == b"GIF"


def test_weights_come_back_in_float32_and_a_misfit_names_the_tensors(tmp_path):
    torch.manual_seed(0)
    network = SDFNetwork(SMALL)
    save_network(tmp_path, network, {"provenance": {"domain": "procedural-primitives"}})
    back, facts = load_network(tmp_path)
    assert facts["provenance"]["domain"] == "procedural-primitives"
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor.half().float(), rtol=0, atol=0)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"hidden_dim": 16', '"hidden_dim": 24'))
    with pytest.raises(UserError, match=r"do not fit, in blocks\.0\.0\.bias"):
        load_network(tmp_path)
    with pytest.raises(UserError, match=r"config\.json is missing.*train_lift"):
        SDFLifter.prepare(SDFLifterConfig(weights=tmp_path / "nowhere"))


def test_the_default_network_has_one_and_a_half_million_parameters():
    assert sum(p.numel() for p in SDFNetwork(SDFNetworkConfig(camera=CAMERA)).parameters()) == 1_498_212


def test_the_shipped_lifter_finds_the_surfaces_of_unseen_scenes_in_both_looks():
    lifter = SDFLifter.prepare(SDFLifterConfig(weights=WEIGHTS / "lifter"))
    assert lifter.network.config.camera == CAMERA
    round_trip = partial(reconstruct, load_vae(WEIGHTS / "vae"))
    pool = ScenePool(seed=1, purpose="unseen", n_scenes=4)
    figures = held_out_figures(lifter, pool, seed=0, n_points=2048, round_trip=round_trip)
    assert min(figures[row]["fscore@0.05"] for row in ("base", "study", "round_trip", "spoilt")) > 0.9
    assert figures["shuffled"]["fscore@0.05"] < 0.4


def test_the_shipped_lifter_reaches_its_goals_on_64_scenes_and_knows_decoded_pictures():
    facts = load_network(WEIGHTS / "lifter")[1]
    rows = facts["held_out"]
    for row in ("base", "study", "round_trip", "spoilt"):
        assert rows[row]["fscore@0.05"] >= 0.80
        assert rows[row]["iou"] >= 0.60
        assert rows[row]["empty"] == 0
    assert rows["shuffled"]["fscore@0.05"] <= 0.2
    assert facts["training"]["vae"]
