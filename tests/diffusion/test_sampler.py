from __future__ import annotations

import pytest
import torch

from ttd.diffusion.sampler import KINDS, SamplerConfig, make_sampler, sample


def conditions(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, 16, generator=g), torch.randn(n, 8, generator=g)


def test_25_karras_steps_fall_from_the_last_level_to_no_noise(random_base):
    scheduler = make_sampler(random_base(), SamplerConfig(steps=25))
    assert len(scheduler.timesteps) == 25
    assert scheduler.timesteps[0] >= 990
    assert (scheduler.sigmas.diff() < 0).all()
    assert scheduler.sigmas[-1] == 0
    assert scheduler.config.prediction_type == "v_prediction"


def test_a_picture_does_not_depend_on_its_batch(random_base):
    base, (context, pooled), config = random_base(), conditions(3), SamplerConfig(steps=4, guidance=3)
    together = sample(base, context, pooled, seeds=[5, 6, 7], config=config)
    alone = sample(base, context[1:2], pooled[1:2], seeds=[6], config=config)
    assert together.shape == (3, 3, 32, 32)
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_pictures_have_the_size_that_was_trained_and_the_unet_is_told_so(random_base):
    base, (context, pooled), told = random_base(), conditions(2), []
    base.unet.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    images = sample(base, context, pooled, seeds=[1, 2], config=SamplerConfig(steps=2, guidance=1), picture_size=64)
    assert images.shape == (2, 3, 64, 64)
    assert told[0].tolist() == [[64, 64, 0, 0, 64, 64]] * 2


def test_guidance_of_1_equals_no_guidance(random_base):
    base, (context, pooled) = random_base(), conditions(2)
    calls = []
    base.unet.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    none = sample(base, context, pooled, seeds=[1, 2], config=SamplerConfig(steps=4, guidance=1))
    almost = sample(base, context, pooled, seeds=[1, 2], config=SamplerConfig(steps=4, guidance=1 + 1e-6))
    assert calls == [2] * 4 + [4] * 4
    assert torch.allclose(none, almost, atol=1e-4)


def test_without_a_condition_guidance_changes_nothing(random_base):
    base, (context, pooled) = random_base(), conditions(2)
    nothing = torch.zeros_like(context), torch.zeros_like(pooled)
    one = sample(base, *nothing, seeds=[1, 2], config=SamplerConfig(steps=3, guidance=1))
    five = sample(base, *nothing, seeds=[1, 2], config=SamplerConfig(steps=3, guidance=5))
    assert torch.allclose(one, five, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_perfect_predictor_is_followed_to_its_picture(random_base, name):
    """If the model always knows the clean latents, sampling must end there, for v and for ε alike."""
    for prediction_type in ("v_prediction", "epsilon"):
        base = random_base(prediction_type)
        clean = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(9))
        alphas = base.noise_scheduler.alphas_cumprod

        def know(module, args, kwargs, output, clean=clean, alphas=alphas, prediction_type=prediction_type):
            noisy, t = args[0], args[1]
            # Karras levels fall between two training steps; diffusers hands over the nearest lower integer.
            alpha = alphas[int(t)]
            noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            output.sample = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
            return output

        base.unet.register_forward_hook(know, with_kwargs=True)
        image = sample(base, *conditions(1), seeds=[0], config=SamplerConfig(name=name, steps=25, guidance=1))
        expected = (base.vae.decode(base.unscale(clean)).sample / 2 + 0.5).clamp(0, 1)
        assert (image - expected).abs().mean() < 0.02


def test_every_condition_needs_its_seed(random_base):
    with pytest.raises(ValueError, match="3 conditions need as many seeds, got 1"):
        sample(random_base(), *conditions(3), seeds=[1], config=SamplerConfig(steps=2))
