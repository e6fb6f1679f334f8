from __future__ import annotations

import pytest
import torch

from ttd.bridge.conditioner import EEGConditioner, EldmConditionerConfig, load_bridge, save_bridge
from ttd.bridge.eldm import EldmBridge, EldmBridgeConfig
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.config import UserError
from ttd.encoders import build_encoder
from ttd.encoders.brain3d import Brain3DConfig

SIZES = {"n_tokens": 5, "eeg_dim": 16, "context_dim": 12, "pooled_dim": 20}


def bridge(n_queries: int = 7, **sizes: int) -> EldmBridge:
    torch.manual_seed(0)
    return EldmBridge(EldmBridgeConfig(n_queries=n_queries), **SIZES | sizes).eval()


def test_at_the_originals_sizes_it_has_the_originals_maps():
    """128 tokens of 1024 → 64 → 77 of 768; 77 → 38 → 1, 768 → 1280."""
    own = EldmBridge(EldmBridgeConfig(), n_tokens=128, eeg_dim=1024, context_dim=768, pooled_dim=1280)
    shapes = {name: tuple(p.shape) for name, p in own.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "channel_mapper.0.weight": (64, 128, 1),
        "channel_mapper.1.weight": (77, 64, 1),
        "dim_mapper.weight": (768, 1024),
        "time_condition.0.weight": (38, 77, 1),
        "time_condition.1.weight": (1, 38, 1),
        "time_condition.2.weight": (1280, 768),
    }
    context, pooled = own(torch.randn(2, 128, 1024), torch.randn(2, 768))
    assert (context.shape, pooled.shape) == ((2, 77, 768), (2, 1280))


def test_context_and_time_condition_are_the_products_of_its_matrices():
    own, tokens = bridge(), torch.randn(3, 5, 16)
    w = {name: p.double().squeeze(-1) if p.ndim == 3 else p.double() for name, p in own.named_parameters()}
    x = tokens.double()
    for name in ("channel_mapper.0", "channel_mapper.1"):
        x = torch.einsum("qn,bne->bqe", w[f"{name}.weight"], x) + w[f"{name}.bias"][:, None]
    context = x @ w["dim_mapper.weight"].T + w["dim_mapper.bias"]
    y = context
    for name in ("time_condition.0", "time_condition.1"):
        y = torch.einsum("qn,bne->bqe", w[f"{name}.weight"], y) + w[f"{name}.bias"][:, None]
    pooled = y[:, 0] @ w["time_condition.2.weight"].T + w["time_condition.2.bias"]
    got = own(tokens, torch.randn(3, 9))
    assert torch.allclose(got[0].double(), context, atol=1e-5)
    assert torch.allclose(got[1].double(), pooled, atol=1e-5)


def test_an_encoder_of_one_token_passes_through_one():
    own = bridge(n_tokens=1, n_queries=1)
    assert own.channel_mapper[0].weight.shape == (1, 1, 1)
    assert [x.shape for x in own(torch.randn(2, 1, 16), torch.randn(2, 9))] == [(2, 1, 12), (2, 20)]


def test_a_saved_one_comes_back_bit_for_bit_and_a_cut_one_is_refused(tmp_path):
    own, tokens, clip = bridge(), torch.randn(3, 5, 16), torch.randn(3, 9)
    save_bridge(tmp_path, own)
    again = load_bridge(tmp_path)
    assert isinstance(again, EldmBridge)
    assert all(torch.equal(x, y) for x, y in zip(again.eval()(tokens, clip), own(tokens, clip), strict=True))
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"n_queries": 7', '"n_queries": 8'))
    with pytest.raises(UserError, match=r"channel_mapper\.1"):
        load_bridge(tmp_path)


def test_it_stands_between_any_encoder_and_head():
    encoder = build_encoder(
        Brain3DConfig(embed_dim=16, kernels_samples=(9, 5, 3), n_maps=(8, 12, 16)),
        n_times=64, sfreq=128, ch_names=["Fz", "Cz", "Pz"],
    )  # fmt: skip
    head = ClipHead(ClipHeadConfig(mode="weighted"), embed_dim=16, n_tokens=encoder.n_tokens, clip_dim=6)
    module = EEGConditioner.build(
        EldmConditionerConfig(n_queries=4, freeze=()), encoder=encoder, clip_head=head, context_dim=8, pooled_dim=5
    )
    condition = module(torch.randn(3, 3, 64))
    assert [tuple(x.shape) for x in condition] == [(3, 4, 8), (3, 5), (3, 6)]
    assert sum(module.count_trainable().values()) == sum(p.numel() for p in module.parameters())


def test_the_weighted_head_is_dreamdiffusions_mapping():
    """Conv1d 128 → 1 over the tokens, Linear 1024 → 768; beside them the logit scale, which its cosine does not read."""
    head = ClipHead(ClipHeadConfig(mode="weighted", dropout=0), embed_dim=1024, n_tokens=128, clip_dim=768)
    assert sum(p.numel() for p in head.parameters()) == (128 + 1) + (1024 * 768 + 768) + 1
    tokens = torch.randn(2, 128, 1024)
    summed = torch.einsum("n,bne->be", head.sum.weight[0, :, 0], tokens) + head.sum.bias
    assert torch.allclose(head(tokens), head.project(summed), atol=1e-4)
