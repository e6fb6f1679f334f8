"""Targets of CLIP, DINOv2 and SigLIP: equal to what transformers says of the same pixels, layer by layer."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from ttd.config import UserError
from ttd.diffusion.targets import ClipTargets, decode_image
from ttd.diffusion.vision_targets import Preparation, VisionTargets, find_problem

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**SMALL, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
TEXT = {**SMALL, "intermediate_size": 32, "vocab_size": 16, "max_position_embeddings": 8}
LAYERS = ["pooled", "0", "2", "3-mean", "1-tokens"]


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
        return transformers.CLIPModel(config)
    if kind == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))
    if kind == "siglip_vision_model":
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
    more = {**SMALL, "image_size": 40, "patch_size": 8, "mlp_ratio": 2}
    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**more))
    config = transformers.Dinov2WithRegistersConfig(**more, num_register_tokens=2)
    return transformers.Dinov2WithRegistersModel(config)


PROCESSORS = {
    "clip": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "siglip": {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3},
    "dinov2": {
        "size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3,
    },
}  # fmt: skip


def picture(i: int, size=(40, 56)) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def save(kind: str, folder: Path) -> torch.nn.Module:
    model = build(kind).eval()
    model.save_pretrained(folder)
    processor = PROCESSORS.get(kind.split("_")[0])
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip_vision_model", "dinov2", "dinov2_with_registers"])
def test_every_layer_is_what_transformers_says_of_the_same_pixels(tmp_path, kind):
    model, files = save(kind, tmp_path), [picture(0), picture(1, (36, 36))]
    ours = VisionTargets(str(tmp_path), LAYERS)
    pixels = torch.stack([ours.prepare(decode_image(file)) for file in files])
    with torch.no_grad():
        tower = model.vision_model if kind in ("clip", "siglip") else model
        said = tower(pixel_values=pixels, output_hidden_states=True)
        pooled = model.get_image_features(pixel_values=pixels).pooler_output if kind == "clip" else said.pooler_output
    states, extra = said.hidden_states, {"clip": 1, "dinov2": 1, "dinov2_with_registers": 3}.get(kind, 0)
    assert len(states) == 4
    expected = {
        "pooled": pooled,
        "0": states[0][:, 0] if extra else states[0].mean(1),
        "2": states[2][:, 0] if extra else states[2].mean(1),
        "3-mean": states[3][:, extra:].mean(1),
        "1-tokens": states[1],
    }
    given = ours(files)
    assert list(given) == LAYERS
    for layer, values in expected.items():
        assert given[layer].dtype == np.float16
        np.testing.assert_allclose(given[layer], values, atol=2e-3, rtol=1e-3, err_msg=layer)
    assert states[1].shape[1] == 16 + extra


def test_clips_pooled_layer_is_the_target_called_clip(tmp_path):
    save("clip", tmp_path)
    files = [picture(0), picture(1)]
    np.testing.assert_array_equal(
        VisionTargets(str(tmp_path), ["pooled"])(files)["pooled"], ClipTargets(str(tmp_path))(files)
    )


@pytest.mark.parametrize(
    ("kind", "processor"),
    [("clip", "CLIPImageProcessorPil"), ("siglip", "SiglipImageProcessorPil"), ("dinov2", "BitImageProcessorPil")],
)
def test_pictures_are_prepared_as_the_folders_processor_prepares_them(tmp_path, kind, processor):
    save(kind, tmp_path)
    theirs = getattr(transformers, processor)(**PROCESSORS[kind])
    ours = VisionTargets(str(tmp_path), ["pooled"]).prepare
    for content in (picture(0, (70, 50)), picture(1, (33, 64))):
        expected = theirs(Image.open(io.BytesIO(content)), return_tensors="pt")["pixel_values"][0]
        given = ours(decode_image(content))
        assert given.shape == (3, 32, 32)
        assert (given - torch.as_tensor(expected)).abs().max().item() < 0.08  # PIL rounds to 8 bits, over sd 0.23


def test_without_a_processor_the_familys_custom_holds(tmp_path):
    save("siglip", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    prepare = VisionTargets(str(tmp_path), ["pooled"]).prepare
    assert prepare == Preparation((32, 32), None, "bicubic", (0.5,) * 3, (0.5,) * 3)


def test_a_processor_that_asks_for_something_else_is_refused(tmp_path):
    save("dinov2", tmp_path)
    for change, words in (({"resample": 0}, "bilinear or bicubic"), ({"size": {"longest_edge": 9}}, "is not known")):
        stated = PROCESSORS["dinov2"] | change
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
        with pytest.raises(UserError, match=words):
            VisionTargets(str(tmp_path), ["pooled"])


def test_layers_and_models_that_do_not_exist_are_named_without_loading_weights(tmp_path):
    save("dinov2", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_problem(str(tmp_path), ["pooled", "3", "0-tokens"]) is None
    assert find_problem(str(tmp_path), ["4"]) == "layer '4': the model has 3 blocks, so 0 to 3"
    assert "write pooled, or a number" in str(find_problem(str(tmp_path), ["last"]))
    stated = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert "of type 'bert'; known: clip" in str(find_problem(str(tmp_path), ["pooled"]))


def test_depths_that_the_folder_leaves_to_the_default_and_absent_pooling_are_known(tmp_path):
    save("siglip_vision_model", tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text()) | {"vision_use_head": False}
    del stated["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert find_problem(str(tmp_path), ["13"]) == "layer '13': the model has 12 blocks, so 0 to 12"
    assert "has no attention pooling; take a block" in str(find_problem(str(tmp_path), ["pooled"]))


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_a_folder_that_lacks_a_weight_is_refused_and_not_filled_at_random(tmp_path, kind):
    save(kind, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name or "layer.1" in name if "text" not in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        VisionTargets(str(tmp_path), ["pooled"])
    if kind == "clip":
        with pytest.raises(UserError, match="lacks 1 weights"):
            ClipTargets(str(tmp_path))
