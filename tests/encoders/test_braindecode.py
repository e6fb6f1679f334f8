"""Models of braindecode behind the interface: a stand-in for the package tells the contract, the package itself that it holds."""

import inspect
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ttd.config import UserError
from ttd.encoders import build_encoder, load_encoder, save_encoder
from ttd.encoders.braindecode_models import BraindecodeConfig

CAP = ["O1", "Oz", "O2"]


class Common(nn.Module):
    def __init__(self, n_outputs, n_chans, chs_info, n_times, sfreq, patch=20, width=6):
        super().__init__()
        if n_times % patch:
            raise RuntimeError(f"length {n_times} is no multiple of {patch}")
        self.chs_info, self.sfreq, self.patch = chs_info, sfreq, patch
        self.embed = nn.Linear(patch, width)
        self.final_layer = nn.Linear(width, n_outputs)


class Labram(Common):
    """Gives a token per electrode and patch, and asks for names."""

    mapping = {"old.weight": "embed.weight"}  # noqa: RUF012

    def forward(self, x, return_features=False, *, ch_names=None):
        self.seen = ch_names
        features = self.embed(x.unflatten(2, (-1, self.patch)))  # [B, C, P, E]
        return {"features": features} if return_features else self.final_layer(features.mean((1, 2)))


class EEGNet(Common):
    def forward(self, x):
        return self.final_layer(self.embed(x.unflatten(2, (-1, self.patch))).mean((1, 2)))


@pytest.fixture
def stand_in(monkeypatch):
    models = types.ModuleType("braindecode.models")
    models.Labram, models.EEGNet = Labram, EEGNet
    package = types.ModuleType("braindecode")
    package.models = models
    monkeypatch.setitem(sys.modules, "braindecode", package)
    monkeypatch.setitem(sys.modules, "braindecode.models", models)


def build(name="Labram", *, n_times=100, sfreq=200, ch_names=CAP, **more):
    torch.manual_seed(0)
    return build_encoder(
        BraindecodeConfig(name=f"braindecode:{name}", **more), n_times=n_times, sfreq=sfreq, ch_names=ch_names
    )


def test_features_become_tokens_and_the_classifier_goes(stand_in):
    encoder = build()
    assert (encoder.n_tokens, encoder.embed_dim) == (15, 6)  # 3 electrodes × 5 patches
    assert encoder(torch.randn(2, 3, 100)).shape == (2, 15, 6)
    assert encoder.model.seen == CAP
    assert not any("final_layer" in name for name in encoder.state_dict())
    assert encoder.training


def test_a_model_without_features_gives_its_output_as_one_token(stand_in):
    encoder = build("EEGNet", embed_dim=9)
    assert (encoder.n_tokens, encoder.embed_dim) == (1, 9)
    assert encoder(torch.randn(2, 3, 100)).shape == (2, 1, 9)


def test_the_start_can_be_checked_without_weights(stand_in):
    with torch.device("meta"):
        assert build().n_tokens == 15


def test_options_gain_names_and_places_reach_the_model(stand_in):
    encoder = build(options={"width": 8}, gain=0.1).eval()
    assert encoder.embed_dim == 8
    eeg = torch.randn(1, 3, 100)
    assert torch.allclose(encoder(eeg), build(options={"width": 8}).eval()(0.1 * eeg), atol=1e-6)
    assert [c["ch_name"] for c in encoder.model.chs_info] == CAP
    assert encoder.model.chs_info[1]["loc"][1] == pytest.approx(-0.0938, abs=1e-3)  # Oz: at the back, in metres
    assert "loc" not in build(ch_names=["E1", "O1", "O2"]).model.chs_info[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n_times": 90}, "braindecode:Labram cannot read 3 channels of 90 samples at 200 Hz .*length 90 is no multiple"),
        ({"sfreq": 250}, "braindecode:Labram was made for 200 Hz, the data have 250 Hz"),
        ({"options": {"depth": 2}}, "unexpected keyword argument 'depth'"),
    ],
)  # fmt: skip
def test_data_that_the_model_cannot_read_are_refused(stand_in, more, words):
    with pytest.raises(ValueError, match=words):
        build(**more)


def test_an_unknown_model_is_answered_with_the_nearest(stand_in):
    with pytest.raises(UserError, match="no such model; there are EEGNet"):
        build("EEGNett")


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    monkeypatch.setitem(sys.modules, "braindecode.models", None)
    with pytest.raises(UserError, match="package braindecode cannot be imported .* pip install 'ttd\\[braindecode\\]'"):
        build()


def test_published_weights_fit_whole_but_for_the_classifier(stand_in, tmp_path):
    published = {"old.weight": torch.ones(6, 20), "embed.bias": torch.zeros(6), "final_layer.weight": torch.ones(4, 6)}
    save_file(published, tmp_path / "model.safetensors")
    encoder = build(weights=tmp_path / "model.safetensors")
    assert encoder.model.embed.weight.eq(1).all()
    save_file({"embed.bias": torch.zeros(7)}, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"(?s)embed.weight: missing.*embed.bias: \[7\] in the file, \[6\] in the model"
    ):
        build(weights=tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="encoder.weights: no file"):
        build(weights=tmp_path / "other.safetensors")


def test_a_saved_encoder_needs_its_published_weights_no_more(stand_in, tmp_path):
    save_file({"embed.weight": torch.ones(6, 20), "embed.bias": torch.zeros(6)}, tmp_path / "w.safetensors")
    encoder = build(weights=tmp_path / "w.safetensors").eval()
    save_encoder(tmp_path / "export", encoder)
    (tmp_path / "w.safetensors").unlink()
    eeg = torch.randn(1, 3, 100)
    assert torch.equal(load_encoder(tmp_path / "export").eval()(eeg), encoder(eeg))


def test_it_moves_between_caps_only_if_it_is_told_names(stand_in, tmp_path):
    save_encoder(tmp_path / "named", build())
    assert load_encoder(tmp_path / "named", ch_names=["Oz", "Pz"]).n_tokens == 10
    save_encoder(tmp_path / "unnamed", build("EEGNet"))
    with pytest.raises(UserError, match="braindecode:EEGNet cannot move between caps"):
        load_encoder(tmp_path / "unnamed", ch_names=["O2", "Oz", "O1"])


@pytest.mark.parametrize(
    ("name", "options", "n_tokens", "embed_dim"),
    [("Labram", {"num_layers": 1}, 6, 200), ("CBraMod", {"n_layer": 1}, 6, 200), ("EEGNet", {}, 1, 32)],
)
def test_the_package_itself_keeps_the_contract(name, options, n_tokens, embed_dim):
    models = pytest.importorskip("braindecode.models", exc_type=(ImportError, OSError))
    assert inspect.isclass(getattr(models, name))
    encoder = build(name, n_times=400, options=options, embed_dim=32)
    assert (encoder.n_tokens, encoder.embed_dim) == (n_tokens, embed_dim)
    tokens = encoder(torch.randn(2, 3, 400))
    tokens.square().sum().backward()
    assert tokens.shape == (2, n_tokens, embed_dim)
