import math

import pytest
import torch
from torch import Tensor

from ttd.geometry.camera import Camera
from ttd.geometry.reprojection import crossing, reprojection, see
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig
from ttd.geometry.sdf_training import losses
from ttd.simulation import render
from ttd.simulation.lifter_scenes import ScenePool, distance_and_colour, draw_rays, pixel_rays

CAMERA = Camera(eye=render.EYE, target=render.TARGET, half_fov=render.HALF_FOV)
SMALL = SDFNetworkConfig(camera=CAMERA, channels=(8, 8, 8, 8), feature_dim=8, code_dim=8, hidden_dim=16, n_blocks=1)


@pytest.fixture(scope="module")
def pool() -> ScenePool:
    return ScenePool(seed=3, purpose="test", n_scenes=4)


class Exact:
    """Answers with the true distance and colour of the pool's scenes, pushed outwards by ``grown``."""

    config = SMALL

    def __init__(self, pool: ScenePool, grown: float | Tensor = 0.0):
        self.pool, self.grown = pool, grown

    def query(self, features: object, points: Tensor) -> tuple[Tensor, Tensor]:
        distance, rgb = distance_and_colour(self.pool.scenes, points)
        return distance - self.grown, rgb


def batch_of(pool: ScenePool, n_rays: int, look: str = "study") -> dict[str, Tensor]:
    images = pool.images[look].float() / 255
    return draw_rays(images, pool.masks, n_rays, torch.Generator().manual_seed(0))


def test_a_ray_enters_and_leaves_the_cube_where_geometry_says():
    camera = Camera(eye=(0.0, 0.0, 4.0), target=(0.0, 0.0, 0.0), half_fov=0.3)
    slanted = torch.tensor([0.0, 0.2, -1.0])  # meets y = 1 at t = 5, after z = -1: through front and back
    directions = torch.stack([torch.tensor([0.0, 0.0, -1.0]), slanted, torch.tensor([0.0, 1.0, -1.0])])
    directions[2] = directions[2] / math.sqrt(2)
    enter, leave = crossing(camera, directions)
    torch.testing.assert_close(enter[:2], torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(leave[:2], torch.tensor([5.0, 5.0]))
    assert enter[2] == leave[2], "it passes above the cube"


def test_an_exact_field_is_seen_as_the_mask_of_the_picture_in_the_solids_own_colours(pool):
    directions = pixel_rays(64).expand(4, -1, -1)
    opacity, colour = see(Exact(pool), None, directions, torch.full((4, 4096), 0.5))
    covered = pool.masks.flatten(1) >= 0
    seen = opacity > 0.5
    assert (seen & covered).sum() / (seen | covered).sum() > 0.93
    assert opacity[~covered].mean() < 0.02
    solid = opacity > 0.99
    hit = colour[solid] / opacity[solid][:, None]
    palette = torch.tensor(list(render.COLOUR_RGB.values()))
    assert (torch.cdist(hit, palette).amin(1) < 0.1).float().mean() > 0.95


@pytest.mark.parametrize("look", render.LOOKS)
def test_the_true_field_has_a_smaller_error_than_a_smaller_or_a_larger_one_and_light_does_not_matter(pool, look):
    batch = batch_of(pool, 512, look)
    errors = {grown: reprojection(Exact(pool, grown), None, batch) for grown in (-0.08, 0.0, 0.08)}
    assert errors[0.0]["silhouette"] < min(errors[-0.08]["silhouette"], errors[0.08]["silhouette"])
    assert errors[0.0]["tint"] < 0.004, "the pictures are shaded"
    wrong = {**batch, "pixels": batch["pixels"].roll(1, 0)}
    assert reprojection(Exact(pool), None, wrong)["tint"] > 10 * errors[0.0]["tint"]


def test_the_gradient_of_the_silhouette_says_which_way_the_surface_has_to_move(pool):
    batch = batch_of(pool, 256)
    for grown, sign in ((-0.08, -1), (0.08, 1)):
        offset = torch.tensor(grown, requires_grad=True)
        reprojection(Exact(pool, offset), None, batch)["silhouette"].backward()
        assert offset.grad.sign() == sign


def test_rays_go_through_their_pixels_and_half_of_them_are_near_a_solid(pool):
    batch = batch_of(pool, 256)
    uv = CAMERA.project(torch.tensor(CAMERA.eye) + 4 * batch["directions"])
    column, row = ((uv + 1) * 32).floor().long().unbind(-1)
    images = pool.images["study"].float() / 255
    which = torch.arange(4)[:, None]
    torch.testing.assert_close(images[which, :, row, column], batch["pixels"])
    assert torch.equal((pool.masks[which, row, column] >= 0).float(), batch["covered"])
    assert (batch["covered"] >= batch["inner"]).all()
    assert batch["covered"].mean() > 1.5 * (pool.masks >= 0).float().mean()


def test_each_term_is_computed_only_where_it_has_a_weight_and_the_loss_is_their_weighted_sum(pool):
    torch.manual_seed(0)
    network = SDFNetwork(SMALL)
    batch = pool.batch(0, 0, 4, 32, 16)
    features = network.encode(batch["image"])
    one, other, both = (
        losses(network, features, batch, {"representation": r, "image": i}) for r, i in ((1, 0), (0, 1), (2, 0.5))
    )
    assert "silhouette" not in one
    assert "sdf" not in other
    torch.testing.assert_close(both["loss"], 2 * one["loss"] + 0.5 * other["loss"])
    other["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.leave.parameters())
