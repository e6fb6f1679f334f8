"""Stable Diffusion 1.5 as a base: its UNet as published, with a time condition added to the time-step embedding."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict

from ttd.config import UserError
from ttd.diffusion.base import Base, BaseConfig, find_missing, load_base, load_unet_config, time_ids
from ttd.diffusion.lora import LoRAConfig, add_lora, save_lora
from ttd.diffusion.memory import count
from ttd.diffusion.sampler import SamplerConfig, sample


def inputs(n: int = 3) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, 16, 16, generator=g), torch.tensor([5, 400, 990][:n]), torch.randn(n, 7, 16, generator=g)


def as_published(base: Base) -> UNet2DConditionModel:
    """The same weights in a UNet that has no such input."""
    unet = UNet2DConditionModel.from_config({**base.unet.config, "class_embed_type": None})
    unet.load_state_dict(base.unet.state_dict())
    return unet.eval()


@torch.no_grad()
def test_without_a_time_condition_it_is_the_published_unet(random_base):
    base = random_base("epsilon", name="sd15")
    noisy, t, context = inputs()
    expected = as_published(base)(noisy, t, context).sample
    assert torch.equal(base.predict(noisy, t, context, torch.zeros(3, 64), time_ids(3, 32, 32)), expected)


@torch.no_grad()
def test_the_time_condition_is_added_to_the_time_step_embedding(random_base):
    base = random_base("epsilon", name="sd15")
    noisy, t, context = inputs()
    pooled = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    published = as_published(base)
    published.time_embedding.register_forward_hook(lambda module, given, emb: emb + pooled)
    got = base.predict(noisy, t, context, pooled, time_ids(3, 32, 32))
    assert torch.allclose(got, published(noisy, t, context).sample, atol=1e-6)
    assert not torch.allclose(got, base.predict(noisy, t, context, 0 * pooled, time_ids(3, 32, 32)), atol=1e-3)


def test_its_widths_are_768_and_1280(random_base):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, class_embed_type="identity"
        )
    base = Base(unet, DDPMScheduler(), {"block_out_channels": (128, 256, 512, 512)})
    assert (base.context_dim, base.pooled_dim, base.vae_factor) == (768, 1280, 8)


def test_a_folder_is_read_under_the_name_of_its_interface_alone(write_base, tmp_path):
    sd15, sdxl = write_base(tmp_path / "sd15", "sd15"), write_base(tmp_path / "sdxl")
    config = BaseConfig(name="sd15", path=str(sd15))
    assert load_base(config).pooled_dim == 64
    assert load_unet_config(config)["class_embed_type"] == "identity"
    told = find_missing(BaseConfig(path=str(sd15)))
    assert told.startswith(
        f"base.name=sdxl: the UNet of {sd15} has the interface of sd15; give base={{name: sd15, path: …}} "
    )
    with pytest.raises(UserError, match=r"base\.name=sd15: .* has the interface of sdxl; give base=\{name: sdxl, "):
        load_base(BaseConfig(name="sd15", path=str(sdxl)))
    path = sd15 / "unet" / "config.json"
    path.write_text(path.read_text().replace('"addition_embed_type": null', '"addition_embed_type": "image"'))
    assert "has addition_embed_type='image': neither SDXL's interface nor Stable" in find_missing(config)
    for other in ('"in_channels": 9', '"class_embed_type": "timestep"', '"addition_embed_type": ["text_time"]'):
        path.write_text(f"{{{other}}}")
        assert "neither SDXL's interface nor Stable Diffusion 1.5's" in find_missing(config)
    for damaged in ("{", "[]", "[" * 100_000):
        path.write_text(damaged)
        assert f"{path} is damaged" in find_missing(config)


@pytest.mark.parametrize("name", ["ddim", "plms"])
def test_a_picture_does_not_depend_on_its_batch_and_hears_its_time_condition(random_base, name):
    base, config = random_base("epsilon", name="sd15"), SamplerConfig(name=name, steps=4, guidance=2.0)
    context, pooled = inputs()[2], torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    together = sample(base, context, pooled, seeds=[1, 2, 3], config=config)
    alone = sample(base, context[1:2], pooled[1:2], seeds=[2], config=config)
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(sample(base, context[1:2], 0 * pooled[1:2], seeds=[2], config=config), alone, atol=1e-4)


def test_plms_asks_the_unet_once_more_than_ddim(random_base, monkeypatch):
    base, asked = random_base("epsilon", name="sd15"), []
    monkeypatch.setattr(Base, "predict", lambda self, noisy, t, *rest: asked.append(int(t)) or torch.zeros_like(noisy))
    for name in ("ddim", "plms"):
        sample(base, torch.zeros(1, 7, 16), torch.zeros(1, 64), seeds=[0], config=SamplerConfig(name=name, steps=250))
    assert len(asked[:250]) == len(set(asked[:250])) == 250
    assert len(asked[250:]) == 251
    assert sorted(set(asked[250:])) == sorted(asked[:250])  # the second of its levels twice, Liu et al., eq. 23


def test_adapters_are_read_by_the_pipeline_of_diffusers(random_base, tmp_path):
    base = random_base("epsilon", name="sd15")
    add_lora(base.unet, LoRAConfig(rank=2))
    with torch.no_grad():
        for p in base.unet.parameters():
            p += 0.1 if p.requires_grad else 0
    save_lora(base.unet, tmp_path)
    plain = as_published(random_base("epsilon", name="sd15"))
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, plain, metadata=metadata)
    own, theirs = (
        get_peft_model_state_dict(unet, adapter_name=a) for unet, a in ((base.unet, "default"), (plain, "default_0"))
    )
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_memory_counts_what_is_in_training(write_base, tmp_path):
    config = load_unet_config(BaseConfig(name="sd15", path=str(write_base(tmp_path, "sd15"))))
    facts = {"dtype": torch.float32, "size": 16, "n_tokens": 7}
    frozen = count(config, LoRAConfig(rank=0), **facts)
    trained = count(config, LoRAConfig(rank=0), cross_attention=True, **facts)
    unet = load_base(BaseConfig(name="sd15", path=str(tmp_path))).unet
    n = sum(
        p.numel()
        for name, p in unet.named_parameters()
        if "transformer" in name and ("attn2" in name or "norm2" in name)
    )
    assert (frozen.trained, trained.trained) == (0, 16 * n)
    assert frozen.weights - trained.weights == 4 * n
