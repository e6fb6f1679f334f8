from __future__ import annotations

import pytest
import torch

from ttd.bridge.heads import PooledProjection
from ttd.bridge.resampler import PerceiverResampler, ResamplerConfig


def n_parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("queries_see_each_other", [False, True])
def test_16_queries_of_2048_from_1024_have_102864896_parameters(queries_see_each_other):
    config = ResamplerConfig(queries_see_each_other=queries_see_each_other)
    with torch.device("meta"):
        assert n_parameters(PerceiverResampler(config, eeg_dim=1024, context_dim=2048)) == 102_864_896


def test_the_pooled_projection_of_sdxl_has_2622720_parameters():
    assert n_parameters(PooledProjection(context_dim=2048, pooled_dim=1280)) == 2_622_720


def test_any_number_of_tokens_becomes_the_same_number_of_conditioning_tokens():
    resampler = PerceiverResampler(ResamplerConfig(n_queries=5, n_heads=2), eeg_dim=12, context_dim=8)
    for n in (1, 15, 32):
        assert resampler(torch.randn(3, n, 12)).shape == (3, 5, 8)


def test_the_originals_form_is_layer_by_layer_cross_attention_and_feed_forward():
    """Recomputed with the formula of the paper: softmax(q kᵀ / √d) v, heads side by side."""
    torch.manual_seed(0)
    config = ResamplerConfig(n_queries=3, depth=1, n_heads=2, queries_see_each_other=False)
    module = PerceiverResampler(config, eeg_dim=6, context_dim=8).eval()
    tokens = torch.randn(2, 5, 6)
    layer, attention = module.layers[0], module.layers[0].cross_attn

    kv = layer.norm_kv(module.norm_in(module.input_proj(tokens)))
    x = module.latent_tokens.expand(2, -1, -1)
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    q, k, v = (y @ w.T + b for y, w, b in ((layer.norm1(x), wq, bq), (kv, wk, bk), (kv, wv, bv)))
    q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in (q, k, v))
    heads = (q @ k.mT / 4**0.5).softmax(-1) @ v
    x = x + attention.out_proj(heads.transpose(1, 2).flatten(2))
    x = x + layer.ff(layer.norm2(x))
    assert torch.allclose(module(tokens), module.norm_out(x), atol=1e-5)


def test_queries_that_see_each_other_change_the_outcome():
    torch.manual_seed(0)
    with_each_other = PerceiverResampler(ResamplerConfig(n_heads=2), eeg_dim=6, context_dim=8).eval()
    alone = PerceiverResampler(
        ResamplerConfig(n_heads=2, queries_see_each_other=False), eeg_dim=6, context_dim=8
    ).eval()
    alone.load_state_dict(with_each_other.state_dict())
    tokens = torch.randn(2, 5, 6)
    assert not torch.allclose(alone(tokens), with_each_other(tokens), atol=1e-4)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="context_dim=10 must be divisible by n_heads=8"):
        PerceiverResampler(ResamplerConfig(), eeg_dim=6, context_dim=10)
