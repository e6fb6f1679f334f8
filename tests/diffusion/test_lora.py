from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from ttd.config import UserError
from ttd.diffusion.lora import LoRAConfig, add_lora, load_lora, save_lora

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from sdxl_shapes import UNET as SDXL


def forward(unet) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    added = {"text_embeds": torch.randn(2, 8, generator=g), "time_ids": torch.zeros(2, 6)}
    noisy, context = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 4, 16, generator=g)
    with torch.no_grad():
        return unet(noisy, torch.tensor([10, 900]), encoder_hidden_states=context, added_cond_kwargs=added).sample


def perturbed(unet, config: LoRAConfig):
    add_lora(unet, config)
    for i, p in enumerate(p for p in unet.parameters() if p.requires_grad):
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return unet


def test_rank_16_on_the_real_unet_has_23224320_parameters():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
        assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
        assert add_lora(unet, LoRAConfig(rank=16)) == 23_224_320


def test_rank_0_leaves_the_unet_without_trainable_weights(random_base):
    assert add_lora(random_base().unet, LoRAConfig(rank=0)) == 0


def test_adapters_of_a_half_precision_base_are_float32(random_base):
    unet = random_base().unet.to(torch.bfloat16)
    add_lora(unet, LoRAConfig(rank=2))
    assert {p.dtype for p in unet.parameters() if p.requires_grad} == {torch.float32}


CONVOLUTIONS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "conv_in", "conv_out")


@pytest.mark.parametrize("targets", [LoRAConfig().targets, CONVOLUTIONS], ids=["attention", "convolutions too"])
def test_saved_adapters_give_the_same_bits_here_and_in_diffusers(random_base, tmp_path, targets):
    trained = perturbed(random_base().unet, LoRAConfig(rank=4, alpha=8, targets=targets))
    save_lora(trained, tmp_path)

    ours = random_base().unet
    assert not torch.equal(forward(ours), forward(trained))
    load_lora(ours, tmp_path)
    assert torch.equal(forward(ours), forward(trained))

    base = random_base()
    pipe = StableDiffusionXLPipeline(
        vae=base.vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=base.unet,
        scheduler=base.noise_scheduler, add_watermarker=False,
    )  # fmt: skip
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(forward(pipe.unet), forward(trained))


def test_a_folder_without_adapters_is_refused(random_base, tmp_path):
    with pytest.raises(UserError, match=r"no pytorch_lora_weights\.safetensors"):
        load_lora(random_base().unet, tmp_path)


def test_adapters_of_another_unet_are_refused(random_base, tmp_path):
    save_lora(perturbed(random_base().unet, LoRAConfig(rank=2)), tmp_path)
    for change in ({"block_out_channels": (16, 64)}, {"transformer_layers_per_block": 2}):
        config = dict(random_base().unet.config) | change
        with pytest.raises(UserError, match="do not fit"):
            load_lora(UNet2DConditionModel.from_config(config), tmp_path)
