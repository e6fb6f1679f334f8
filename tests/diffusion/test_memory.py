"""The memory of a step: SDXL's published sizes, what a real pass keeps, and what is chosen from it."""

import pytest
import torch
from test_lora import SDXL

from ttd.diffusion.lora import LoRAConfig, add_lora
from ttd.diffusion.memory import GIB, StepMemory, count, saved


@pytest.mark.parametrize(
    ("pixels", "plain", "checkpointed"),
    [(512, 1.846, 0.117), (1024, 7.32, 0.469)],  # GiB per sample, counted from the layers' shapes by hand
)
def test_sdxl_with_lora_keeps_what_its_layers_add_up_to(pixels, plain, checkpointed):
    found = count(SDXL, LoRAConfig(rank=16), dtype=torch.bfloat16, size=pixels // 8, n_tokens=16)
    assert found.weights == 2 * 2_567_463_684
    assert found.trained == 16 * 23_224_320
    assert found.per_sample / GIB == pytest.approx(plain, rel=0.01)
    largest = found.per_sample_checkpointed / GIB - checkpointed
    assert 0 < largest < 0.1 * plain


def test_a_real_pass_keeps_as_much_as_was_counted(random_base):
    base = random_base()
    counted = count(dict(base.unet.config), LoRAConfig(rank=4), dtype=torch.float32, size=16, n_tokens=4)
    add_lora(base.unet, LoRAConfig(rank=4))
    real, _ = saved(base.unet.train(), size=16, n_tokens=4)
    assert real == counted.per_sample


def model(**changes) -> StepMemory:
    """SDXL at 512 pixels, in round numbers."""
    sizes = {"weights": 5 * GIB, "trained": GIB // 2, "per_sample": 2 * GIB, "per_sample_checkpointed": GIB // 4}
    sizes |= {"beside": 4 * GIB}
    return StepMemory(**sizes | changes)


@pytest.mark.parametrize(
    ("card_gib", "share", "chosen"),
    [
        (141, 32, (32, False)),  # all at once
        (80, 32, (32, False)),
        (48, 32, (16, False)),  # in two passes
        (24, 32, (4, False)),
        (16, 32, (16, True)),  # two samples would fit without checkpointing: too few to keep a GPU busy
        (16, 2, (2, False)),  # but here they are all there are
        (9, 32, None),
    ],
)
def test_as_many_samples_as_fit_without_checkpointing_before_more_with_it(card_gib, share, chosen):
    assert model().choose(card_gib * GIB, share) == chosen


def test_what_is_given_is_kept():
    assert model().choose(141 * GIB, 32, micro=8) == (8, False)
    assert model().choose(141 * GIB, 32, checkpointing=True) == (32, True)
    assert model().choose(24 * GIB, 32, micro=32) == (32, True)
    assert model().choose(16 * GIB, 32, checkpointing=False) == (2, False)
    assert model().choose(24 * GIB, 32, micro=32, checkpointing=False) is None
