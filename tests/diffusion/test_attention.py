from __future__ import annotations

import pytest
import torch

from ttd.config import UserError
from ttd.diffusion.attention import attention_problem, compile_blocks, compiler_problem, live_attention, set_attention
from ttd.diffusion.lora import LoRAConfig, add_lora


def forward(unet) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    added = {"text_embeds": torch.randn(1, 8, generator=g), "time_ids": torch.zeros(1, 6)}
    noisy, context = torch.randn(1, 4, 16, 16, generator=g), torch.randn(1, 4, 16, generator=g)
    with torch.no_grad():
        return unet(noisy, torch.tensor([10]), encoder_hidden_states=context, added_cond_kwargs=added).sample


def test_the_switch_exchanges_the_processors_and_not_the_numbers(random_base, monkeypatch):
    unet = random_base().unet
    add_lora(unet, LoRAConfig(rank=2))
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    assert set_attention(unet, "auto") == live_attention(unet) == "sdpa"
    with_sdpa = forward(unet)
    assert calls
    calls.clear()
    assert set_attention(unet, "math") == live_attention(unet) == "math"
    assert torch.allclose(forward(unet), with_sdpa, atol=1e-5)
    assert not calls


def adapters_and_gradients(unet, batch):
    unet.zero_grad()
    g = torch.Generator().manual_seed(batch)
    added = {"text_embeds": torch.randn(batch, 8, generator=g), "time_ids": torch.zeros(batch, 6)}
    noisy, context = torch.randn(batch, 4, 16, 16, generator=g), torch.randn(batch, 4, 16, generator=g)
    t = torch.arange(batch) * 10
    unet(noisy, t, encoder_hidden_states=context, added_cond_kwargs=added).sample.square().mean().backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.skipif(compiler_problem(True) is not None, reason="there is no C compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_have_the_same_gradients_and_weights_of_the_same_names(random_base, checkpointing):
    unets = [random_base().unet, random_base().unet]
    for unet in unets:
        torch.manual_seed(0)
        add_lora(unet, LoRAConfig(rank=2))
        set_attention(unet, "auto")
        if checkpointing:
            unet.enable_gradient_checkpointing()
        for name, p in unet.train().named_parameters():
            if "lora_B" in name:  # zero in a new adapter, whose first matrix then has no gradient
                p.data.fill_(0.01)
    assert compile_blocks(unets[1]) == 4  # one down, one in the middle, two up
    for batch in (2, 3):  # the last batch of a validation part is smaller
        eager, compiled = (adapters_and_gradients(unet, batch) for unet in unets)
        assert eager.keys() == compiled.keys()
        whole, difference = (
            torch.cat([x.flatten() for x in values])
            for values in (eager.values(), [compiled[name] - value for name, value in eager.items()])
        )
        assert float(whole.norm()) > 1e-3
        assert float(difference.norm() / whole.norm()) < 1e-4


def test_a_machine_without_a_compiler_is_told_before_it_starts(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "install gcc" in compiler_problem(True)
    assert compiler_problem(False) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_xformers_without_a_gpu_is_refused_with_the_remedy(random_base):
    assert "needs a CUDA device" in attention_problem("xformers")
    with pytest.raises(UserError, match="use attention: sdpa"):
        set_attention(random_base().unet, "xformers")
