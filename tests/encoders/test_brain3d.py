"""Brain3D's encoder: the sketch's sizes, computed where it miscounts; its gate; its move between caps."""

import pytest
import torch

from ttd.encoders import build_encoder, load_encoder, read_encoder_facts, save_encoder
from ttd.encoders.brain3d import Brain3DConfig

CAP = ["O1", "Oz", "O2", "Pz", "P3", "P4", "Cz", "Fz"]
SMALL = Brain3DConfig(embed_dim=12, kernels_samples=(13, 7, 3), n_maps=(6, 8, 10))


def encoder_of(ch_names=CAP, n_times=88, **more):
    torch.manual_seed(0)
    return build_encoder(SMALL.model_copy(update=more), n_times=n_times, sfreq=125, ch_names=ch_names)


def test_64_electrodes_and_256_samples_leave_9_steps_and_4608_features_where_the_sketch_counts_8():
    with torch.device("meta"):
        encoder = build_encoder(Brain3DConfig(), n_times=256, sfreq=256, ch_names=[f"E{i}" for i in range(64)])
        assert encoder(torch.empty(2, 64, 256)).shape == (2, 1, 512)
    assert encoder.project.in_features == 512 * 9 == 4608
    gate = (64 * 16 + 16) + (16 * 64 + 64)
    convolutions = (64 * 25 * 128 + 128) + (128 * 13 * 256 + 256) + (256 * 7 * 512 + 512) + 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in encoder.parameters()) == gate + convolutions + (4608 * 512 + 512) == 3_912_912


def test_sizes_come_from_the_data_and_too_short_an_epoch_is_refused():
    for n_times, steps in ((88, 3), (125, 5), (256, 13)):
        encoder = encoder_of(n_times=n_times)
        assert encoder.project.in_features == 10 * steps
        encoder(torch.randn(3, 8, n_times)).sum().backward()
        assert all(p.grad is not None for p in encoder.parameters())
    with pytest.raises(
        ValueError, match=r"n_times=88 is too short for convolutions of \[25, 13, 7\] samples .* give shorter"
    ):
        encoder_of(kernels_samples=(25, 13, 7))
    with pytest.raises(ValueError, match="one number per convolution each"):
        Brain3DConfig(kernels_samples=(25, 13))


def test_an_electrode_counts_as_much_as_its_gate_says():
    encoder, eeg = encoder_of().eval(), torch.randn(2, 8, 88)
    with torch.no_grad():
        encoder.gate[2].weight.zero_()
        encoder.gate[2].bias.fill_(30.0)  # a sigmoid of 1
        encoder.gate[2].bias[3] = -200.0  # and of 0
    assert torch.allclose(encoder(eeg), encoder(eeg * (torch.arange(8) != 3)[:, None]))
    assert torch.allclose(
        encoder(eeg)[:, 0], encoder.project(encoder.temporal(eeg * (torch.arange(8) != 3)[:, None]).flatten(1))
    )


def test_its_weights_follow_the_electrode_name_to_a_cap_of_another_size(tmp_path):
    old, eeg = encoder_of(), torch.randn(2, 8, 88)
    save_encoder(tmp_path, old)
    order = [2, 0, 3, 1, 7, 6, 5, 4]
    again = load_encoder(tmp_path, ch_names=[CAP[i] for i in order]).eval()
    assert torch.allclose(again(eeg[:, order]), old.eval()(eeg), atol=1e-5)
    assert read_encoder_facts(tmp_path)["encoder"]["gate_width"] == 2
    fewer = load_encoder(tmp_path, ch_names=["Oz", "T8", "Fz"])
    for name, axis in old.channel_axis.items():
        mine, theirs = fewer.state_dict()[name], old.state_dict()[name]
        assert torch.equal(mine.select(axis, 0), theirs.select(axis, 1)), name
        assert torch.equal(mine.select(axis, 2), theirs.select(axis, 7)), name
    assert fewer.transfer["initialised"] == ["T8"]
