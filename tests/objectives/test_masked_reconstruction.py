import pytest
import torch

from ttd.baselines.component_filter import fit_component_filter
from ttd.baselines.interpolation import predict_linear
from ttd.encoders import InceptSADConfig, build_encoder
from ttd.encoders.decoder import DecoderConfig
from ttd.encoders.masking import MaskingConfig
from ttd.objectives.masked_reconstruction import (
    MaskedReconstruction,
    MaskedReconstructionConfig,
    hidden_samples,
    masked_mse,
)

CONFIG = MaskedReconstructionConfig(
    masking=MaskingConfig(span=8), decoder=DecoderConfig(width=32, depth=1, n_heads=2, dropout=0.0)
)


def make(**changes) -> MaskedReconstruction:
    torch.manual_seed(0)
    config = MaskedReconstructionConfig.model_validate({**CONFIG.model_dump(), **changes})
    encoder = build_encoder(
        InceptSADConfig(embed_dim=32, depth=1, n_heads=2, stem_dropout=0.0, dropout=0.0),
        n_times=128,
        sfreq=128,
        ch_names=["O1", "Oz", "O2"],
    )
    start = fit_component_filter(waves(64, seed=1)["eeg"]) if config.start == "wiener" else None
    return MaskedReconstruction(config, encoder=encoder, seed=0, component_filter=start)


def waves(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """10 Hz waves of variance 1 and random phase on three electrodes: hidden time follows from visible time."""
    phase = 6.28 * torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(seed))
    time = torch.arange(128) / 128
    eeg = 2**0.5 * torch.sin(6.283 * 10 * time + phase).expand(-1, 3, -1).contiguous()
    return {"eeg": eeg, "position": torch.arange(n)}


def test_only_hidden_time_counts():
    eeg, mask = torch.randn(2, 3, 10), torch.zeros(2, 10, dtype=torch.bool)
    mask[:, 3:6] = True
    predicted = eeg + 100.0
    predicted[..., 3:6] = eeg[..., 3:6] + 2.0
    assert masked_mse(predicted, eeg, mask).item() == pytest.approx(4.0, rel=1e-5)


def test_the_encoder_never_sees_the_hidden_samples():
    objective, batch = make().eval(), waves(4)
    mask = objective.mask(batch["position"])
    spoilt = batch["eeg"] + 1000.0 * mask[:, None]
    assert torch.equal(objective.reconstruct(batch["eeg"], mask), objective.reconstruct(spoilt, mask))


def test_the_loss_of_a_sample_belongs_to_its_position_alone():
    objective, batch = make().eval(), waves(4)
    with torch.no_grad():
        together = objective(batch)["loss"]
        apart = [objective({name: value[i : i + 1] for name, value in batch.items()})["loss"] for i in range(4)]
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)


def test_the_masked_error_falls_below_predicting_zero():
    objective = make()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(80):
        batch = waves(16, seed=step)
        batch["position"] += 16 * step
        losses = objective(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    objective.eval()
    held_out = waves(64, seed=10_000)
    with torch.no_grad():
        losses = objective(held_out)
    assert losses["zero"].item() == pytest.approx(1.0, abs=0.1)
    assert losses["loss"].item() < 0.7 * losses["zero"].item()


def test_an_absent_electrode_counts_nowhere():
    objective, batch = make().eval(), waves(4)
    batch["present"] = torch.tensor([True, False, True]).expand(4, -1)
    batch["eeg"][:, 1] = 0.0
    mask = objective.mask(batch["position"])
    with torch.no_grad():
        losses = objective(batch)
        error = (objective.reconstruct(batch["eeg"], mask) - batch["eeg"]).square()[:, [0, 2]]
    assert losses["loss"].item() == pytest.approx(error[mask[:, None].expand(-1, 2, -1)].mean().item(), rel=1e-5)
    others = {**batch, "present": torch.ones(4, 3, dtype=torch.bool)}
    assert objective(others)["zero"].item() == pytest.approx(2 / 3 * losses["zero"].item(), rel=1e-4)


def test_windows_of_different_caps_count_the_same_so_that_micro_batches_do_not_matter():
    objective, batch = make(masking={"span": 8, "electrodes": 0.34}), waves(4)
    batch["present"] = torch.tensor([[True] * 3, [True, False, False], [True, True, False], [True] * 3])
    objective.encoder.eval()  # its batch normalisation would see the others
    with torch.no_grad():
        together = objective(batch)["loss"]
        apart = [objective({name: value[i : i + 2] for name, value in batch.items()})["loss"] for i in (0, 2)]
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)


def test_a_dropped_electrode_is_unseen_and_counts_for_all_of_its_time():
    objective, batch = make(masking={"span": 8, "electrodes": 0.34}), waves(4)
    mask, dropped = objective.mask(batch["position"]), torch.tensor([False, True, False]).expand(4, -1)
    objective.eval()
    spoilt = batch["eeg"].clone()
    spoilt[:, 1] += 1000.0
    assert torch.equal(*(objective.reconstruct(x, mask, dropped) for x in (batch["eeg"], spoilt)))
    counted = hidden_samples(mask, None, dropped)
    assert bool(counted[:, 1].all())
    assert torch.equal(counted[:, 0], mask)
    with torch.no_grad():
        evaluated = objective(batch)["zero"]
        trained = objective.train()(batch)["zero"]
    assert evaluated != trained  # electrodes are hidden in training alone


@pytest.mark.parametrize("fill", ["zero", "start"])
@pytest.mark.parametrize("start", ["linear", "wiener"])
def test_training_begins_at_what_the_decoder_adds_to(start, fill):
    objective, batch = make(start=start, fill=fill).eval(), waves(8)
    mask = objective.mask(batch["position"])
    with torch.no_grad():
        out = objective.reconstruct(batch["eeg"], mask)
    added = objective.start(batch["eeg"].masked_fill(mask[:, None], 0.0), mask)
    assert torch.equal(out, added)
    assert torch.equal(added.masked_fill(mask[:, None], 0), batch["eeg"].masked_fill(mask[:, None], 0))
    if start == "linear":
        assert torch.allclose(added, predict_linear(batch["eeg"], mask))
    else:  # a wave of one frequency follows from what is visible of it
        assert masked_mse(added, batch["eeg"], mask) < 0.02
    spoilt = batch["eeg"] + 1000.0 * mask[:, None]
    assert torch.equal(objective.reconstruct(spoilt, mask), out)


def test_the_encoder_is_filled_with_what_the_decoder_adds_to_where_that_is_asked_for():
    seen = []
    for fill in ("zero", "start"):
        objective, batch = make(start="linear", fill=fill).eval(), waves(2)
        objective.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        mask = objective.mask(batch["position"])
        objective.reconstruct(batch["eeg"], mask)
    assert bool((seen[0][mask[:, None].expand(-1, 3, -1)] == 0).all())
    assert torch.allclose(seen[1], predict_linear(batch["eeg"], mask))


def test_a_start_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="fill=start needs start=linear or start=wiener"):
        MaskedReconstructionConfig(fill="start")
    with pytest.raises(ValueError, match="start=wiener needs a component_filter"):
        MaskedReconstruction(MaskedReconstructionConfig(start="wiener"), encoder=make().encoder, seed=0)
