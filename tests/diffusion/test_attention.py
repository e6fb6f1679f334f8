from __future__ import annotations

import pytest
import torch

from ttd.config import UserError
from ttd.diffusion.attention import attention_problem, live_attention, set_attention
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_xformers_without_a_gpu_is_refused_with_the_remedy(random_base):
    assert "needs a CUDA device" in attention_problem("xformers")
    with pytest.raises(UserError, match="use attention: sdpa"):
        set_attention(random_base().unet, "xformers")
