"""The demo's CLIP: a ``CLIPModel`` for 64-px pictures and scene captions, with heads that name what an embedding holds.

Radford et al., 2021, arXiv:2103.00020. Only a few hundred captions exist, so equal captions within a batch are all
right answers (soft targets), and four linear heads on the image embedding keep kind, colour, size and *place* in it: an
embedding without place would make everything conditioned on it place-blind.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ttd.config import UserError
from ttd.seeding import numpy_rng, torch_rng
from ttd.simulation.base_data import VOCABULARY, Pictures
from ttd.untrusted.weights import find_tampered

MAX_LENGTH = 24
EMBED_DIM = 64
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, as every CLIP preprocessing expects them
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_SCALE = 8.0  # logits of a unit vector need room; a constant, so the heads stay linear


def make_tokenizer() -> CLIPTokenizer:
    """A byte-pair vocabulary of the caption grammar: nearly every word is one token."""
    words = ["a", ",", *(w for words in VOCABULARY.values() for w in words)]
    letters = sorted({c for w in words for c in w})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:  # merge from the left, so that the whole word is reachable
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            tokens.append(pieces[0])
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=MAX_LENGTH, pad_token="<|endoftext|>"
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, MAX_LENGTH], padded as the SDXL pipeline pads."""
    out = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    return out.input_ids


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Patch 8 on 64 px, 128 wide; text 96 wide; a shared space of 64 numbers."""
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": 64, "patch_size": 8, "projection_dim": EMBED_DIM,
    }  # fmt: skip
    text = {
        "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 3,
        "max_position_embeddings": MAX_LENGTH, "vocab_size": len(tokenizer), "projection_dim": EMBED_DIM,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=EMBED_DIM, logit_scale_init_value=2.3)
    return CLIPModel(config)


def normalise_pixels(images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] → CLIP's input."""
    mean, std = images.new_tensor(PIXEL_MEAN), images.new_tensor(PIXEL_STD)
    return (images - mean[:, None, None]) / std[:, None, None]


class ClipWithHeads(nn.Module):
    """The CLIP and its naming heads: linear maps of the unit image embedding."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.heads = nn.ModuleDict({k: nn.Linear(EMBED_DIM, len(w)) for k, w in VOCABULARY.items()})

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit image embeddings [B, 64] of pictures [B, 3, 64, 64] in [0, 1]."""
        vision = self.clip.vision_model(pixel_values=normalise_pixels(images)).pooler_output
        return F.normalize(self.clip.visual_projection(vision), dim=-1)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit text embeddings [B, 64] of token ids [B, L]."""
        return F.normalize(self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output), dim=-1)

    def name(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Logits of kind, colour, size and place from unit embeddings [B, 64]."""
        return {k: head(HEAD_SCALE * embeddings) for k, head in self.heads.items()}


class ClipLoss:
    """``loss_at(step)``: symmetric InfoNCE with soft targets + 0.5 × the naming heads' cross-entropy."""

    def __init__(
        self, model: ClipWithHeads, tokenizer: CLIPTokenizer, parts: list[Pictures], *, batch_size: int, seed: int
    ) -> None:
        self.model, self.parts, self.batch_size, self.seed = model, parts, batch_size, seed
        self.ids = [tokenize(tokenizer, p.captions) for p in parts]

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, part = numpy_rng(self.seed, "clip", step), step % len(self.parts)
        pictures = self.parts[part]  # one look a batch: the look must not help to tell pictures apart
        rows = rng.choice(len(pictures), size=self.batch_size, replace=False)
        images, ids = pictures.images(rows), self.ids[part][rows]
        # A brightness and noise no decoder gets exactly right should not change what is named.
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(rows), 1, 1, 1))).float()
        noise = torch.randn(images.shape, generator=torch_rng(self.seed, "clip-noise", step))
        images = (images * gain + 0.03 * noise).clamp(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            image, text = self.model.embed_images(images), self.model.embed_text(ids)
            named = self.model.name(image)
        image, text = image.float(), text.float()
        scale = self.model.clip.logit_scale.clamp(max=np.log(60)).exp()
        logits = scale * image @ text.T
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        naming = [F.cross_entropy(named[k].float(), pictures.labels[k][rows]) for k in VOCABULARY]
        right = (named["kind"].argmax(1) == pictures.labels["kind"][rows]).float().mean()
        return contrast + 0.5 * torch.stack(naming).sum(), {"contrast": contrast.item(), "kind": right.item()}


def save_clip(folder: Path, model: ClipWithHeads, tokenizer: CLIPTokenizer) -> None:
    """A ``CLIPModel`` folder in half precision, with tokenizer, preprocessing and the heads beside it."""
    make = CLIPModel(CLIPConfig.from_dict(model.clip.config.to_dict()))
    make.load_state_dict(model.clip.state_dict())
    make.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(
        {k: v.half().contiguous() for k, v in model.heads.state_dict().items()}, str(folder / "heads.safetensors")
    )
    size = model.clip.config.vision_config.image_size
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
        "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True, "do_normalize": True,
        "resample": 3, "image_mean": PIXEL_MEAN, "image_std": PIXEL_STD,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=1) + "\n")


def load_clip(folder: Path) -> tuple[ClipWithHeads, CLIPTokenizer]:
    """The CLIP with its heads in float32, ready to embed and to name.

    Raises:
        UserError: its weights are not those of its list of hashes.
    """
    tampered = find_tampered(folder)
    if tampered:
        raise UserError(tampered)
    model = ClipWithHeads(CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True))
    model.heads.load_state_dict({k: v.float() for k, v in load_file(str(folder / "heads.safetensors")).items()})
    return model.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(folder)
