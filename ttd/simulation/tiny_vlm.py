"""A small vision-language model of the Qwen3-VL class for simulated scenes: its tokenizer, processor and fresh weights.

The class and the folder are those of the real thing (``AutoModelForImageTextToText.from_pretrained(folder)``; Bai et al.,
2025, arXiv:2511.21631), so that a path in a YAML is all that changes. Two things make it small. A picture of 64 pixels is
8 x 8 patches of 8 pixels, one token each. And a description is short, because in the tokenizer each word, each integer and
each stretch of JSON between two values is one token; single characters stand in for everything else.

Letters: B pictures, S pixels, N = (S / patch)² visual tokens, L tokens of a sequence.
"""

from __future__ import annotations

import copy
import re
import shutil
import string
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ttd.config import Config, write_json
from ttd.geometry.description import PREDICATES, SCENE_TYPES, SHAPES, to_text
from ttd.simulation.scenes import COLOURS, KINDS, PLACES, SIZES, describe, draw_scene

PAD, END, START, STOP, IMAGE, VIDEO, ASSISTANT = (
    "<|pad|>", "<|end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|assistant|>",
)  # fmt: skip
SPECIAL = (PAD, END, START, STOP, IMAGE, VIDEO, ASSISTANT)
IMAGE_SIZE, PATCH = 64, 8  # 64 visual tokens: a solid, 20 to 30 pixels wide, covers about nine
# It can do one thing only, so its template drops the words of the request; a picture and a question give the same prompt.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}" + ASSISTANT + "{{ m['content'] }}" + END + "{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + START + IMAGE + STOP + "{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
# A value inside the JSON of a description: what stands in quotation marks without a colon behind, or an integer.
VALUE = re.compile(r'(?<=")[a-z][a-z0-9_ ]*(?="[,\]}])|-?\d+(?=[,}])')


class TinyVLMConfig(Config):
    vision_dim: int = 128
    """Width of the vision tower."""
    vision_depth: int = 4
    """Its blocks."""
    text_dim: int = 128
    """Width of the language model."""
    text_depth: int = 3
    """Its blocks."""
    n_heads: int = 4
    """Attention heads of both."""


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words, integers from -100 to 200, and the JSON between them; ``decode(encode(x)) == x`` for printable ASCII."""
    examples = [to_text(describe(draw_scene(0, n_solids=n))) for n in (1, 2)]
    between = {piece for text in examples for piece in VALUE.split(text)}
    words = {w for text in examples for w in VALUE.findall(text) if not w.lstrip("-").isdigit()}
    words |= {*KINDS, *COLOURS, *SIZES, *PLACES, *SHAPES, *SCENE_TYPES, *PREDICATES, *(f"o{i}" for i in range(8))}
    tokens = between | words | {str(i) for i in range(-100, 201)} | set(string.printable[:95])
    ordered = sorted(tokens - {""}, key=lambda token: (-len(token), token))  # the longest that fits is taken
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *ordered])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, ordered))), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False, extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
    )  # fmt: skip


def make_image_processor() -> Qwen2VLImageProcessorPil:
    """Any picture becomes 64 x 64 pixels in [-1, 1], cut into 8 x 8 patches."""
    area = IMAGE_SIZE**2
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=1, temporal_patch_size=1, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": area, "longest_edge": area},
    )  # fmt: skip


def make_model(config: TinyVLMConfig) -> Qwen3VLForConditionalGeneration:
    """Fresh weights, from torch's global generator."""
    tokenizer = make_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip("pevwiy", SPECIAL[:6], strict=True)}
    head_dim = config.text_dim // config.n_heads
    third = head_dim // 2 // 3
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": config.text_dim, "intermediate_size": 5 * config.text_dim // 2,
        "num_hidden_layers": config.text_depth, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads, "head_dim": head_dim, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_interleaved": True,
                            "mrope_section": [head_dim // 2 - 2 * third, third, third]},
        "pad_token_id": ids["p"], "eos_token_id": ids["e"], "bos_token_id": None, "tie_word_embeddings": True,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "hidden_size": config.vision_dim, "intermediate_size": 2 * config.vision_dim, "depth": config.vision_depth,
        "num_heads": config.n_heads, "patch_size": PATCH, "spatial_merge_size": 1, "temporal_patch_size": 1,
        "out_hidden_size": config.text_dim, "num_position_embeddings": (IMAGE_SIZE // PATCH) ** 2,
        "deepstack_visual_indexes": [config.vision_depth // 2 - 1],
    }  # fmt: skip
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=ids["i"],
            video_token_id=ids["y"],
            vision_start_token_id=ids["v"],
            vision_end_token_id=ids["w"],
            tie_word_embeddings=True,
        )
    )
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids["e"], ids["p"]
    return model


def save_vlm(folder: Path, model: Qwen3VLForConditionalGeneration, facts: dict[str, Any]) -> None:
    """Write a folder that ``from_pretrained`` opens, its weights in fp16, and ``describer.json`` with ``facts``."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(aside)
    make_tokenizer().save_pretrained(aside)
    make_image_processor().save_pretrained(aside)
    write_json(aside / "processor_config.json", {"processor_class": "Qwen3VLProcessor"})
    write_json(aside / "describer.json", facts)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def patches(images: Tensor) -> Tensor:
    """Pictures [B, 3, S, S] in [0, 1] → what the image processor makes of them: [B * N, 3 * patch²] in [-1, 1]."""
    b, c, s, _ = images.shape
    grid = images.reshape(b, c, s // PATCH, PATCH, s // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(-1, c * PATCH * PATCH) * 2 - 1


def grid_of(n_images: int) -> Tensor:
    """The grid of ``n_images`` pictures [B, 3]: one frame, 8 rows, 8 columns of patches."""
    side = IMAGE_SIZE // PATCH
    return torch.tensor([[1, side, side]]).expand(n_images, -1)
