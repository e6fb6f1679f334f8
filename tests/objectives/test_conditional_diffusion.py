from __future__ import annotations

import math

import pytest
import torch

from ttd.bridge.conditioner import Condition, EEGConditioner, PerceiverConditionerConfig
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.bridge.resampler import ResamplerConfig
from ttd.diffusion.lora import LoRAConfig, add_lora
from ttd.diffusion.text_targets import split_states
from ttd.encoders import InceptSADConfig, build_encoder
from ttd.objectives.conditional_diffusion import (
    ConditionalDiffusion,
    ConditionalDiffusionConfig,
    info_nce,
    min_snr_weight,
)
from ttd.objectives.contrastive import TargetSpace

SPACE = TargetSpace(torch.zeros(6), torch.eye(6))


def objective(
    base,
    *,
    rank: int = 4,
    freeze: tuple = ("encoder",),
    bank: torch.Tensor | None = None,
    text_bank: torch.Tensor | None = None,
    **changes,
) -> ConditionalDiffusion:
    torch.manual_seed(0)
    encoder = build_encoder(
        InceptSADConfig(embed_dim=16, depth=1, n_heads=2), n_times=64, sfreq=128, ch_names=["Fz", "Cz", "Pz"]
    )
    conditioner = EEGConditioner.build(
        PerceiverConditionerConfig(
            resampler=ResamplerConfig(n_queries=4, depth=1, n_heads=2, dropout=0), freeze=freeze
        ),
        encoder=encoder,
        clip_head=ClipHead(ClipHeadConfig(dropout=0), embed_dim=16, n_tokens=encoder.n_tokens, clip_dim=6),
        context_dim=base.context_dim,
        pooled_dim=base.pooled_dim,
    )
    add_lora(base.unet, LoRAConfig(rank=rank))
    bank = torch.randn(20, 6, generator=torch.Generator().manual_seed(8)) if bank is None else bank
    config = ConditionalDiffusionConfig(**changes)
    return ConditionalDiffusion(
        config,
        conditioner=conditioner,
        base=base,
        space=SPACE,
        bank=bank,
        global_batch_size=8,
        seed=3,
        text_bank=text_bank,
    )


def make_batch(n: int = 8) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    moments = torch.cat([torch.randn(n, 4, 8, 8, generator=g), torch.full((n, 4, 8, 8), -8.0)], dim=1)
    return {
        "eeg": torch.randn(n, 3, 64, generator=g),
        "vae": moments,
        "vae.size-ids": torch.tensor([[40.0, 50, 0, 2, 16, 16]]).repeat(n, 1),
        "clip": torch.randn(n, 6, generator=g),
        "position": torch.arange(n),
    }


def rows(batch, chosen) -> dict[str, torch.Tensor]:
    return {name: x[chosen] for name, x in batch.items()}


def test_the_same_positions_give_the_same_loss_in_any_order_and_any_cut(random_base):
    module, batch = objective(random_base()).train(), make_batch()
    together = module(batch)["loss"]
    torch.manual_seed(77)  # the global generator has no say
    shuffled = module(rows(batch, torch.randperm(8)))["loss"]
    halves = [module(rows(batch, slice(a, a + 4)))["loss"] for a in (0, 4)]
    assert shuffled.item() == pytest.approx(together.item(), rel=1e-5)
    assert sum(halves).item() / 2 == pytest.approx(together.item(), rel=1e-5)
    later = module(batch | {"position": torch.arange(8) + 8})["loss"]
    assert later.item() != pytest.approx(together.item(), rel=1e-4)


def spy(module) -> list[dict]:
    calls: list[dict] = []
    module.unet.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


def test_condition_dropout_zeroes_exactly_the_keyed_samples(random_base):
    module, batch = objective(random_base(), condition_dropout=0.5).train(), make_batch()
    calls = spy(module)
    module(batch)
    context, pooled = calls[0]["encoder_hidden_states"], calls[0]["added_cond_kwargs"]["text_embeds"]
    dropped = (context == 0).flatten(1).all(1)
    assert 0 < dropped.sum() < 8
    assert torch.equal(dropped, (pooled == 0).all(1))
    assert (context[~dropped] != 0).flatten(1).all()
    module(rows(batch, torch.arange(8).flip(0)))
    assert torch.equal((calls[1]["encoder_hidden_states"] == 0).flatten(1).all(1), dropped.flip(0))


