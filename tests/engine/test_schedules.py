import math

import pytest
import torch
from torch import nn

from ttd.engine.schedules import OptimConfig, lr_at, make_optimizer


def test_the_rate_rises_linearly_and_falls_along_half_a_cosine():
    config = OptimConfig(lr=1.0, warmup_steps=4, min_lr_ratio=0.1)
    assert [lr_at(config, s, 104) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(config, 4, 104) == 1.0
    assert lr_at(config, 54, 104) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_at(config, 29, 104) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert lr_at(config, 104, 104) == pytest.approx(0.1)


def test_a_constant_rate_keeps_its_warm_up():
    config = OptimConfig(lr=2.0, warmup_steps=2, schedule="constant")
    assert [lr_at(config, s, 10) for s in (0, 1, 2, 9)] == [1.0, 2.0, 2.0, 2.0]


def test_only_matrices_decay():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1))
    decayed, plain = make_optimizer(OptimConfig(weight_decay=0.5), module).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2, 3}
    assert {p.ndim for p in plain["params"]} == {1}


def test_frozen_weights_are_left_out_and_a_frozen_module_is_refused():
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    assert [p for g in make_optimizer(OptimConfig(), module).param_groups for p in g["params"]] == [module.bias]
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        make_optimizer(OptimConfig(), module.requires_grad_(False))


def test_one_update_is_adamw_by_the_paper():
    weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    module = nn.Module()
    module.weight = weight
    optimizer = make_optimizer(OptimConfig(lr=0.1, weight_decay=0.5), module)
    weight.grad = torch.tensor([[3.0, -0.2]])
    optimizer.step()
    # after one step the bias-corrected moments are the gradient and its square: an update of lr × sign
    assert torch.allclose(weight, torch.tensor([[2.0 * 0.95 - 0.1, -1.0 * 0.95 + 0.1]]), atol=1e-6)
