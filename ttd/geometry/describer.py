"""A picture in words and integers: any vision-language model of transformers, held to the schema while it writes.

The model is whatever ``AutoModelForImageTextToText`` opens, a folder or a repository with its processor and chat template;
nothing here knows a model's name. At each step llguidance says which tokens keep the text inside the grammar of
``ttd.geometry.description``, and the others are forbidden. What comes out is parsed as it is, never repaired: a text that
was cut or does not parse is asked for once more, drawn with another seed, and then counts as failed.

Letters: B pictures, L tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ttd.config import Config, UserError
from ttd.geometry.description import grammar_schema, parse, semantic_problems
from ttd.seeding import key
from ttd.untrusted.weights import COMMIT, find_tampered

logger = logging.getLogger(__name__)

PROMPT = (
    "Describe this picture as one line of JSON with the keys schema_version (1), scene_type (indoor, outdoor, object or "
    "tabletop), objects, relations, depth, geometry and confidence (0 to 100). Give each object an id from o0 on, nearest "
    "first, a label, a color, the closest shape (sphere, box, cylinder, cone, torus, capsule or other), a size (small or "
    "large), a place (left, middle or right), its position and extent, and its depth_rank from 0 for the nearest. Positions "
    "are integers from -100 to 100 in a cube around the scene: x to the right, y up, z towards the camera; extents are from "
    "0 to 200. Relations name a subject, a predicate and an object by id; depth lists the ids that are near and far; "
    "geometry says in a few words how the scene is built."
)


class DescriberConfig(Config):
    model: str = "weights/tiny/describer"
    """Folder, or repository on the Hub, of a vision-language model with its processor."""
    revision: str | None = None
    """Commit of the repository; not for a folder, whose weights are hashed."""
    prompt: str = PROMPT
    """What the model is asked beside the picture; the embedded describer needs no words and drops them."""
    constrained: bool = True
    """Forbid every token that leaves the grammar. Without it the model writes freely, and what does not parse fails."""
    max_new_tokens: int = 1536
    """Eight objects and twelve relations fit; a text that reaches it is cut, and counts as such."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the weights are computed with; bfloat16 for large models on a GPU."""


@dataclass(frozen=True)
class Described:
    """The answer for one picture."""

    status: Literal["ok", "truncated", "failed"]
    raw: str
    """The text exactly as it was written."""
    description: dict[str, Any] | None = None
    """The parsed text when the status is ``ok``."""
    reason: str = ""
    """Why the status is not ``ok``."""
    problems: list[str] = field(default_factory=list)
    """Where a well-formed description contradicts itself."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, revision, hash of the prompt, seed, engine, attempt and whether the text was cut; never from the model."""


