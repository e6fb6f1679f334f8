import pytest
import torch
from torch import nn

from ttd.experiments.train_base import FitConfig
from ttd.simulation.fit import fit, lr_at


def problem():
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss_at(step: int):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(16, 3, generator=g)
        loss = ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()
        return loss, {"mse": loss.item()}

    return module, loss_at


CONFIG = FitConfig(steps=40, batch_size=16, lr=0.1, warmup=5, weight_decay=0.0, ema=0.9)


def test_a_stopped_training_continues_to_the_same_weights(tmp_path):
    module, loss_at = problem()
    straight = fit("toy", module, loss_at, CONFIG, tmp_path / "a", log=lambda row: None, save_every=10)

    module, loss_at = problem()

    def stops(step: int):
        if step == 25:
            raise KeyboardInterrupt
        return loss_at(step)

    with pytest.raises(KeyboardInterrupt):
        fit("toy", module, stops, CONFIG, tmp_path / "b", log=lambda row: None, save_every=10)
    module, loss_at = problem()
    resumed = fit("toy", module, loss_at, CONFIG, tmp_path / "b", log=lambda row: None, save_every=10)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_training_reaches_the_known_answer(tmp_path):
    module, loss_at = problem()
    fitted = fit(
        "toy", module, loss_at, FitConfig(steps=300, batch_size=16, lr=0.1, weight_decay=0), tmp_path, log=print
    )
    assert torch.allclose(fitted.weight, torch.ones(1, 3), atol=1e-2)


def test_the_rate_warms_up_to_its_peak_and_ends_at_two_percent():
    assert lr_at(CONFIG, 0) == pytest.approx(0.02)
    assert lr_at(CONFIG, 4) == pytest.approx(0.1)
    assert lr_at(CONFIG, 40) == pytest.approx(0.002)
