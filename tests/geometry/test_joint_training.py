import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from ttd import lift, train_lift
from ttd.config import UserError
from ttd.experiments.lift import LiftConfig
from ttd.experiments.train_lift import DescriberTrainingConfig, TrainLiftConfig
from ttd.geometry.describer import DescriberConfig
from ttd.geometry.domain import features
from ttd.geometry.lift_job import ScoringConfig
from ttd.geometry.sdf_lifter import SDFLifterConfig
from ttd.geometry.sdf_network import load_network, save_network
from ttd.geometry.sdf_training import SDFTrainingConfig
from ttd.simulation import describer_training
from ttd.simulation.describer_training import DescriberPool
from ttd.simulation.joint_training import JointObjective, train_joint
from ttd.simulation.tiny_vlm import TinyVLMConfig, make_model

TERMS = {"representation": 1.0, "image": 1.0, "description": 0.5}
SMALL = TinyVLMConfig(vision_dim=24, vision_depth=2, text_dim=24, text_depth=1, n_heads=2)
STAGES = {"sight": {"steps": 2, "batch_size": 4, "lr": 1e-3}, "words": {"steps": 4, "batch_size": 4, "lr": 1e-3}}
SDF = SDFTrainingConfig(n_points=32, n_rays=4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(describer_training, "TinyVLMConfig", lambda: SMALL)


@pytest.fixture(scope="module")
def pool() -> DescriberPool:
    return DescriberPool(0, "test", 4)


def objective(**terms: float) -> JointObjective:
    torch.manual_seed(0)
    return JointObjective(make_model(SMALL), TERMS | terms)


def batch_of(pool: DescriberPool) -> dict[str, torch.Tensor]:
    batch = pool.batch(0, 0, 4, 32, 4)
    return batch | pool.asked(batch["rows"])


def test_the_lifter_reads_what_the_describers_tower_says_whoever_runs_it(pool):
    pair, batch = objective(), batch_of(pool)
    seen = pair.look(batch["image"])
    tokens = torch.cat([torch.stack(part) for part in (seen.pooler_output, *seen.deepstack_features)], dim=-1)
    torch.testing.assert_close(pair.lifter.tokens(batch["image"]), tokens)
    assert pair.lifter.read(tokens).local.shape == (4, 64, 32, 32)


def test_a_token_is_read_where_its_patch_lies(pool):
    lifter = objective().lifter
    tokens = torch.zeros(1, 64, 48)
    tokens[0, 8 * 2 + 5] = 1.0  # third row, sixth column of patches
    with torch.no_grad():
        moved = (lifter.read(tokens).local - lifter.read(torch.zeros_like(tokens)).local).abs().sum(1)[0]
    rows, columns = moved.nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (
        2 * 4 - 1,
        3 * 4,
    )  # four cells a patch, one more on each side by the convolution
    assert (columns.min(), columns.max()) == (5 * 4 - 1, 6 * 4)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_reaches_the_shared_tower_and_alone_it_leaves_the_others_heads_untouched(pool, term):
    pair = objective(**(dict.fromkeys(TERMS, 0.0) | {term: 1.0}))
    losses = pair(batch_of(pool))
    losses["loss"].backward()
    assert sum(p.grad.abs().sum() for p in pair.lifter.tower.parameters() if p.grad is not None) > 0
    of_lifter = [p.grad is not None for p in pair.lifter.blocks.parameters()]
    of_describer = pair.dense.weight.grad is not None
    assert (any(of_lifter), of_describer) == (term != "description", term == "description")


def test_the_loss_is_the_sum_of_the_terms_by_their_weights(pool):
    batch, zero = batch_of(pool), dict.fromkeys(TERMS, 0.0)
    with torch.no_grad():
        parts = {term: objective(**(zero | {term: 1.0}))(batch)["loss"] for term in TERMS}
        whole = objective()(batch)["loss"]
    torch.testing.assert_close(whole, sum(TERMS[term] * parts[term] for term in TERMS))


def test_a_stopped_training_goes_on_to_the_same_weights_and_not_under_another_identity(tmp_path):
    config = DescriberTrainingConfig.model_validate(STAGES)

    def run(folder: Path, stop_at: int | None = None, identity: str = "one") -> dict[str, torch.Tensor]:
        def log(line: dict) -> None:
            if stop_at is not None and (line["model"], line["step"]) == ("words", stop_at):
                raise KeyboardInterrupt

        model, network = train_joint(
            config, SDF, folder, terms=TERMS, seed=0, n_scenes=6, log=log, save_every=2, identity=identity
        )
        return {**model.state_dict(), **{f"lifter.{name}": tensor for name, tensor in network.state_dict().items()}}

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_at=2)
    resumed = run(tmp_path / "stopped")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)
    with pytest.raises(UserError, match="belongs to another experiment, or to an older version's"):
        run(tmp_path / "whole", identity="other")


