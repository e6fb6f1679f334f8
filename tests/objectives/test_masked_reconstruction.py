import pytest
import torch

from ttd.encoders import EncoderConfig, build_encoder
from ttd.encoders.decoder import DecoderConfig
from ttd.encoders.masking import MaskingConfig
from ttd.objectives.masked_reconstruction import MaskedReconstruction, MaskedReconstructionConfig, masked_mse

CONFIG = MaskedReconstructionConfig(
    masking=MaskingConfig(span=8), decoder=DecoderConfig(width=32, depth=1, n_heads=2, dropout=0.0)
)


def make() -> MaskedReconstruction:
    torch.manual_seed(0)
    encoder = build_encoder(
        EncoderConfig(embed_dim=32, depth=1, n_heads=2, stem_dropout=0.0, dropout=0.0),
        n_times=128,
        sfreq=128,
        ch_names=["O1", "Oz", "O2"],
    )
    return MaskedReconstruction(CONFIG, encoder=encoder, seed=0)


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
