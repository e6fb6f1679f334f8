import pytest
import torch
import torch.nn.functional as F

from ttd.encoders import InceptSADConfig, build_encoder
from ttd.encoders.decoder import DecoderConfig, ReconstructionDecoder
from ttd.encoders.inceptsad import depthwise_filter, odd_samples, pool_sizes

ORIGINAL = {
    "stem": "original",
    "whiten": False,
    "kernels_samples": (7, 15, 31),
    "pool_samples": 16,
    "positions": "none",
    "attention_scale": "embed_dim",
    "block_init": "xavier",
}


def names(n: int) -> list[str]:
    return [f"E{i}" for i in range(n)]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("n_chans", "parameters"), [(63, 75_634_472), (64, 75_634_520)])
def test_the_original_form_has_the_original_number_of_parameters(n_chans, parameters):
    with torch.device("meta"):
        encoder = build_encoder(InceptSADConfig(**ORIGINAL), n_times=512, sfreq=160, ch_names=names(n_chans))
    assert count(encoder) == parameters
    assert encoder.n_tokens == 32


def test_the_original_form_makes_15_tokens_of_250_samples():
    with torch.device("meta"):
        encoder = build_encoder(InceptSADConfig(**ORIGINAL, depth=0), n_times=250, sfreq=250, ch_names=names(63))
    assert encoder.n_tokens == 15


def test_the_original_form_does_not_know_the_order_of_its_tokens_and_the_default_does():
    torch.manual_seed(0)
    tokens = torch.randn(1, 8, 16)
    for config, blind in ((InceptSADConfig(**ORIGINAL, embed_dim=16, depth=2, n_heads=2), True),
                          (InceptSADConfig(embed_dim=16, depth=2, n_heads=2, block_init="xavier"), False)):  # fmt: skip
        encoder = build_encoder(config, n_times=128, sfreq=250, ch_names=names(4)).eval()
        encoder.stem, encoder.whitening = torch.nn.Identity(), None
        order = torch.randperm(8)
        same = torch.allclose(encoder(tokens)[:, order], encoder(tokens[:, order]), atol=1e-5)
        assert same == blind


def test_the_default_base_has_its_own_number_of_parameters():
    with torch.device("meta"):
        encoder = build_encoder(InceptSADConfig(), n_times=250, sfreq=250, ch_names=names(63))
    # 6 blocks of 12,596,224; final norm 2,048; stem: 63 × 48 + 16 × (13 + 25 + 49) + 96 + 2 × 144 + 48 × 1024 + 2,048
    assert count(encoder) == 6 * 12_596_224 + 2_048 + 63 * 48 + 16 * 87 + 96 + 288 + 49_152 + 2_048


def test_the_default_form_maps_eeg_to_tokens_of_at_most_64_ms():
    for sfreq, n_times in ((125, 88), (128, 512), (160, 512), (250, 250)):
        encoder = build_encoder(InceptSADConfig(embed_dim=32, depth=1, n_heads=4), n_times=n_times, sfreq=sfreq,
                                ch_names=names(5))  # fmt: skip
        tokens = encoder(torch.randn(2, 5, n_times))
        assert tokens.shape == (2, encoder.n_tokens, encoder.embed_dim)
        first, second = pool_sizes(encoder.config, sfreq)
        assert first * second / sfreq <= 0.064


def test_blocks_start_as_the_identity():
    torch.manual_seed(0)
    config = InceptSADConfig(embed_dim=32, depth=2, n_heads=4, positions="none")
    encoder = build_encoder(config, n_times=100, sfreq=125, ch_names=names(3)).eval()
    eeg = torch.randn(2, 3, 100)
    assert torch.allclose(encoder(eeg), encoder.norm(encoder.stem(eeg)))


def test_filters_in_blocks_equal_a_depthwise_convolution():
    torch.manual_seed(0)
    x, filters = torch.randn(3, 4, 77, dtype=torch.double), torch.randn(4, 13, dtype=torch.double)
    assert torch.allclose(depthwise_filter(x, filters), F.conv1d(x, filters[:, None], padding=6, groups=4))


def test_kernel_widths_become_odd_numbers_of_samples():
    assert [odd_samples(width, 160) for width in (43.75, 93.75, 193.75)] == [7, 15, 31]
    assert odd_samples(1, 125) == 3


def test_whitened_background_has_unit_covariance():
    torch.manual_seed(0)
    encoder = build_encoder(InceptSADConfig(embed_dim=32, depth=0), n_times=100, sfreq=125, ch_names=names(6))
    mix = torch.randn(6, 6) + 2 * torch.eye(6)
    encoder.set_noise_covariance(mix @ mix.T)
    whitened = encoder.whitening @ mix
    assert torch.allclose(whitened @ whitened.T, torch.eye(6), atol=0.3)  # up to the 1 % shrinkage


def test_a_covariance_of_another_cap_is_refused():
    encoder = build_encoder(InceptSADConfig(embed_dim=32, depth=0), n_times=100, sfreq=125, ch_names=names(6))
    with pytest.raises(ValueError, match="6 channels: cannot take a covariance \\[4, 4\\]"):
        encoder.set_noise_covariance(torch.eye(4))


def test_an_epoch_shorter_than_a_token_is_refused():
    with pytest.raises(ValueError, match="n_times=5 is shorter than one token of 8 samples"):
        build_encoder(InceptSADConfig(embed_dim=32, depth=0), n_times=5, sfreq=125, ch_names=names(2))


def test_channel_count_and_names_must_agree():
    with pytest.raises(ValueError, match="n_chans=3, but 2 channel names"):
        build_encoder(InceptSADConfig(depth=0), n_times=50, sfreq=125, ch_names=names(2), n_chans=3)


def test_the_original_decoder_has_the_original_number_of_parameters():
    with torch.device("meta"):
        decoder = ReconstructionDecoder(DecoderConfig(), embed_dim=1024, n_tokens=32, n_chans=64, n_times=512)
    positions = 32 * 512  # counted there, a constant here
    assert count(decoder) + positions == 13_677_056


def test_the_decoder_predicts_every_sample_where_tokens_do_not_divide_the_time():
    decoder = ReconstructionDecoder(DecoderConfig(width=16, depth=1, n_heads=2), embed_dim=8, n_tokens=11, n_chans=3,
                                    n_times=90)  # fmt: skip
    assert decoder(torch.randn(2, 11, 8)).shape == (2, 3, 90)
