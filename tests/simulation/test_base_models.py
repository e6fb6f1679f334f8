"""The tiny base models: their formats on fresh random weights, and the figures of the shipped ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ttd.config import UserError
from ttd.simulation import base_report, tiny_clip, tiny_unet, tiny_vae
from ttd.simulation.base_data import pictures, scenes_of
from ttd.simulation.judge import Judge, load_judge, name_pictures, save_judge
from ttd.simulation.scenes import caption

SHIPPED = Path(__file__).parents[2] / "weights/tiny"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_clip.make_tokenizer()


def test_captions_survive_the_tokenizer_and_differ_in_their_ids(tokenizer):
    captions = sorted({caption(s) for s in scenes_of("train", 300, 0.5)})
    ids = tiny_clip.tokenize(tokenizer, captions)
    assert [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids] == captions
    assert len({tuple(row.tolist()) for row in ids}) == len(captions)


def test_the_longest_caption_fits(tokenizer):
    longest = max((caption(s) for s in scenes_of("train", 200, 0.0)), key=lambda c: len(c.split()))
    assert len(tokenizer(longest).input_ids) <= tiny_clip.MAX_LENGTH


def test_a_saved_clip_embeds_as_before(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = tiny_clip.ClipWithHeads(tiny_clip.make_clip(tokenizer)).eval()
    images, ids = (
        torch.rand(2, 3, 64, 64),
        tiny_clip.tokenize(tokenizer, ["a large red cone left", "a small blue box right"]),
    )
    tiny_clip.save_clip(tmp_path, model, tokenizer)
    loaded, _ = tiny_clip.load_clip(tmp_path)
    assert torch.allclose(loaded.embed_images(images), model.embed_images(images), atol=2e-3)  # half precision on disk
    assert torch.allclose(loaded.embed_text(ids), model.embed_text(ids), atol=2e-3)


def test_text_states_are_those_the_pipeline_computes(tmp_path, tokenizer):
    torch.manual_seed(0)
    tiny_clip.save_clip(tmp_path / "clip", tiny_clip.ClipWithHeads(tiny_clip.make_clip(tokenizer)), tokenizer)
    model = tiny_unet.make_model(tokenizer, tmp_path / "clip").eval()
    tiny_unet.save_pipeline(tmp_path, model, tiny_vae.make_vae(), tokenizer)
    context, _, pooled, _ = tiny_unet.load_pipeline(tmp_path).encode_prompt(["a large red cone left"])
    ids = tiny_clip.tokenize(tokenizer, ["a large red cone left"])
    own_context, own_pooled = model.condition(ids, torch.ones(1))
    assert torch.allclose(own_context, context, atol=5e-3)
    assert torch.allclose(own_pooled, pooled, atol=5e-3)


def test_the_unet_stays_under_six_million_parameters():
    assert sum(p.numel() for p in tiny_unet.make_unet().parameters()) <= 6_000_000


def test_a_judge_is_saved_and_loaded(tmp_path):
    judge = Judge().eval()
    save_judge(tmp_path, judge)
    x = torch.rand(3, 3, 64, 64)
    assert torch.allclose(load_judge(tmp_path).features(x), judge.features(x), atol=5e-3)


def test_a_folder_without_judge_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="no judge here .* train one with python ttd/train_base.py"):
        load_judge(tmp_path)


def test_foreground_psnr_ignores_the_table():
    images, mask = torch.zeros(1, 3, 4, 4), np.full((1, 4, 4), -1, dtype=np.int8)
    mask[0, 0, 0] = 0
    other = images.clone()
    other[..., 1:, :] = 1.0  # wrong on the table alone
    other[..., 0, 0] = 0.1
    assert tiny_vae.foreground_psnr(images, other, mask) == pytest.approx(20.0)


def test_all_shipped_weights_together_stay_within_25_megabytes():
    assert sum(f.stat().st_size for f in SHIPPED.parent.rglob("*.safetensors")) <= 25e6


def test_the_shipped_vae_clip_and_judge_hold_their_figures_on_unseen_scenes():
    part = pictures("unseen", "base", 60, 1.0)
    images = part.images(range(60))
    vae = base_report.load_vae(SHIPPED / "vae")
    assert tiny_vae.foreground_psnr(images, tiny_vae.reconstruct(vae, images), part.mask) >= 29
    named = base_report.shares(name_pictures(load_judge(SHIPPED / "judge"), images), part)
    assert min(named.values()) >= 0.95
    clip, _ = tiny_clip.load_clip(SHIPPED / "clip")
    heads = base_report.shares(base_report.name_by_heads(clip, images), part)
    assert heads["kind"] >= 0.85
    assert heads["colour"] >= 0.95
    assert heads["place"] >= 0.80


def test_the_shipped_pipeline_draws_what_the_caption_says():
    part = pictures("unseen", "base", 24, 1.0)
    drawn = base_report.generate(tiny_unet.load_pipeline(SHIPPED), part.captions, seed=1)
    named = base_report.shares(name_pictures(load_judge(SHIPPED / "judge"), drawn), part)
    assert named["kind"] >= 0.85
    assert named["colour"] >= 0.9


def test_the_model_card_states_what_was_measured():
    figures = json.loads((SHIPPED / "figures.json").read_text())
    assert (SHIPPED / "README.md").read_text() == base_report.model_card(figures)
