from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from ttd.bridge.conditioner import EEGConditioner, PerceiverConditionerConfig, load_bridge, save_bridge
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.bridge.resampler import ResamplerConfig
from ttd.config import UserError
from ttd.encoders import InceptSADConfig, build_encoder

RESAMPLER = ResamplerConfig(n_queries=4, depth=1, n_heads=2)


def conditioner(**changes) -> EEGConditioner:
    torch.manual_seed(0)
    encoder = build_encoder(
        InceptSADConfig(embed_dim=16, depth=1, n_heads=2), n_times=64, sfreq=128, ch_names=["Fz", "Cz", "Pz"]
    )
    head = ClipHead(ClipHeadConfig(), embed_dim=16, n_tokens=encoder.n_tokens, clip_dim=6)
    config = PerceiverConditionerConfig(resampler=RESAMPLER, **changes)
    return EEGConditioner.build(config, encoder=encoder, clip_head=head, context_dim=8, pooled_dim=5)


def test_a_condition_has_the_shapes_the_unet_asks_for():
    condition = conditioner()(torch.randn(3, 3, 64))
    assert [tuple(x.shape) for x in condition] == [(3, 4, 8), (3, 5), (3, 6)]


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode():
    module = conditioner(freeze=("encoder",)).train()
    assert module.count_trainable()["encoder"] == 0
    assert module.count_trainable()["clip_head"] == sum(p.numel() for p in module.clip_head.parameters())
    assert not any(part.training for part in module.encoder.modules())
    assert module.bridge.training
    before = {name: x.clone() for name, x in module.encoder.state_dict().items()}
    sum(x.sum() for x in module(torch.randn(3, 3, 64))).backward()
    assert all(torch.equal(before[name], x) for name, x in module.encoder.state_dict().items())
    assert all(p.grad is None for p in module.encoder.parameters())


def test_with_nothing_frozen_everything_is_trained():
    module = conditioner(freeze=()).train()
    assert sum(module.count_trainable().values()) == sum(p.numel() for p in module.parameters())
    assert module.encoder.training


def test_the_count_notices_when_somebody_unfreezes_behind_the_policy():
    module = conditioner()
    next(module.encoder.parameters()).requires_grad_(True)
    with pytest.raises(AssertionError, match="encoder"):
        module.count_trainable()


def test_the_aligned_token_carries_the_embedding_into_the_context():
    module = conditioner().eval()
    tokens, clip = torch.randn(1, 8, 16), torch.randn(2, 1, 6)
    with_one, with_other = (module.bridge(tokens, embedding)[0] for embedding in clip)
    assert not torch.allclose(with_one, with_other, atol=1e-4)
    assert torch.allclose(module.bridge(tokens, 3 * clip[0])[0], with_one, atol=1e-5)  # its length does not matter
    original = conditioner(aligned_token=False).eval()
    assert torch.equal(original.bridge(tokens, clip[0])[0], original.bridge(tokens, clip[1])[0])


def test_a_saved_bridge_comes_back_bit_for_bit(tmp_path):
    module = conditioner().eval()
    save_bridge(tmp_path, module.bridge)
    tokens, clip = torch.randn(2, 8, 16), torch.randn(2, 6)
    for a, b in zip(load_bridge(tmp_path).eval()(tokens, clip), module.bridge(tokens, clip), strict=True):
        assert torch.equal(a, b)


def test_a_bridge_with_a_tensor_of_another_shape_is_refused_by_name(tmp_path):
    save_bridge(tmp_path, conditioner().bridge)
    weights = load_file(tmp_path / "model.safetensors")
    weights["pooled.project.weight"] = torch.zeros(5, 9)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"pooled\.project\.weight"):
        load_bridge(tmp_path)


def test_a_folder_without_a_bridge_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no bridge"):
        load_bridge(tmp_path)