class GrammarMask:
    """Sets to -inf what would leave the grammar. One use: it follows one ``generate`` call from its first token."""

    def __init__(self, vocabulary: Any, grammar: str, *, n_prompt: int):
        self.vocabulary, self.grammar, self.seen = vocabulary, grammar, n_prompt
        self.matchers: list[Any] = []  # one per row of the batch, made when its size is known

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Token ids [B, L] so far and scores [B, V] of the next token → scores."""
        from llguidance import LLMatcher
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        self.matchers = self.matchers or [LLMatcher(self.vocabulary, self.grammar) for _ in input_ids]
        words = allocate_token_bitmask(len(scores), self.vocabulary.vocab_size)  # int32 [B, V / 32]
        for i, (matcher, new) in enumerate(zip(self.matchers, input_ids[:, self.seen :].tolist(), strict=True)):
            if new and not matcher.is_stopped():  # a row that has ended is padded until the others have
                matcher.consume_tokens(new)
            fill_next_token_bitmask(matcher, words, i)
            if matcher.is_error():
                raise RuntimeError(f"llguidance: {matcher.get_error()}")
        self.seen = input_ids.shape[1]
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        allowed = torch.zeros(scores.shape, dtype=torch.bool)  # a head may be wider than its tokenizer
        n = min(self.vocabulary.vocab_size, scores.shape[1])
        allowed[:, :n] = torch.from_numpy(bits[:, :n]).bool()
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


def grammar_of(tokenizer: Any, ends: list[int]) -> tuple[Any, str]:
    """What llguidance needs: the tokenizer as it sees it, ended by any of the tokens ``ends``, and the grammar."""
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, eos_token=ends), LLMatcher.grammar_from_json_schema(json.dumps(grammar_schema()))


def refused_by_grammar(tokenizer: Any, texts: list[str]) -> list[str]:
    """Those of the texts, each with its end token, whose tokens the grammar does not let a model write.

    A model that was trained on such a text would write something else under the grammar, valid and wrong.
    """
    from llguidance import LLMatcher

    vocabulary, grammar = grammar_of(tokenizer, [tokenizer.eos_token_id])
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    accepted = [LLMatcher(vocabulary, grammar).validate_tokens(ids) == len(ids) for ids in tokens]
    return [text for text, ok in zip(texts, accepted, strict=True) if not ok]


def find_missing(model: str, revision: str | None = None) -> list[str]:
    """What keeps a describer from being loaded, before anything is loaded: sentences for a check, empty when all is there.

    A name that is no folder is taken for a repository on the Hub, which must be named by its commit; of what it holds nothing can
    be said without a network.
    """
    problems = []
    if find_spec("llguidance") is None:
        problems.append("describer: the package llguidance is missing; pip install llguidance")
    folder = Path(model)
    if not folder.exists():
        if model.count("/") != 1 or model.startswith((".", "/", "~")):
            problems.append(f"describer.model: {model} does not exist; give a folder or a repository owner/name")
        elif revision is None or not COMMIT.fullmatch(revision):
            problems.append(
                f"describer.revision: {model} is a repository, whose files may change; give its commit (40 hex digits)"
            )
        return problems
    for pattern in ("config.json", "*.safetensors", "tokenizer_config.json", "*processor_config.json"):
        if not any(folder.glob(pattern)):
            problems.append(f"describer.model: {model} holds no {pattern}, so it is no vision-language model's folder")
    tampered = find_tampered(folder)
    return [*problems, f"describer.model: {tampered}"] if tampered else problems


def load_processor(model: str, revision: str | None = None) -> Any:
    """The processor of a model; without its video half where that cannot be loaded, as pictures need none.

    The video processors of transformers need torchvision, and most vision-language models have one.

    Raises:
        UserError: there is no processor, or a package that it needs is missing.
    """
    try:
        return transformers.AutoProcessor.from_pretrained(model, revision=revision)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    try:
        kind = PROCESSOR_MAPPING_NAMES[transformers.AutoConfig.from_pretrained(model, revision=revision).model_type]
        stills: Any = type(kind, (getattr(transformers, kind),), {"check_argument_for_proper_class": lambda *_: None})
        autos = (transformers.AutoImageProcessor, transformers.AutoTokenizer)
        parts = [auto.from_pretrained(model, revision=revision) for auto in autos]
        content, _ = stills.get_processor_dict(model, revision=revision)
        return stills.from_args_and_dict([*parts, None], {"chat_template": parts[1].chat_template, **content})
    except (ImportError, OSError, ValueError, KeyError) as error:
        logger.debug("without its video half: %s", error)
        raise UserError(f"describer.model: {model}: its processor cannot be loaded: {reason[:300]}") from error


class Describer:
    """A loaded model and its processor; ``describe`` is all there is to do with it."""

    def __init__(self, model: Any, processor: Any, config: DescriberConfig, *, revision: str = "untrained"):
        self.model, self.processor, self.config, self.revision = model.eval(), processor, config, revision
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"  # so that the texts of a batch begin at one place
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.chat_template is None and getattr(processor, "chat_template", None) is None:
            raise UserError(f"describer.model: {config.model} has no chat template, so it cannot be asked anything")
        ends = model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends: list[int] = ends if isinstance(ends, list) else [ends]
        if config.constrained:
            self.vocabulary, self.grammar = grammar_of(self.tokenizer, self.ends)

    @classmethod
    def prepare(cls, config: DescriberConfig, device: torch.device | str = "cpu") -> Describer:
        """Load model and processor (UserError names what is missing)."""
        problems = find_missing(config.model, config.revision)
        if problems:
            raise UserError("\n".join(problems))
        try:
            model, loading = transformers.AutoModelForImageTextToText.from_pretrained(
                config.model, revision=config.revision, dtype=getattr(torch, config.dtype), output_loading_info=True,
                use_safetensors=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"describer.model: {config.model} cannot be loaded: {error}") from error
        if loading["missing_keys"]:  # transformers would leave them at random
            names = ", ".join(sorted(loading["missing_keys"])[:5])
            raise UserError(f"describer.model: {config.model}: its weights lack {names}")
        processor = load_processor(config.model, config.revision)
        return cls(model.to(device), processor, config, revision=revision_of(config.model, model))

    def info(self) -> dict[str, Any]:
        """What the descriptions were made with, for their provenance."""
        return {
            "model": self.config.model,
            "revision": self.revision,
            "engine": f"llguidance {version('llguidance')}" if self.config.constrained else "free",
            "prompt": hashlib.sha256(self.config.prompt.encode()).hexdigest()[:16],
            "dtype": self.config.dtype,
            "max_new_tokens": self.config.max_new_tokens,
        }

    def describe(self, images: list[np.ndarray], *, seeds: list[int]) -> list[Described]:
        """One answer per picture, uint8 [H, W, 3]; pictures may differ in size. ``seeds[i]`` is that of a second try.

        The first try takes the likeliest token each time and needs no seed.
        """
        answers = []
        for image, seed, (raw, cut) in zip(images, seeds, self._write(images), strict=True):
            answer = self._read(raw, cut, seed=None, attempt=1)
            if answer.status != "ok":
                (raw, cut), *_ = self._write([image], seed=seed)
                answer = self._read(raw, cut, seed=seed, attempt=2)
            answers.append(answer)
        return answers

    @torch.no_grad()
    def _write(self, images: list[np.ndarray], seed: int | None = None) -> list[tuple[str, bool]]:
        """For each picture the text and whether it was cut: the likeliest one, or one drawn with ``seed``."""
        inputs = self.ask(images)
        n_prompt = inputs["input_ids"].shape[1]
        masks = [GrammarMask(self.vocabulary, self.grammar, n_prompt=n_prompt)] if self.config.constrained else []
        with torch.random.fork_rng():
            torch.manual_seed(0 if seed is None else key(seed, "describe"))
            written = self.model.generate(
                **inputs, max_new_tokens=self.config.max_new_tokens, do_sample=seed is not None,
                logits_processor=transformers.LogitsProcessorList(masks), pad_token_id=self.tokenizer.pad_token_id,
            )[:, n_prompt:]  # fmt: skip
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ended = torch.isin(written.cpu(), torch.tensor(self.ends)).any(dim=1).tolist()
        return [(text, not end) for text, end in zip(texts, ended, strict=True)]

    def ask(self, images: list[np.ndarray]) -> Any:
        """The model's inputs for the question about each picture, texts padded on the left."""
        question = {"type": "text", "text": self.config.prompt}
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(image)}, question]}]
            for image in images
        ]
        inputs = self.processor.apply_chat_template(
            chats, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        return inputs.to(self.model.device, self.model.dtype)

    def _read(self, raw: str, cut: bool, *, seed: int | None, attempt: int) -> Described:
        """The text as a description, or why it is none."""
        provenance = {**self.info(), "seed": seed, "attempt": attempt, "truncated": cut}
        if cut:
            reason = f"cut after max_new_tokens={self.config.max_new_tokens}"
            return Described("truncated", raw, reason=reason, provenance=provenance)
        try:
            description = parse(raw)
        except ValueError as error:
            return Described("failed", raw, reason=str(error), provenance=provenance)
        return Described("ok", raw, description, problems=semantic_problems(description), provenance=provenance)


def revision_of(name: str, model: Any) -> str:
    """The commit of a repository, or a hash of a folder's weights."""
    folder = Path(name)
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None) or "unknown")
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
