import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_loop import Objective, go, losses, same, tensors

from ttd.config import StoppedError, UserError
from ttd.engine.accelerator import EngineConfig, check_launch
from ttd.engine.averaging import WeightAverage
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.schedules import OptimConfig

AVERAGED = OptimConfig(lr=1e-2, warmup_steps=2, ema_decay=0.6)


def averaged_by_hand(weights, decay):
    """The recurrence of the module's docstring in float64, over the weights after each update."""
    average = weights[0].double()
    for n, value in enumerate(weights[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * value.double()
    return average


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_the_written_recurrence(decay):
    weight = torch.nn.Parameter(torch.zeros(3))
    average, seen = WeightAverage({"w": weight}, decay), []
    for step in range(1, 13):
        weight.data = torch.randn(3, generator=torch.Generator().manual_seed(step))
        seen.append(weight.detach().clone())
        average.update(step)
    expected = averaged_by_hand(seen, decay)
    torch.testing.assert_close(average.values["w"].double(), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, seen[-1].double(), atol=0.1)


def test_the_average_is_validated_and_loaded_and_training_does_not_notice(tmp_path):
    seen = []

    def validate(module):
        seen.append(module.body[0].weight.detach().clone())
        return {"top1": 0.0}

    go(tmp_path / "plain")
    _, objective = go(tmp_path / "averaged", optim=AVERAGED, validate=validate, validate_every=3)
    assert losses(tmp_path / "averaged") == losses(tmp_path / "plain")
    weights, moments = tensors(tmp_path / "averaged/step-0000009").values()
    assert torch.equal(
        weights["body.0.weight"], tensors(tmp_path / "plain/step-0000009")["weights.safetensors"]["body.0.weight"]
    )
    assert torch.equal(objective.body[0].weight, weights["body.0.weight"])
    assert torch.equal(seen[-1], moments["ema.body.0.weight"])
    assert not torch.allclose(seen[-1], weights["body.0.weight"], atol=1e-4)
    load_weights(step_folder(tmp_path / "averaged", 9), objective)
    assert torch.equal(objective.body[0].weight, seen[-1])
    assert torch.equal(objective.body[1].running_mean, weights["body.1.running_mean"])


def test_a_resumed_average_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(Objective, "signal", signal.SIGUSR1)
    go(tmp_path / "straight", optim=AVERAGED)
    with pytest.raises(StoppedError):
        go(tmp_path / "broken", Objective(signal_at=9), optim=AVERAGED)
    go(tmp_path / "broken", optim=AVERAGED)
    assert same(tensors(tmp_path / "broken/step-0000009"), tensors(tmp_path / "straight/step-0000009"))


def test_a_run_from_before_the_option_goes_on_without_an_average_and_not_with_one(tmp_path):
    go(tmp_path, max_steps=3)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["optim"].pop("ema_decay", 0) is None
    config["train"]["tracking"]["wandb"] = False  # an option that is gone
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"optim\.ema_decay: None there, 0\.6 now"):
        go(tmp_path, max_steps=4, optim=AVERAGED)
    assert go(tmp_path, max_steps=4)[0].step == 4
    config = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"gone": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"put back:\n  gone: 3 there, None now$"):
        go(tmp_path, max_steps=5)
    assert not any(name.startswith("ema.") for name in load_file(tmp_path / "step-0000004/moments.safetensors"))


def test_zero3_has_no_average(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "launch/deepspeed/zero3.json")
    monkeypatch.chdir(os.path.join(os.path.dirname(__file__), "../.."))
    (problem,) = check_launch(EngineConfig(), 8, averages=True)
    assert "optim.ema_decay: under ZeRO-3" in problem
    assert check_launch(EngineConfig(), 8) == []