def test_the_entry_leaves_a_lifter_and_a_describer_that_the_lifting_job_opens(tmp_path):
    config = TrainLiftConfig.model_validate(
        {
            "output_dir": tmp_path / "run", "weights": tmp_path / "weights", "component": "joint", "n_scenes": 4,
            "n_held_out": 2, "describer": STAGES, "training": SDF, "vae": "weights/tiny/vae",
        }
    )  # fmt: skip
    assert train_lift.check(config).problems == []
    train_lift.main(config)
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert {"lifter study", "lifter round_trip", "lifter shuffled", "describer study", "describer shuffled"} <= set(
        rows
    )
    lifter, describer = (
        load_file(tmp_path / "weights" / half / "model.safetensors") for half in ("lifter", "describer")
    )
    shared = [name.removeprefix("tower.") for name in lifter if name.startswith("tower.")]
    assert shared
    for name in shared:
        assert torch.equal(lifter[f"tower.{name}"], describer[f"model.visual.{name}"]), name
    facts = load_network(tmp_path / "weights" / "lifter")[1]
    assert facts["training"]["terms"] == TERMS
    assert facts["held_out"] == {
        name.removeprefix("lifter "): v for name, v in rows.items() if name.startswith("lifter")
    }

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, image in enumerate(DescriberPool(1, "pictures", 2).images["study"]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / f"{i}.png")
    job = LiftConfig(
        output_dir=tmp_path / "lift", pictures=pictures,
        lifter=SDFLifterConfig(weights=tmp_path / "weights" / "lifter", cells=16),
        describe=DescriberConfig(model=str(tmp_path / "weights" / "describer"), max_new_tokens=40),
        scoring=ScoringConfig(n_points=100, n_frames=2, view_size=32),
    )  # fmt: skip
    assert lift.check(job).problems == []
    lift.main(job)
    counts = json.loads((tmp_path / "lift" / "lift.json").read_text())
    assert sum(counts["counts"].values()) == sum(counts["described"].values()) == 2


def test_a_network_with_a_tower_comes_back_from_its_folder_and_has_a_domain_of_tokens(tmp_path, pool):
    network = objective().lifter
    save_network(tmp_path, network, {})
    back = load_network(tmp_path)[0]
    images = pool.images["study"].float() / 255
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name].half().float()), name
    assert features(back, images).shape == (4, 48)
    distance, rgb = back.query(back.encode(images), torch.zeros(4, 3, 3))
    assert (distance.shape, rgb.shape) == ((4, 3), (4, 3, 3))


def config_of(**more) -> TrainLiftConfig:
    return TrainLiftConfig.model_validate({"output_dir": "out", "weights": "weights", **more})


def test_the_weights_of_the_terms_are_the_seeds_where_a_component_has_them():
    assert config_of().loss_terms == {"representation": 1.0, "image": 1.0}
    assert config_of(component="describer").loss_terms == {"description": 0.5}
    assert config_of(component="joint").loss_terms == TERMS
    given = config_of(component="joint", terms={"image": 0, "description": 2})
    assert given.loss_terms == {"representation": 1.0, "image": 0.0, "description": 2.0}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"terms": {"description": 0.5}},
            r"terms\.description: 0\.5, but lifter has the terms representation, image alone",
        ),
        ({"component": "describer", "terms": {"image": 1}}, "but describer has the terms description alone"),
        ({"terms": {"representation": 0, "image": 0}}, "every weight of lifter is 0"),
        ({"terms": {"image": -1}}, "greater than or equal to 0"),
        ({"component": "joint", "weights": "weights/tiny/lifter"}, "is the lifter's; give joint a folder of its own"),
        (
            {"component": "joint", "describer": {"start": {"model": "m"}}},
            "joint trains the tiny models from fresh weights",
        ),
        ({"component": "joint", "start": "weights/tiny/lifter"}, "joint has none to go on from"),
    ],
)
def test_what_does_not_belong_together_is_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        config_of(**given)


def test_a_folder_of_another_loss_is_not_resumed_even_where_its_config_says_nothing_of_terms(tmp_path):
    more = {"n_scenes": 4, "n_held_out": 2, "training": {"steps": 1, "batch_size": 2, "n_points": 8}}
    first = config_of(output_dir=tmp_path / "run", weights=tmp_path / "out", terms={"image": 0}, **more)
    train_lift.main(first)
    other = first.model_copy(update={"terms": first.terms.model_copy(update={"image": 1.0})})
    assert "terms.image: 0.0 there, 1.0 now" in train_lift.check(other).problems[0]
    written = tmp_path / "run" / "config.yaml"  # as a version wrote it that knew of no terms
    written.write_text("\n".join(line for line in written.read_text().splitlines() if "image:" not in line) + "\n")
    default = first.model_copy(update={"terms": first.terms.model_copy(update={"image": None})})
    assert train_lift.check(default).problems == []
    with pytest.raises(UserError, match=r"state\.safetensors: belongs to another experiment"):
        train_lift.main(default)


def test_a_lifter_goes_on_from_the_weights_of_another_and_says_so(tmp_path):
    more = {"n_scenes": 4, "n_held_out": 2, "terms": {"image": 0}}
    steps = {"steps": 1, "batch_size": 2, "n_points": 8}
    train_lift.main(config_of(output_dir=tmp_path / "first", weights=tmp_path / "a", training=steps, **more))
    on = config_of(
        output_dir=tmp_path / "second", weights=tmp_path / "b", start=tmp_path / "first" / "export",
        vae="weights/tiny/vae", training={**steps, "lr": 1e-8}, **more,
    )  # fmt: skip
    assert train_lift.check(on).problems == []
    train_lift.main(on)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name].float(), tensor.float(), atol=1e-3)
    said = load_network(tmp_path / "b")[1]["training"]
    assert said["start"]["steps"] == 1
    assert said["vae"]
    shutil.rmtree(tmp_path / "first" / "export")
    (problem,) = train_lift.check(on).problems
    assert "holds no lifter" in problem
    nothing = config_of(output_dir=tmp_path / "third", vae=tmp_path)
    assert "holds no diffusion_pytorch_model.safetensors" in train_lift.check(nothing).problems[0]
