"""Seams of accelerate and DeepSpeed that the engine leans on."""

import deepspeed.ops
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin


def test_the_environment_beats_the_argument_but_not_the_plugin(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    assert Accelerator(cpu=True, gradient_accumulation_steps=2).gradient_accumulation_steps == 8
    plugin = GradientAccumulationPlugin(num_steps=2)
    assert Accelerator(cpu=True, gradient_accumulation_plugin=plugin).gradient_accumulation_steps == 2


def test_the_compiled_op_that_the_engine_switches_off_has_its_name():
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


def test_a_prepared_optimizer_keeps_its_groups_and_its_inner_one():
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(1))
    inner = torch.optim.AdamW([weight], lr=1.0, fused=True)
    prepared = accelerator.prepare(inner)
    prepared.param_groups[0]["lr"] = 0.5
    assert prepared.optimizer is inner
    assert inner.param_groups[0]["lr"] == 0.5
