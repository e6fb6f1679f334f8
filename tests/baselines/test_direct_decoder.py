"""The direct decoder: the sketch's sizes, pictures that an EEG determines, the mean picture where it says nothing."""

import pytest
import torch

from ttd.baselines.direct_decoder import (
    DirectDecoder,
    DirectDecoderConfig,
    draw_pictures,
    fit_direct_decoder,
    from_uint8,
)
from ttd.encoders import build_encoder
from ttd.encoders.brain3d import Brain3DConfig

CONFIG = DirectDecoderConfig(hidden=32, steps=60, batch_size=32)


def encoder_of(config=None, n_chans=4, n_times=64):
    torch.manual_seed(0)
    config = config or Brain3DConfig(embed_dim=16, kernels_samples=(9, 5, 3), n_maps=(8, 12, 16))
    return build_encoder(config, n_times=n_times, sfreq=128, ch_names=[f"E{i}" for i in range(n_chans)])


def test_at_64_pixels_it_is_the_sketchs_stack_and_every_size_is_reached_by_doubling():
    with torch.device("meta"):
        encoder = encoder_of(Brain3DConfig(), n_chans=64, n_times=256)
        model = DirectDecoder(encoder, picture_size=64)
        assert model.pictures(torch.empty(2, 64, 256)).shape == (2, 3, 64, 64)
    mapper = (512 * 1024 + 1024) + (1024 * 4096 + 4096)
    transposed = sum(a * b * 16 + b for a, b in ((256, 128), (128, 64), (64, 32), (32, 3))) + 2 * (128 + 64 + 32)
    decoder = sum(p.numel() for p in [*model.mapper.parameters(), *model.upsample.parameters()])
    assert decoder == mapper + transposed == 5_414_051
    with torch.device("meta"):
        for size in (8, 16, 256):
            assert DirectDecoder(encoder, picture_size=size).pictures(torch.empty(2, 64, 256)).shape[2:] == (size, size)
    for size in (4, 48, 63):
        with pytest.raises(ValueError, match=f"picture_size={size} is not 8, 16, 32, 64 or a further doubling"):
            DirectDecoder(encoder, picture_size=size)


def pairs(n, seed):
    """Which of four electrodes has a wave decides which quarter of the picture is red; noise beside it."""
    g = torch.Generator().manual_seed(seed)
    where = torch.randint(0, 4, (n,), generator=g)
    eeg = 0.3 * torch.randn(n, 4, 64, generator=g)
    eeg[torch.arange(n), where] += torch.sin(torch.arange(64) / 3)
    pictures = torch.full((n, 3, 16, 16), 40, dtype=torch.uint8)
    for picture, place in zip(pictures, where.tolist(), strict=True):
        picture[0, 8 * (place // 2) :, 8 * (place % 2) :][:8, :8] = 250
    return eeg, pictures


def error(drawn, shown):
    return (from_uint8(drawn) - from_uint8(shown)).square().mean().item()


def test_it_draws_what_the_eeg_determines_and_the_mean_picture_of_pairs_that_were_shuffled():
    eeg, shown = pairs(160, 0)
    unseen, truth = pairs(40, 1)
    of_mean = error(shown.float().mean(0).round().to(torch.uint8).expand_as(truth), truth)
    drawn = draw_pictures(fit_direct_decoder(encoder_of(), eeg, shown, CONFIG, seed=0), unseen, batch_size=16)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == truth.shape
    assert error(drawn, truth) < 0.4 * of_mean
    shuffled = shown[torch.randperm(160, generator=torch.Generator().manual_seed(2))]
    chance = draw_pictures(fit_direct_decoder(encoder_of(), eeg, shuffled, CONFIG, seed=0), unseen)
    assert error(chance, truth) > 0.9 * of_mean


def test_the_same_seed_draws_the_same_pictures_whatever_the_global_generator():
    eeg, shown = pairs(20, 0)
    config = CONFIG.model_copy(update={"steps": 3})
    drawn = []
    for seed in (0, 0, 1):
        encoder = encoder_of()
        torch.manual_seed(len(drawn))
        drawn.append(draw_pictures(fit_direct_decoder(encoder, eeg, shown, config, seed=seed), eeg))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_its_loss_is_the_mean_squared_error_in_minus_one_to_one():
    model = DirectDecoder(encoder_of(), picture_size=16, hidden=32).eval()
    eeg, shown = pairs(3, 0)
    with torch.no_grad():
        expected = (model.pictures(eeg) - (shown.double() / 255 * 2 - 1)).square().mean()
        assert model({"eeg": eeg, "picture": shown})["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    assert from_uint8(white).unique().tolist() == [1.0]


def test_pairs_that_are_none_are_refused():
    eeg, shown = pairs(6, 0)
    for wrong in (shown[:5], shown[:, :, :8]):
        with pytest.raises(ValueError, match="need pairs of EEG and square pictures"):
            fit_direct_decoder(encoder_of(), eeg, wrong, CONFIG, seed=0)
