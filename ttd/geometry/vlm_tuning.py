"""Fine-tuning of a vision-language model on pairs of a picture and its description, by LoRA (Hu et al., 2021,
arXiv:2106.09685) on the attention of its language model.

A pair becomes the chat that the describer holds: picture and question, then the JSON as the answer. Only the tokens of the
answer are asked for. What is trained, and so what a state holds, are the adapters; at the end they are merged into the
weights and saved with the processor, as a folder that the describer opens.

Letters: B pairs, L tokens of a chat.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn

from ttd.config import UserError
from ttd.geometry.describer import Describer, refused_by_grammar
from ttd.geometry.description import parse, to_text

ATTENTION = r"^(?!.*visi?on|.*visual).*\.(q|k|v|o)_proj$"  # of the language model; the vision tower keeps its own
PROCESSOR_FILES = (".json", ".jinja", ".txt", ".model")  # tokenizers, templates and picture settings of all families
IGNORE = -100  # transformers' word for a token that is not asked for


@dataclass(frozen=True)
class Pair:
    """A picture and its description, parsed."""

    image: Path
    description: dict[str, Any]

    def pixels(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3]."""
        return np.asarray(Image.open(self.image).convert("RGB"))


def read_pairs(path: Path) -> list[Pair]:
    """Pairs from JSON lines ``{"image": <path beside the file>, "description": {...}}``.

    Raises:
        UserError: all lines that are wrong, each with its number.
    """
    if not path.is_file():
        raise UserError(f"describer.pairs: {path} does not exist")
    pairs, problems = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            content = json.loads(line)
            pair = Pair(path.parent / content["image"], parse(json.dumps(content["description"])))
            if not pair.image.is_file():
                raise ValueError(f"no picture {pair.image}")
            pairs.append(pair)
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"describer.pairs: {path}:{number}: {error}")
    if problems or not pairs:
        raise UserError("\n".join(problems[:20]) or f"describer.pairs: {path} holds no pairs")
    return pairs


class PairObjective(nn.Module):
    """``forward(pairs)`` is the cross-entropy of the descriptions; its parameters are the adapters alone."""

    def __init__(self, describer: Describer, *, rank: int):
        super().__init__()
        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION, lora_dropout=0.0)
        self._held = (describer, get_peft_model(describer.model, settings))  # in a tuple, so that it is no submodule
        trained = {n.replace(".", "/"): p for n, p in self._held[1].named_parameters() if p.requires_grad}
        self.adapters = nn.ParameterDict(trained)

    def forward(self, pairs: Sequence[Pair]) -> Tensor:
        """Mean over the tokens of all answers."""
        describer, model = self._held
        return model(**chat_batch(describer, pairs)).loss

    def merge(self) -> None:
        """Add the adapters to the weights of the describer's model, which is then an ordinary model again."""
        describer, model = self._held
        describer.model = model.merge_and_unload()


def chat_batch(describer: Describer, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Model inputs and ``labels`` [B, L]: questions padded on the left, answers on the right, and only answers labelled."""
    inputs = describer.ask([pair.pixels() for pair in pairs])
    tokenizer, device = describer.tokenizer, inputs["input_ids"].device
    texts = [to_text(pair.description) + tokenizer.eos_token for pair in pairs]
    answers = [torch.tensor(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    ids = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=tokenizer.pad_token_id).to(device)
    real = nn.utils.rnn.pad_sequence([torch.ones_like(a) for a in answers], batch_first=True).to(device)
    batch = {**inputs, "labels": torch.full_like(inputs["input_ids"], IGNORE)}
    more = {"input_ids": ids, "attention_mask": real, "labels": ids.masked_fill(real == 0, IGNORE)}
    if "mm_token_type_ids" in batch:  # which tokens are pictures; an answer holds none
        more["mm_token_type_ids"] = torch.zeros_like(ids)
    return batch | {name: torch.cat([batch[name], tail.to(batch[name])], dim=1) for name, tail in more.items()}


def check_tokens(describer: Describer, pairs: Sequence[Pair]) -> None:
    """Refuse pairs that the model would learn to write and the grammar would then forbid.

    Raises:
        UserError: naming the first of them.
    """
    end = describer.tokenizer.eos_token
    refused = refused_by_grammar(describer.tokenizer, [to_text(pair.description) + end for pair in pairs])
    if refused:
        raise UserError(f"describer.pairs: the grammar forbids {len(refused)} descriptions, the first: {refused[0]}")


def save_tuned(describer: Describer, folder: Path) -> None:
    """Write the describer's model, and beside it the processor files of the model that it was started from."""
    describer.model.save_pretrained(folder)
    source = Path(describer.config.model)
    if not source.is_dir():
        names = [f"*{suffix}" for suffix in PROCESSOR_FILES]
        revision = describer.config.revision  # its weights were loaded, so its snapshot is here
        source = Path(snapshot_download(str(source), revision=revision, allow_patterns=names, local_files_only=True))
    for path in source.iterdir():
        # config.json and generation_config.json are the model's own, *.index.json lists its files
        if path.suffix in PROCESSOR_FILES and not path.match("*.index.json") and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
