"""Pictures drawn again under their description, by a small SDXL of random weights with real classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ttd.config import UserError
from ttd.diffusion.base import BaseConfig
from ttd.geometry.refine import RefineConfig, Refiner, prompt_of

WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
DESCRIPTION = {
    "objects": [
        {"label": "torus", "color": "blue", "size": "small", "place": "right", "position": {"x": 45, "y": 0, "z": 0}},
        {"label": "cone", "color": "red", "size": "large", "place": "left", "position": {"x": -45, "y": 0, "z": 0}},
    ],
    "geometry": "smooth and pointed",
}


def test_the_prompt_names_the_objects_from_left_to_right_in_the_words_of_the_template():
    assert prompt_of(DESCRIPTION, RefineConfig()) == (
        "red cone and blue torus, smooth and pointed, three-quarter view, plain background"
    )
    simulated = RefineConfig(
        object_template="a {size} {color} {label} {place}", joiner=" , ", prompt_template="{objects}"
    )
    assert prompt_of(DESCRIPTION, simulated) == "a large red cone left , a small blue torus right"


@pytest.mark.parametrize("wrong", [{"object_template": "{beauty}"}, {"prompt_template": "{label}"}, {"strength": 0}])
def test_a_template_that_names_what_no_description_has_is_refused_at_once(wrong):
    with pytest.raises(ValidationError):
        RefineConfig(**wrong)


def test_a_base_that_is_not_here_is_named(tmp_path):
    config = RefineConfig(base=BaseConfig(path=str(tmp_path / "none")))
    with pytest.raises(UserError, match="refine.base.path: .* is neither a folder here"):
        Refiner.prepare(config, device=torch.device("cpu"))


def test_a_picture_is_drawn_again_under_its_prompt_whatever_stands_beside_it():
    config = RefineConfig(base=BaseConfig(path=str(WEIGHTS)), steps=4, strength=0.5, guidance=3.0)
    refiner = Refiner.prepare(config, device=torch.device("cpu"))
    images = [np.full((64, 64, 3), value, np.uint8) for value in (90, 160)]
    both = refiner(images, ["a large red cone left", "a small blue torus right"], [1, 2])
    (second,) = refiner(images[1:], ["a small blue torus right"], [2])
    assert both[0].shape == (64, 64, 3)
    assert both[0].dtype == np.uint8
    assert np.array_equal(both[1], second)
    (other,) = refiner(images[1:], ["a large red cone left"], [2])
    assert not np.array_equal(second, other), "the words change the picture"
    assert str(WEIGHTS) in refiner.revision
