"""Fixed targets: equal to what the models say of each image, joined by sha256, made once."""

import hashlib
import io
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.targets import TargetTable
from ttd.data.writer import ShardWriter
from ttd.diffusion.targets import decode_image, identity, resize_and_crop

SCRIPT = Path(__file__).parents[2] / "shards" / "precompute_targets.py"


def encoded(i, size=(40, 56), format="PNG"):
    pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(out, format)
    return out.getvalue()


def write_images(root, files):
    with ShardWriter(root / "images", kind="image") as writer:
        for i, content in enumerate(files):
            sha = hashlib.sha256(content).hexdigest()
            name = "image.png" if content.startswith(b"\x89PNG") else "image.jpg"
            writer.write(sha, {name: content, "meta.json": {"image_id": str(i), "sha256": sha}})
        writer.finish({"study": "Simulated", "simulated": True})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from diffusers import AutoencoderKL
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 16, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    vae.save_pretrained(folder / "vae")
    return folder


def run_script(root, models, *more):
    arguments = [f"shards={root}", f"base={models}", f"clip={models / 'clip'}", "image_size=32", "batch_size=2", *more]
    before = sys.argv
    sys.argv = [str(SCRIPT), *arguments]
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.argv = before
    return end.value.code


def test_targets_are_what_the_models_say_and_are_made_once(tmp_path, models, capsys):
    from diffusers import AutoencoderKL
    from transformers import CLIPModel

    files = [encoded(0), encoded(1), encoded(2, (32, 32)), encoded(3, format="JPEG"), encoded(4)]
    write_images(tmp_path, files)
    assert run_script(tmp_path, models) == 0
    clip, vae, ids = (TargetTable.read(tmp_path / "targets" / name) for name in ("clip", "vae", "vae.size-ids"))
    assert (clip.shape, vae.shape, ids.shape) == ((12,), (8, 16, 16), (6,))
    assert ShardIndex.read(tmp_path / "targets" / "vae").facts.simulated
    assert sorted(p.name for p in (tmp_path / "targets").iterdir()) == ["clip", "vae", "vae.size-ids"]

    pixels = resize_and_crop(decode_image(files[1]), 32)[None]
    sha = hashlib.sha256(files[1]).hexdigest()
    mean, std = torch.tensor([0.4815, 0.4578, 0.4082]), torch.tensor([0.2686, 0.2613, 0.2758])
    with torch.no_grad():
        normalised = (pixels - mean[:, None, None]) / std[:, None, None]
        model = CLIPModel.from_pretrained(models / "clip", dtype=torch.float32)
        embedding = model.get_image_features(pixel_values=normalised).pooler_output
        latents = AutoencoderKL.from_pretrained(models / "vae").encode(pixels * 2 - 1).latent_dist
    np.testing.assert_allclose(clip.array([sha]), embedding, atol=2e-3)
    np.testing.assert_allclose(vae.array([sha])[0, :4], latents.mean[0], atol=5e-3)
    np.testing.assert_allclose(vae.array([sha])[0, 4:], latents.logvar[0], atol=2e-2)
    assert ids.array([sha])[0].tolist() == [
        40,
        56,
        0,
        6,
        32,
        32,
    ]  # 40 x 56 becomes 32 x 44, six columns off either side

    capsys.readouterr()
    written = (tmp_path / "targets" / "clip" / "index.json").stat().st_mtime_ns
    assert run_script(tmp_path, models) == 0
    assert capsys.readouterr().out.count("there already") == 3
    assert (tmp_path / "targets" / "clip" / "index.json").stat().st_mtime_ns == written
    assert run_script(tmp_path, models, "image_size=64") == 0
    assert TargetTable.read(tmp_path / "targets" / "vae").shape == (8, 32, 32)


def test_an_image_that_cannot_be_decoded_fails_the_run_and_writes_nothing(tmp_path, models, capsys):
    write_images(tmp_path, [encoded(0), b"\x89PNG but no picture"])
    assert run_script(tmp_path, models, "targets=[clip]") == 3
    assert "not a jpg or png that can be decoded" in capsys.readouterr().err
    assert not (tmp_path / "targets" / "clip").exists()


