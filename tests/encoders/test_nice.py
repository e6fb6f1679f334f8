import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ttd.encoders import build_encoder, load_encoder, save_encoder
from ttd.encoders.nice import NiceConfig

CAP = ["O1", "Oz", "O2", "Pz"]


def encoder_of(ch_names=CAP, n_times=88, sfreq=125, **more):
    torch.manual_seed(0)
    settings = {"embed_dim": 12, "n_filters": 6, "kernel_ms": 104, "pool_ms": 104, "stride_ms": 24, **more}
    return build_encoder(NiceConfig(**settings), n_times=n_times, sfreq=sfreq, ch_names=ch_names)


def test_at_250_hz_it_has_the_sizes_of_the_paper():
    names = [f"E{i}" for i in range(63)]
    with torch.device("meta"):
        encoder = build_encoder(NiceConfig(), n_times=250, sfreq=250, ch_names=names)
    assert (encoder.temporal.kernel_size, encoder.pool, encoder.stride) == ((1, 25), 51, 5)
    assert (encoder.n_tokens, encoder.embed_dim) == (36, 40)  # 1,440 numbers to the projection
    # filters 40 · 25 + 40; mix 40 · 40 · 63 + 40; projection 40 · 40 + 40; two norms of 80
    assert sum(p.numel() for p in encoder.parameters()) == 1_040 + 100_840 + 1_640 + 160


def test_it_computes_the_modules_of_the_paper_in_their_order():
    encoder = encoder_of().eval()
    for norm in (encoder.norm1, encoder.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    eeg = torch.randn(3, 4, 88)
    published = nn.Sequential(encoder.temporal, nn.AvgPool2d((1, 13), (1, 3)), encoder.norm1, nn.ELU(), encoder.spatial,
                              encoder.norm2, nn.ELU(), encoder.project)  # fmt: skip
    tokens = published(eeg[:, None]).squeeze(2).transpose(1, 2)
    assert tokens.shape == (3, encoder.n_tokens, 12)
    assert torch.allclose(encoder(eeg), tokens, atol=1e-5)


def test_the_same_widths_in_ms_see_the_same_time_at_another_rate():
    slow, fast = encoder_of(sfreq=125, n_times=125), encoder_of(sfreq=250, n_times=250)
    assert (slow.temporal.kernel_size[1], slow.pool, slow.stride) == (13, 13, 3)
    assert (fast.temporal.kernel_size[1], fast.pool, fast.stride) == (26, 26, 6)


def test_dropout_and_whitening_are_in_force():
    eeg = torch.randn(2, 4, 88)
    encoder = encoder_of(dropout=0.5).train()
    assert not torch.allclose(encoder(eeg), encoder(eeg))
    whitening = encoder_of().eval()
    whitening.set_noise_covariance(4 * torch.eye(4))
    assert torch.allclose(whitening(eeg), encoder_of(whiten=False).eval()(eeg / 2), atol=1e-5)


def test_its_weights_follow_the_electrode_name(tmp_path):
    old = encoder_of()
    save_encoder(tmp_path, old)
    order = [2, 0, 3, 1]
    eeg = torch.randn(2, 4, 88)
    again = load_encoder(tmp_path, ch_names=[CAP[i] for i in order]).eval()
    assert torch.allclose(again(eeg[:, order]), old.eval()(eeg), atol=1e-5)
    fewer = load_encoder(tmp_path, ch_names=["Fz", "Oz"])
    assert torch.equal(fewer.spatial.weight[:, :, 1], old.spatial.weight[:, :, 1])
    assert fewer.transfer["initialised"] == ["Fz"]
    assert F.cosine_similarity(fewer.temporal.weight.flatten(), old.temporal.weight.flatten(), dim=0) > 0.999


def test_an_epoch_shorter_than_its_windows_is_refused():
    with pytest.raises(ValueError, match="n_times=20 is shorter than a filter of 13 and an average of 13 samples"):
        encoder_of(n_times=20)
