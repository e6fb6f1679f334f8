import json
import logging

import pytest
import torch

from ttd.config import UserError
from ttd.encoders import InceptSADConfig, build_encoder, load_encoder, save_encoder
from ttd.encoders.transfer import load_strictly

SMALL = InceptSADConfig(embed_dim=16, depth=1, n_heads=2)
CAP = ["O1", "Oz", "O2", "Pz"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = build_encoder(SMALL, n_times=88, sfreq=125, ch_names=CAP)
    mix = torch.randn(4, 4)
    encoder.set_noise_covariance(mix @ mix.T + torch.eye(4))
    return encoder.eval()


def test_a_saved_encoder_gives_the_same_tokens(tmp_path, encoder):
    save_encoder(tmp_path, encoder)
    again = load_encoder(tmp_path).eval()
    eeg = torch.randn(2, 4, 88)
    assert torch.equal(again(eeg), encoder(eeg))
    assert (again.ch_names, again.sfreq, again.n_times) == (CAP, 125.0, 88)


def test_the_same_electrodes_in_another_order_give_the_same_tokens(tmp_path, encoder):
    save_encoder(tmp_path, encoder)
    order = [2, 0, 3, 1]
    again = load_encoder(tmp_path, ch_names=[CAP[i] for i in order]).eval()
    eeg = torch.randn(2, 4, 88)
    assert torch.allclose(again(eeg[:, order]), encoder(eeg), atol=1e-5)


@pytest.mark.parametrize("stem", ["spatial_first", "original"])
def test_weights_follow_the_electrode_name(tmp_path, stem):
    config = SMALL.model_copy(update={"stem": stem, "whiten": False})
    old = build_encoder(config, n_times=88, sfreq=125, ch_names=CAP)
    save_encoder(tmp_path, old)
    new = load_encoder(tmp_path, ch_names=["Fz", "Oz", "O1"])
    name = "stem.spatial.weight" if stem == "spatial_first" else "stem.spatial.0.weight"
    axis = old.channel_axis[name]
    old_weight, new_weight = old.state_dict()[name], new.state_dict()[name]
    assert torch.equal(new_weight.select(axis, 1), old_weight.select(axis, 1))  # Oz
    assert torch.equal(new_weight.select(axis, 2), old_weight.select(axis, 0))  # O1
    assert new.transfer["mapped"] == ["Oz", "O1"]
    assert new.transfer["initialised"] == ["Fz"]
    assert new.transfer["dropped"] == ["O2", "Pz"]


def test_the_whitening_of_fewer_electrodes_whitens_their_background(tmp_path):
    torch.manual_seed(0)
    mix = torch.randn(4, 4).double()
    covariance = mix @ mix.T + torch.eye(4)
    encoder = build_encoder(SMALL, n_times=88, sfreq=125, ch_names=CAP)
    encoder.set_noise_covariance(covariance)
    save_encoder(tmp_path, encoder)
    w = load_encoder(tmp_path, ch_names=["Pz", "O1"]).whitening.double()
    part = covariance[[3, 0]][:, [3, 0]]
    part = 0.99 * part + 0.01 * covariance.diagonal().mean() * torch.eye(2)  # the shrinkage of the fit
    assert torch.allclose(w @ part @ w.T, torch.eye(2).double(), atol=1e-4)


def test_a_move_between_caps_is_said_and_stored(tmp_path, encoder, caplog):
    save_encoder(tmp_path / "a", encoder)
    with caplog.at_level(logging.INFO, logger="ttd"):
        moved = load_encoder(tmp_path / "a", ch_names=["Oz", "Fz"])
    assert "1 mapped; 1 initialised (Fz); 3 dropped (O1, O2, Pz)" in caplog.text
    save_encoder(tmp_path / "b", moved)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["transfer"]["mapped"] == ["Oz"]


def test_another_length_keeps_all_weights(tmp_path, encoder):
    save_encoder(tmp_path, encoder)
    longer = load_encoder(tmp_path, n_times=512).eval()
    assert longer(torch.randn(1, 4, 512)).shape == (1, 64, 16)


def test_another_rate_is_refused(tmp_path, encoder):
    save_encoder(tmp_path, encoder)
    with pytest.raises(UserError, match="trained at 125 Hz, the data are at 250 Hz"):
        load_encoder(tmp_path, sfreq=250)


def test_caps_without_a_common_electrode_are_refused(tmp_path, encoder):
    save_encoder(tmp_path, encoder)
    with pytest.raises(UserError, match="no electrode in common"):
        load_encoder(tmp_path, ch_names=["TP9", "AF7"])


def test_a_mismatch_names_the_tensors(encoder):
    weights = encoder.state_dict()
    weights["extra"] = weights.pop("norm.bias")
    weights["norm.weight"] = torch.ones(3)
    with pytest.raises(UserError) as error:
        load_strictly(encoder, weights, source="file")
    for words in ("norm.bias: missing", "extra: unknown", "norm.weight: [3] in the file, [16] in the model"):
        assert words in str(error.value)


def test_a_partial_load_must_be_asked_for_and_is_said(encoder, caplog):
    weights = {name: t + 1 for name, t in encoder.state_dict().items() if name != "norm.bias"}
    load_strictly(encoder, weights, source="file", allow_partial=True)
    assert "norm.bias: missing" in caplog.text
    assert encoder.norm.weight[0] == 2


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match="no exported encoder"):
        load_encoder(tmp_path)