def test_missing_models_and_images_are_named_before_anything_starts(tmp_path, models, capsys):
    assert run_script(tmp_path, tmp_path / "nowhere") == 2
    message = capsys.readouterr().err
    for words in ("base: ", "clip: ", "images: holds no shards", "hf download"):
        assert words in message
    assert os.listdir(tmp_path) == []


def test_a_picture_that_announces_too_many_pixels_is_refused():
    png = bytearray(encoded(0))
    png[16:24] = (50_000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match=r"can be decoded|pixels are more than"):
        decode_image(bytes(png))


def test_the_preprocessing_is_that_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    content = encoded(7, (70, 50))
    image = decode_image(content)
    ours = resize_and_crop(image, 32)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False
    )
    theirs = torch.as_tensor(processor(Image.open(io.BytesIO(content)), return_tensors="pt")["pixel_values"][0])
    assert (ours - theirs).abs().max().item() < 0.02


def test_a_missing_target_names_the_script(tmp_path):
    with pytest.raises(UserError, match=r"no such targets; make them with shards/precompute_targets\.py"):
        TargetTable.read(tmp_path / "targets" / "clip")


def test_json_of_the_index_states_what_the_targets_were_made_from(tmp_path, models):
    write_images(tmp_path, [encoded(0)])
    assert run_script(tmp_path, models, "targets=[clip]") == 0
    facts = json.loads((tmp_path / "targets" / "clip" / "index.json").read_text())
    assert facts["source"]["images"] == ShardIndex.read(tmp_path / "images").fingerprint


def test_layers_of_a_vision_model_become_targets_that_verify_reads(tmp_path, models, capsys):
    from ttd.data.verify import verify
    from ttd.diffusion.vision_targets import VisionTargets

    files = [encoded(0), encoded(1), encoded(2)]
    write_images(tmp_path, files)
    names = ["mine.pooled", "mine.1-mean", "mine.1-tokens"]
    ask = (f"models.mine={models / 'clip'}", f"targets=[clip, {', '.join(names)}]")
    assert run_script(tmp_path, models, *ask) == 0
    tables = {name: TargetTable.read(tmp_path / "targets" / name) for name in ["clip", *names]}
    assert [table.shape for table in tables.values()] == [(12,), (12,), (16,), (17, 16)]
    said = VisionTargets(str(models / "clip"), ["pooled", "1-mean", "1-tokens"])(files)
    shas = [hashlib.sha256(file).hexdigest() for file in files]
    for name in names:
        np.testing.assert_allclose(tables[name].array(shas), said[name.partition(".")[2]], atol=2e-3)
    np.testing.assert_array_equal(tables["clip"].array(shas), tables["mine.pooled"].array(shas))
    assert verify(tmp_path).findings == []

    capsys.readouterr()
    assert run_script(tmp_path, models, *ask[:1], f"targets=[{', '.join(names)}, mine.0]") == 0
    assert capsys.readouterr().out.count("there already") == 3
    assert TargetTable.read(tmp_path / "targets" / "mine.0").shape == (16,)

    shard = next((tmp_path / "targets" / "mine.0").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert [finding.folder.name for finding in verify(tmp_path).findings] == ["mine.0"]


def test_unknown_targets_layers_and_models_are_named_before_anything_starts(tmp_path, models, capsys):
    write_images(tmp_path, [encoded(0)])
    assert run_script(tmp_path, models, "targets=[clip, other.3]") == 2
    assert "'other.3' is none of clip, vae, text, nor <model>.<layer>" in capsys.readouterr().err
    assert run_script(tmp_path, models, f"models.m={models / 'clip'}", "targets=[m.7]") == 2
    assert "models.m: layer '7': the model has 1 blocks, so 0 to 1" in capsys.readouterr().err
    assert run_script(tmp_path, models, f"models.clip={models / 'clip'}") == 2
    assert "'clip' must be letters" in capsys.readouterr().err


def test_variants_of_weights_that_a_download_brings_along_make_no_other_model(models, tmp_path):
    shutil.copytree(models / "vae", tmp_path / "vae")
    before = identity(str(tmp_path), "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half of it")
    assert identity(str(tmp_path), "vae") == before
    weights.write_bytes(weights.read_bytes() + b" ")
    assert identity(str(tmp_path), "vae") != before