def test_nothing_is_dropped_in_evaluation(random_base):
    module = objective(random_base(), condition_dropout=0.9).eval()
    calls = spy(module)
    module(make_batch())
    assert (calls[0]["encoder_hidden_states"] != 0).all()


def test_the_unet_is_told_the_size_and_the_crop_of_each_picture(random_base):
    module, batch = objective(random_base()), make_batch()
    batch["vae.size-ids"][3] = torch.tensor([300.0, 200, 4, 0, 16, 16])
    calls = spy(module)
    module(batch)
    assert torch.equal(calls[0]["added_cond_kwargs"]["time_ids"], batch["vae.size-ids"])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_costs_nothing(random_base, prediction_type):
    base = random_base(prediction_type)
    module, batch = objective(base, clip_weight=0.0).eval(), make_batch()
    batch["vae"][:, 4:] = -1e9  # no variance: the latents are known (clamped to e^-15)
    clean = batch["vae"][:, :4] * 0.5  # the random base's scaling factor

    def know(m, args, kwargs, output):
        alpha = base.noise_scheduler.alphas_cumprod[args[1]].view(-1, 1, 1, 1)
        noise = (args[0] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        output.sample = noise if prediction_type == "epsilon" else v
        return output

    assert module(batch)["loss"] > 0.05
    module.unet.register_forward_hook(know, with_kwargs=True)
    assert module(batch)["loss"] < 1e-6


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_the_clean_picture_by_at_most_gamma(random_base, prediction_type):
    """Hang et al.: on x0 the weight is min(SNR, γ); the error of ε is SNR, that of v SNR + 1 times the error of x0."""
    scheduler = random_base(prediction_type).noise_scheduler
    t = torch.tensor([0, 100, 500, 999])
    alpha = scheduler.alphas_cumprod[t].double()
    snr = alpha / (1 - alpha)
    to_x0 = snr if prediction_type == "epsilon" else snr + 1
    expected = (snr.clamp(max=5) / to_x0).float()
    assert torch.allclose(min_snr_weight(scheduler, t, 5.0), expected, rtol=1e-4)
    assert (min_snr_weight(scheduler, t, None) == 1).all()


def test_info_nce_of_equal_logits_is_the_logarithm_of_their_number():
    eye = torch.eye(8)
    loss, _ = info_nce(eye[:1], eye[1:2], eye[2:7], torch.tensor(10.0))  # all cosines 0: one own, five others
    assert loss.item() == pytest.approx(math.log(6))


def test_the_cosine_loss_is_one_minus_the_cosine_and_every_weight_has_a_gradient(random_base):
    module, batch = objective(random_base(), clip_loss="cosine", clip_weight=1.0, freeze=()), make_batch()
    with torch.no_grad():
        told, predicted = module.eval()(batch), module.conditioner(batch["eeg"]).clip
    expected = 1 - torch.nn.functional.cosine_similarity(predicted.double(), SPACE(batch["clip"]).double()).mean()
    assert told["clip"].item() == pytest.approx(expected.item(), abs=1e-5)
    module.train()(batch)["loss"].backward()
    trained = [(name, p.grad) for name, p in module.named_parameters() if p.requires_grad]
    assert [name for name, grad in trained if grad is None] == []
    assert dict(trained)["conditioner.clip_head.logit_scale"].item() == 0  # is not read


def test_the_same_picture_in_the_bank_is_no_negative():
    eye = torch.eye(8)
    with_itself = torch.cat([eye[:1], eye[2:7]])
    loss, top1 = info_nce(eye[:1], eye[:1], with_itself, torch.tensor(10.0))
    assert loss.item() == pytest.approx(math.log(1 + 5 * math.exp(-10)), rel=1e-3)
    assert top1 == 1


def test_the_drawn_negatives_depend_on_the_step_alone(random_base):
    bank = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    module, batch = objective(random_base(), bank=bank, n_negatives=10), make_batch()
    first = module._negatives(batch["position"])
    assert first.shape == (10, 6)
    assert torch.equal(first, module._negatives(torch.arange(7, 3, -1)))
    assert not torch.equal(first, module._negatives(batch["position"] + 8))


def test_only_bridge_head_and_adapters_are_trained(random_base):
    batch = make_batch()
    module = objective(random_base(), bank=batch["clip"]).train()  # the own picture stands in the bank
    module(batch)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    with_gradient = {name for name, p in module.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in module.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in with_gradient} == {"conditioner", "unet"}
    assert all("lora" in name for name in with_gradient if name.startswith("unet"))
    assert not any(name.startswith("conditioner.encoder") for name in with_gradient)


def test_gradient_checkpointing_changes_no_gradient(random_base):
    gradients = []
    for checkpointing in (False, True):
        module = objective(random_base(), gradient_checkpointing=checkpointing).train()
        module(make_batch())["loss"].backward()
        gradients.append([p.grad for p in module.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_eight_pairs_are_learned_by_heart(random_base):
    module, batch = objective(random_base(), rank=8, freeze=(), condition_dropout=0.0).train(), make_batch()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        out = module(batch | {"position": torch.arange(8) + 8 * (step % 2)})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out)
    first, last = losses[0], losses[-2]
    assert last["clip"] < 0.2 * first["clip"]
    assert last["diffusion"] < 0.85 * first["diffusion"]
    assert last["clip_top1"] == 1


def test_a_base_that_predicts_neither_noise_nor_velocity_is_refused(random_base):
    with pytest.raises(ValueError, match="'sample' of the base"):
        objective(random_base("sample"))


def test_the_text_loss_is_zero_for_the_bases_own_words_and_the_first_steps_learn_nothing_else(random_base):
    base = random_base()
    g = torch.Generator().manual_seed(4)
    states = torch.randn(50, 4 * base.context_dim + base.pooled_dim, generator=g) * 3
    module = objective(base, text_weight=1.0, text_only_steps=2, clip_weight=0.0, text_bank=states).train()
    batch = make_batch() | {"text": states[:8]}
    context, pooled = split_states(states[:8], context_dim=base.context_dim, pooled_dim=base.pooled_dim)
    assert module._text_loss(Condition(context, pooled, context), states[:8]).item() == 0
    mean = states.mean(0).expand(8, -1)
    guess = split_states(mean, context_dim=base.context_dim, pooled_dim=base.pooled_dim)
    assert module._text_loss(Condition(*guess, context), states[:8]).item() == pytest.approx(
        2, rel=0.25
    )  # as the spread is
    early = module(batch)
    assert "diffusion" not in early
    assert early["loss"].item() == pytest.approx(early["text"].item())
    early["loss"].backward()
    adapters = [p.grad for p in module.unet.parameters() if p.requires_grad]
    assert adapters
    assert all(grad is not None and not grad.any() for grad in adapters)
    late = module(batch | {"position": batch["position"] + 16})  # step 2 of batches of 8
    assert late["loss"].item() == pytest.approx((late["text"] + late["diffusion"]).item())


def test_text_states_of_another_base_are_refused():
    with pytest.raises(ValueError, match="belong to another base"):
        split_states(torch.zeros(1, 100), context_dim=16, pooled_dim=8)


def test_the_unet_hears_the_words_in_training_and_the_eeg_in_evaluation(random_base):
    base = random_base()
    states = torch.randn(8, 4 * base.context_dim + base.pooled_dim, generator=torch.Generator().manual_seed(4))
    module = objective(base, text_weight=1.0, words_share=1.0, condition_dropout=0.0, text_bank=states)
    batch, calls = make_batch() | {"text": states}, spy(module)
    module.train()(batch)
    context, pooled = split_states(states, context_dim=base.context_dim, pooled_dim=base.pooled_dim)
    assert torch.equal(calls[0]["encoder_hidden_states"], context)
    assert torch.equal(calls[0]["added_cond_kwargs"]["text_embeds"], pooled)
    module.eval()(batch)
    assert torch.equal(calls[1]["encoder_hidden_states"], module.conditioner(batch["eeg"]).context)
