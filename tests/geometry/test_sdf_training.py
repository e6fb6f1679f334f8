import numpy as np
import pytest
import torch

from ttd.config import UserError
from ttd.geometry.camera import Camera
from ttd.geometry.sdf_lifter import SDFLifter
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig
from ttd.geometry.sdf_training import SDFTrainingConfig, fit, lr_at, spoil
from ttd.geometry.sdf_training import losses as weighted
from ttd.simulation import render
from ttd.simulation.lifter_figures import held_out_figures
from ttd.simulation.lifter_scenes import ScenePool, distance_and_colour, draw_points
from ttd.simulation.scenes import COLOUR_RGB, Scene, Solid, draw_scene, signed_distance

CAMERA = Camera(eye=render.EYE, target=render.TARGET, half_fov=render.HALF_FOV)
SMALL = SDFNetworkConfig(
    camera=CAMERA, channels=(8, 16, 16, 16), feature_dim=16, code_dim=16, hidden_dim=64, n_blocks=2
)


def network() -> SDFNetwork:
    torch.manual_seed(0)
    return SDFNetwork(SMALL)


@pytest.fixture(scope="module")
def pool() -> ScenePool:
    pool = ScenePool(seed=0, purpose="test", n_scenes=2)
    solids = [Solid("sphere", "red", "large", 0.5, 0, -0.45, 0), Solid("box", "blue", "large", 0.5, 0.4, 0.45, 0)]
    pool.scenes = [Scene((solid,), 0) for solid in solids]
    rendered = {look: render.render(pool.scenes, look) for look in pool.images}
    pool.images = {look: torch.from_numpy(r.image).permute(0, 3, 1, 2) for look, r in rendered.items()}
    pool.masks = torch.from_numpy(rendered["study"].mask)
    return pool


def losses(model: SDFNetwork, batch: dict, **terms: float) -> dict:
    return weighted(model, model.encode(batch["image"]), batch, {"representation": 1.0, "image": 0.0} | terms)


def test_distances_of_many_scenes_at_once_are_those_of_each_and_the_colour_is_the_nearest_solids():
    scenes = [draw_scene(seed) for seed in range(12)]
    points = torch.rand(12, 50, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    distance, rgb = distance_and_colour(scenes, points)
    for i, scene in enumerate(scenes):
        np.testing.assert_allclose(distance[i], signed_distance(scene, points[i].numpy()), atol=1e-5)
        per_solid = [signed_distance(Scene((s,), 0), points[i].numpy()) for s in scene.solids]
        nearest = np.argmin(per_solid, axis=0)
        expected = np.array([COLOUR_RGB[s.colour] for s in scene.solids])[nearest]
        np.testing.assert_allclose(rgb[i], expected, atol=1e-6)


def test_half_of_the_points_lie_near_a_surface_and_some_fill_the_scene():
    scenes = [draw_scene(seed) for seed in range(16)]
    drawn = draw_points(scenes, 256, torch.Generator().manual_seed(0))
    near = (drawn["distance"].abs() < 0.08).float().mean(1)
    assert near.min() > 0.48
    assert drawn["points"][:, -64:].abs().max() > 0.95


def test_a_batch_depends_on_seed_and_step_alone(pool):
    first, again, other = (pool.batch(0, step, 4, 32) for step in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["points"], other["points"])


def test_spoilt_pictures_stay_pictures_and_their_share_is_kept(pool):
    images = pool.batch(0, 0, 64, 8)["image"]
    spoilt = spoil(images, 0.5, torch.Generator().manual_seed(0))
    assert spoilt.shape == images.shape
    assert spoilt.min() >= 0
    assert spoilt.max() <= 1
    changed = (spoilt != images).flatten(1).any(1).float().mean()
    assert 0.35 < changed < 0.65
    assert torch.equal(spoil(images, 0.0, torch.Generator()), images)


def test_half_of_the_spoilt_pictures_go_through_the_autoencoder_first_and_the_rest_is_spoilt_as_without_it(pool):
    images, seen = pool.batch(0, 0, 64, 8)["image"], []

    def round_trip(some):
        seen.append(len(some))
        return 1 - some

    spoilt = spoil(images, 0.8, torch.Generator().manual_seed(0), round_trip)
    inverted = ((spoilt - (1 - images)).abs().flatten(1).mean(1) < (spoilt - images).abs().flatten(1).mean(1)).sum()
    assert inverted == sum(seen)
    assert 0.25 < sum(seen) / 64 < 0.55
    assert torch.equal(spoil(images, 0.0, torch.Generator(), round_trip), images)


def test_a_distance_beyond_the_truncation_asks_for_the_truncation(pool):
    batch = pool.batch(0, 0, 2, 64)
    far = {**batch, "distance": torch.full_like(batch["distance"], 0.7)}
    cut = {**batch, "distance": torch.full_like(batch["distance"], SMALL.truncation)}
    model = network()
    assert losses(model, far)["sdf"] == losses(model, cut)["sdf"]
    assert losses(model, far)["colour"] == 0  # no point is near a surface


def test_the_rate_warms_up_and_ends_at_one_percent():
    config = SDFTrainingConfig(steps=1000, lr=1.0)
    assert lr_at(0, config) == pytest.approx(0.01)
    assert lr_at(99, config) == pytest.approx(1.0)
    assert lr_at(1000, config) == pytest.approx(0.01)


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, pool):
    config = SDFTrainingConfig(steps=6, batch_size=2, n_points=32, checkpoint_every=3, mixed_precision=False)

    terms = {"representation": 1.0, "image": 1.0}

    def train(folder, stop_at=None):
        model = network()

        def draw(step):
            if step == stop_at:
                raise KeyboardInterrupt
            return pool.batch(0, step, 2, 32, 4)

        fit(model, draw, config, folder, seed=0, identity={"scenes": 2}, terms=terms)
        return model.state_dict()

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves", stop_at=4)
    resumed = train(tmp_path / "halves")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(UserError, match="belongs to another experiment"):
        fit(network(), pool.batch, config, tmp_path / "whole", seed=1, identity={"scenes": 2}, terms=terms)
    with pytest.raises(UserError, match="belongs to another experiment"):  # the same but for a term of the loss
        fit(
            network(),
            pool.batch,
            config,
            tmp_path / "whole",
            seed=0,
            identity={"scenes": 2},
            terms={**terms, "image": 0},
        )


def test_a_small_network_soon_tells_two_scenes_apart(tmp_path, pool):
    config = SDFTrainingConfig(
        steps=80, batch_size=2, n_points=256, lr=4e-3, spoil=0.0, checkpoint_every=80, mixed_precision=False
    )
    model = network()
    terms = {"representation": 1.0, "image": 0.0}
    fit(model, lambda step: pool.batch(0, step, 2, 256), config, tmp_path, seed=0, identity={}, terms=terms)
    lifter = SDFLifter(model, cells=32)
    figures = held_out_figures(lifter, pool, seed=0, n_points=1000, round_trip=lambda images: images)
    assert figures["round_trip"] == figures["study"]
    assert 0.2 < figures["study"]["iou"] <= 1
    assert figures["shuffled"]["iou"] < figures["study"]["iou"]
    assert figures["study"]["fscore@0.1"] > 0.6
    assert figures["study"]["fscore@0.1"] > figures["shuffled"]["fscore@0.1"] + 0.4
