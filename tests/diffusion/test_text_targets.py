"""Captions and the states the base's text encoders give for them."""

import json
from pathlib import Path

import pytest
import torch

from ttd.config import UserError
from ttd.diffusion.text_targets import TextTargets, caption_of, read_captions, split_states

TINY = Path(__file__).parents[2] / "weights/tiny"


def test_the_states_are_those_the_pipeline_conditions_its_unet_on():
    from diffusers import StableDiffusionXLPipeline

    captions = ["a large red cone left", "a small blue torus right"]
    states = torch.from_numpy(TextTargets(str(TINY))(captions)).float()
    context, pooled = split_states(states, context_dim=128, pooled_dim=64)
    pipeline = StableDiffusionXLPipeline.from_pretrained(TINY, torch_dtype=torch.float32, add_watermarker=False)
    expected, _, expected_pooled, _ = pipeline.encode_prompt(captions[1])
    assert torch.allclose(context[1:], expected, atol=5e-3)  # half precision on disk
    assert torch.allclose(pooled[1:], expected_pooled, atol=5e-3)


def test_captions_come_from_a_plain_file_or_a_simulated_study_or_the_concept(tmp_path):
    (tmp_path / "plain.json").write_text(json.dumps({"a": "a red box"}))
    (tmp_path / "scenes.json").write_text(json.dumps({"scenes": {"a": {"caption": "a red box", "seed": 1}}}))
    for name in ("plain.json", "scenes.json"):
        known = read_captions(tmp_path / name)
        assert caption_of("a", "box", known) == "a red box"
        assert caption_of("b", "ice_cube", known) == "a photo of a ice cube"
    with pytest.raises(ValueError, match="'c' has neither a caption nor a concept"):
        caption_of("c", None, known)


def test_a_file_without_captions_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="cannot be read as captions"):
        read_captions(tmp_path / "x.json")
