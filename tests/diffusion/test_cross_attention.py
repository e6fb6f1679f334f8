from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from ttd.config import UserError
from ttd.diffusion.cross_attention import load_cross_attention, save_cross_attention, train_cross_attention

PUBLISHED = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""Stable Diffusion 1.5's unet/config.json."""


def test_of_stable_diffusion_15_it_is_44_of_860_million_weights():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**PUBLISHED).requires_grad_(False)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    # Of width d: to_q d², to_k and to_v 768 d each, to_out d² + d, and the norm's 2 d; 5, 5 and 6 blocks of each width.
    by_hand = sum(n * (2 * d * d + 1539 * d) for n, d in ((5, 320), (5, 640), (6, 1280)))
    assert train_cross_attention(unet) == by_hand == 43_987_520
    trained = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert not any("resnets" in name for name in trained)  # their norm2 is another thing
    assert len(trained) == 16 * (5 + 2)


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_what_was_trained_comes_back_and_nothing_else_is_saved(random_base, tmp_path, name):
    unet, other = random_base(name=name).unet, random_base(name=name).unet
    train_cross_attention(unet)
    with torch.no_grad():
        for p in unet.parameters():
            p += 1 if p.requires_grad else 0
    save_cross_attention(unet, tmp_path)
    n_trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    assert sum(x.numel() for x in load_file(tmp_path / "model.safetensors").values()) == n_trained
    load_cross_attention(other, tmp_path)
    assert all(torch.equal(x, other.state_dict()[n]) for n, x in unet.state_dict().items())


def test_another_bases_is_refused_by_name_and_a_damaged_file_too(random_base, tmp_path):
    save_cross_attention(random_base(name="sdxl").unet, tmp_path)
    with pytest.raises(UserError, match=r"attn2.* do not fit the base's UNet; give the base it was trained on"):
        load_cross_attention(random_base(name="sd15").unet, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        load_cross_attention(random_base().unet, tmp_path)
