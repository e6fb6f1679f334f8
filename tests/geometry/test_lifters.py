import os
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ttd.config import Config, UserError
from ttd.geometry.depth_lifter import DepthConfig
from ttd.geometry.domain import FILE, Domain, measure
from ttd.geometry.external_lifter import ExternalConfig
from ttd.geometry.lifter import LiftRequest
from ttd.geometry.lifters import LIFTERS, LifterConfig, prepare_lifter
from ttd.geometry.meshes import to_trimesh
from ttd.geometry.oracle_lifter import OracleConfig
from ttd.geometry.sdf_lifter import SDFLifter, SDFLifterConfig
from ttd.geometry.sdf_network import load_network, save_network
from ttd.geometry.sdf_training import spoil
from ttd.geometry.shap_e import ShapEConfig
from ttd.geometry.surfaces import surface_of
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.scenes import draw_scene, mesh

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights" / "tiny" / "lifter"
PHOTOGRAPHS = Path(os.environ.get("TTD_REAL_DATA", ROOT.parent / "shared" / "data")) / "thingsplus-cc0-images"
IMAGE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def lifter() -> SDFLifter:
    return SDFLifter.prepare(SDFLifterConfig(weights=WEIGHTS, cells=16))


@pytest.fixture(scope="module")
def pool() -> ScenePool:
    return ScenePool(3, "domain-test", 12)


def statuses(lifter: SDFLifter, images) -> set[str]:
    return {r.status for r in lifter.lift([LiftRequest("item", np.ascontiguousarray(image)) for image in images])}


def square(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize((128, 128)))


def test_the_name_chooses_the_lifter_and_its_fields():
    choose = TypeAdapter(LifterConfig).validate_python
    assert choose({"name": "ttd_sdf"}) == SDFLifterConfig()
    assert choose({"name": "depth", "grid": 64}) == DepthConfig(grid=64)
    assert {c.model_fields["name"].default for c in LIFTERS} == {"ttd_sdf", "shap_e", "depth", "external", "oracle"}
    for wrong in ({"name": "trellis"}, {"name": "oracle", "grid": 64}, {"name": "external"}):
        with pytest.raises(ValidationError):
            choose(wrong)


def test_a_configuration_prepares_its_lifter():
    class Job(Config):
        lifter: LifterConfig

    job = Job.model_validate({"lifter": {"name": "ttd_sdf", "weights": WEIGHTS, "cells": 16}})
    lifter = prepare_lifter(job.lifter, "cpu")
    assert (lifter.info().name, lifter.info().kind, lifter.info().pretrained) == ("ttd_sdf", "surface", False)
    assert len(lifter.revision) == 16


def test_every_lifter_can_be_asked_to_let_go():
    assert all(callable(lifter.close) for lifter in LIFTERS.values())
    with closing(prepare_lifter(OracleConfig())) as lifter:
        assert lifter.info().kind == "oracle"


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path):
    assert SDFLifterConfig(weights=WEIGHTS).problems() == OracleConfig().problems() == []
    assert "train it with ttd/train_lift.py" in SDFLifterConfig(weights=tmp_path).problems()[0]
    assert "hf download openai/shap-e-img2img" in ShapEConfig().problems()[0]
    licence, missing = DepthConfig(model="depth-anything/Depth-Anything-V2-Large-hf").problems()
    assert licence.startswith("lifter.accept_license")
    assert missing.startswith("lifter.model")
    assert "/no/such is not a program here" in ExternalConfig(command=["/no/such"]).problems()[0]
    assert ExternalConfig(command=[sys.executable, "worker.py"]).problems() == []


def test_the_oracle_gives_back_the_truth_and_calls_itself_oracle():
    scene = mesh(draw_scene(4))
    lifter = prepare_lifter(OracleConfig())
    known, unknown = lifter.lift([LiftRequest("a", IMAGE, truth=surface_of(scene)), LiftRequest("b", IMAGE)])
    assert lifter.info().kind == "oracle"
    assert known.status == "ok"
    np.testing.assert_allclose(to_trimesh(known).bounds, scene.bounds, atol=1e-6)
    np.testing.assert_array_equal(to_trimesh(known).visual.vertex_colors, scene.visual.vertex_colors)
    assert (unknown.status, unknown.surface) == ("refused", None)


def test_pictures_of_unseen_scenes_are_lifted_in_both_looks_and_spoilt(lifter, pool):
    for images in pool.images.values():
        assert statuses(lifter, images.permute(0, 2, 3, 1).numpy()) == {"ok"}
        spoilt = spoil(images.float() / 255, 1.0, torch.Generator().manual_seed(0))
        assert statuses(lifter, (spoilt * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()) == {"ok"}


def test_photographs_are_refused_with_the_reason(lifter):
    folder = Path(skimage.__file__).parent / "data"
    pictures = [square(folder / name) for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
    assert statuses(lifter, pictures) == {"refused"}
    result = lifter.lift([LiftRequest("astronaut", pictures[0])])[0]
    assert result.reason.startswith("outside the embedded model's domain: ")
    assert result.facts["domain_distance"] > 1
    assert result.surface is None


@pytest.mark.realdata
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"{PHOTOGRAPHS} is absent; set TTD_REAL_DATA")
def test_photographs_of_things_are_refused(lifter):
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))
    assert len(paths) > 100
    assert statuses(lifter, [square(path) for path in paths]) == {"refused"}


def test_blank_noisy_and_overturned_pictures_are_refused(lifter, pool):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    blank = [np.full((64, 64, 3), level, np.uint8) for level in (0, 128, 255)]
    overturned = pool.images["study"][0].permute(1, 2, 0).numpy()[::-1]
    assert statuses(lifter, [noise, *blank, overturned]) == {"refused"}


def test_a_domain_belongs_to_its_weights(tmp_path, pool, caplog):
    network, _ = load_network(WEIGHTS)
    save_network(tmp_path, network, {})
    config = SDFLifterConfig(weights=tmp_path)
    assert SDFLifter.prepare(config).domain is None
    assert "not recognised" in caplog.text
    measured = measure(network, pool.images["base"], seed=0)
    measured.save(tmp_path)
    back = SDFLifter.prepare(config).domain
    assert back.limit == measured.limit
    torch.testing.assert_close(back.plane, measured.plane, rtol=0, atol=0)
    with torch.no_grad():
        network.leave.bias.add_(1)
    save_network(tmp_path, network, {})
    with pytest.raises(UserError, match="belongs to other weights"):
        SDFLifter.prepare(config)
    (tmp_path / FILE).write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a readable domain"):
        SDFLifter.prepare(config)


def test_the_distance_is_that_from_the_plane_of_the_training_features():
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(2000, 24, generator=g)
    flat[:, 16:] *= 0.01
    domain = Domain.fit(flat + 5)
    far = torch.full((1, 24), 5.0)
    far[0, 20] += 3.0
    assert domain.distance(far).item() == pytest.approx(3.0, rel=0.01)
    assert domain.distance(torch.full((1, 24), 5.0)).item() < 0.1
    assert domain.limit < 0.1
