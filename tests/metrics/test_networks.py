"""The extractor with small random networks: which layer it reads, how it prepares pictures, which weights it refuses.

The published networks themselves need torchvision: benchmarks/metric_networks.py runs them in an environment of its own.
"""

import dataclasses
import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate

from ttd.config import UserError
from ttd.metrics import networks
from ttd.metrics.identification import correlation_distance, correlation_matrix, two_way_identification
from ttd.metrics.network_table import IMAGENET, NETWORKS, OPENAI, Network
from ttd.metrics.networks import (
    FeatureExtractor,
    PerceptualDistance,
    find_missing,
    load_extractor,
    load_lpips,
    load_weights,
    prepare,
)


class Small(nn.Module):
    """Two convolutions whose activations work in place, as AlexNet's, and a head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.avgpool(self.features(x)).flatten(1)))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small()


SMALL = Network("Small", small, "avgpool", "two-way", "small.pth", "https://example.org/small.pth", 24, first_size=20)


def pictures(n: int, seed: int = 0, size: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).random((n, size, size, 3)).astype(np.float32)


def by_hand(images: np.ndarray) -> torch.Tensor:
    """Resized and normalised as the table says for SMALL, without the code under test."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = interpolate(x, size=(24, 24), mode="bilinear", antialias=True).clamp(0, 1)
    return (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def test_the_features_are_the_output_of_the_named_layer_on_prepared_pictures():
    model = small().eval()
    with torch.no_grad():
        expected = model.avgpool(model.features(by_hand(pictures(5)))).flatten(1)
    found = FeatureExtractor(SMALL, small())(pictures(5))
    assert found.shape == (5, 5)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_layer_keeps_its_values_though_the_next_one_works_in_place():
    model = small().eval()
    with torch.no_grad():
        expected = model.features[1](model.features[0](by_hand(pictures(3)))).flatten(1)
    assert expected.min() < 0
    found = FeatureExtractor(dataclasses.replace(SMALL, layer="features.1"), small())(pictures(3))
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


def test_neither_batches_nor_earlier_calls_change_the_features():
    extractor = FeatureExtractor(SMALL, small(), batch_size=3)
    whole = FeatureExtractor(SMALL, small(), batch_size=64)(pictures(8))
    assert extractor(pictures(8)) == pytest.approx(whole, abs=1e-6)
    assert extractor(pictures(8)) == pytest.approx(whole, abs=1e-6)
    assert not extractor.layer._forward_hooks


def test_equal_pictures_are_identified_and_unrelated_ones_sit_at_chance():
    extractor = FeatureExtractor(dataclasses.replace(SMALL, layer="features.0"), small())
    seen, other = extractor(pictures(100)), extractor(pictures(100, seed=1))
    assert two_way_identification(correlation_matrix(seen, seen)).mean() == 1.0
    assert two_way_identification(correlation_matrix(other, seen)).mean() == pytest.approx(SMALL.chance, abs=0.06)
    assert correlation_distance(seen, seen) == pytest.approx(0, abs=1e-6)


def test_bytes_are_handed_to_a_network_that_resizes_itself():
    x = prepare(np.full((1, 9, 9, 3), 0.5, np.float32), NETWORKS["fid_inception"])
    assert x.dtype == torch.uint8
    assert x.shape == (1, 3, 9, 9)
    assert x.unique().tolist() == [128]


def test_the_bicubic_preparation_of_vit_h_14_goes_straight_to_518():
    x = pictures(1, size=32)
    expected = interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size=(518, 518), mode="bicubic", antialias=True
    ).clamp(0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    assert torch.allclose(prepare(x, NETWORKS["vit_h_14"]), (expected - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer", "size", "score", "normalisation"),
    [
        ("alexnet_2", "features.4", 256, "two-way", IMAGENET),
        ("alexnet_5", "features.11", 256, "two-way", IMAGENET),
        ("inception", "avgpool", 342, "two-way", IMAGENET),
        ("clip", "visual_projection", 224, "two-way", OPENAI),
        ("efficientnet", "avgpool", 255, "distance", IMAGENET),
        ("swav", "avgpool", 224, "distance", IMAGENET),
    ],
)
def test_the_mindeye_family_is_read_as_its_notebook_says(name, layer, size, score, normalisation):
    network = NETWORKS[name]
    assert (network.layer, network.size, network.score) == (layer, size, score)
    assert (network.first_size, network.mode, network.normalisation) == (256, "bilinear", normalisation)
    assert network.chance == (0.5 if score == "two-way" else None)
    assert NETWORKS["vit_h_14"].chance == 1 / 50


def test_clip_is_built_without_torchvision_and_its_layer_is_the_image_embedding():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        assert NETWORKS["clip"].build().visual_projection.weight.shape == (768, 1024)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(config)
    spec = dataclasses.replace(NETWORKS["clip"], size=28)
    found = FeatureExtractor(spec, model)(pictures(2))
    with torch.no_grad():
        expected = model(pixel_values=prepare(pictures(2), spec)).image_embeds
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.fixture
def known(monkeypatch, tmp_path):
    """SMALL among the networks, a folder for weights, and an empty cache of torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(networks.NETWORKS, "small", SMALL)
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder


def test_missing_weights_are_named_with_the_command_that_gets_them(known):
    path = known / "small.pth"
    assert find_missing("small", known) == (
        f"Small: weights {path} are not there, nor in a cache; download them with: "
        f"curl -L --create-dirs -o {path} https://example.org/small.pth"
    )
    with pytest.raises(UserError, match="curl -L --create-dirs"):
        load_extractor("small", known)
    with pytest.raises(UserError, match="alexnet-owt-7be5be79.pth are not there"):
        load_lpips(known)
    assert "hf download openai/clip-vit-large-patch14 model.safetensors --local-dir" in str(find_missing("clip", known))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_folder_give_the_features_of_the_network_they_came_from(known, suffix):
    torch.manual_seed(5)
    source = Small()
    if suffix == ".pth":
        torch.save(source.state_dict(), known / "small.pth")
    else:
        save_file(source.state_dict(), known / "small.safetensors")
    extractor = load_extractor("small", known)
    assert find_missing("small", known) is None
    assert extractor(pictures(2)) == pytest.approx(FeatureExtractor(SMALL, source)(pictures(2)), abs=1e-6)
    assert extractor.identity == hashlib.sha256((known / f"small{suffix}").read_bytes()).hexdigest()


def test_weights_in_torch_hubs_cache_are_found(known):
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(small().state_dict(), cache / "small.pth")
    assert load_extractor("small", None)(pictures(1)).shape == (1, 5)


def test_weights_saved_as_swav_s_are_read_and_others_are_refused_by_name(known):
    swav = dataclasses.replace(SMALL, may_lack=("fc.",), ignored=("prototypes.",))
    weights = {f"module.{key}": value for key, value in small().state_dict().items() if not key.startswith("fc.")}
    torch.save({**weights, "module.prototypes.weight": torch.zeros(2)}, known / "small.pth")
    load_weights(small(), swav, known / "small.pth")
    with pytest.raises(UserError, match=r"lacks \['fc.weight', 'fc.bias'\], has beyond it \['prototypes.weight'\]"):
        load_weights(small(), SMALL, known / "small.pth")
    torch.save({**small().state_dict(), "fc.weight": torch.zeros(2, 2)}, known / "small.pth")
    with pytest.raises(UserError, match="(?s)not the weights of Small .*fc.weight"):
        load_weights(small(), SMALL, known / "small.pth")


def test_a_file_whose_hash_is_not_that_of_its_name_is_refused(known, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "small", dataclasses.replace(SMALL, file="small-00000000.pth"))
    torch.save(small().state_dict(), known / "small-00000000.pth")
    with pytest.raises(UserError, match="damaged, its sha256 begins with"):
        load_extractor("small", known)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed here")
def test_without_torchvision_the_extra_is_named():
    with pytest.raises(
        UserError, match=r"pip install 'ttd\[metrics\]', in an environment where torchvision matches torch"
    ):
        NETWORKS["alexnet_2"].build()


class Difference(nn.Module):
    """Mean absolute difference of two batches, in the shape in which lpips answers."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


def test_the_perceptual_distance_sees_pictures_from_minus_one_to_one_pair_by_pair():
    a, b = pictures(5), pictures(5, seed=1)
    distance = PerceptualDistance(Difference(), batch_size=2)
    assert distance(a, b) == pytest.approx(2 * np.abs(a - b).mean((1, 2, 3)), abs=1e-6)
    assert distance(a, a).tolist() == [0.0] * 5


def test_pictures_and_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Small: Small has no layer 'features.9'"):
        FeatureExtractor(dataclasses.replace(SMALL, layer="features.9"), small())
    extractor = FeatureExtractor(SMALL, small())
    with pytest.raises(ValueError, match=r"pictures must be square, \[N, H, H, 3\], got \(2, 8, 9, 3\)"):
        extractor(np.zeros((2, 8, 9, 3), np.float32))
    with pytest.raises(ValueError, match="no pictures"):
        extractor(np.zeros((0, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="shapes differ"):
        PerceptualDistance(Difference())(pictures(2), pictures(3))
