"""Encoder and decoder of TTD-net's checkpoints: sizes are read off the tensors, names are translated.

What no tensor tells (heads, electrodes, rate, length) is passed. Pooling by 4 and 4 samples, attention scaled by the root
of E and no positions are the original's fixed choices (``code/sc_mbm/incept_encoder.py``, ``incept_pretrain.py``).

Shapes: C channels, T samples, N tokens, E width, F filters of one width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttd.config import UserError
from ttd.encoders.base import load_strictly
from ttd.encoders.decoder import DecoderConfig, ReconstructionDecoder
from ttd.encoders.inceptsad import InceptSADConfig, InceptSADEncoder

POOL = 16
ENCODER_NAMES = {
    "conv_embed.se_block.fc": "stem.excite.gate",
    "conv_embed.projection": "stem.project",
    "conv_embed.spatial_conv": "stem.spatial",
    "conv_embed.branches": "stem.branches",
    "transformer.blocks": "blocks",
    "attention.fn.0": "norm1",
    "attention.fn.1.Q": "attention.query",
    "attention.fn.1.K": "attention.key",
    "attention.fn.1.V": "attention.value",
    "attention.fn.1.projection": "attention.out",
    "feedforward.fn.0": "norm2",
    "feedforward.fn.1.fc": "feedforward",
}
DECODER_NAMES = {
    "decoder_embed": "embed",
    "decoder_blocks": "blocks",
    "decoder_norm": "norm",
    "decoder_pred": "predict",
    "mlp": "feedforward",
    "attn.out_proj": "attention.out",
}


def tensors_of(content: Any, section: str, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of one section of a checkpoint whose names start with ``prefix``, without it.

    Raises:
        UserError: there is no such section, or something in it is no tensor of numbers.
    """
    found = content.get(section) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise UserError(f"checkpoint: holds no {section!r}; give a checkpoint_best.pth or latest.pth of TTD-net")
    out = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise UserError(f"checkpoint: {section}: {str(name)[:80]!r} is no tensor but {type(value).__name__}")
        if name.startswith(prefix):
            out[name.removeprefix(prefix)] = torch.from_numpy(np.array(value))  # a copy: the file's own are read-only
    return out


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by our names; query, key and value that the original holds in one tensor are taken apart."""
    out = {}
    for name, value in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "attn.in_proj_" in name:
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[name.replace("attn.in_proj_", f"attention.{part}.")] = chunk
        else:
            out[name] = value
    return out


def size(weights: Mapping[str, Tensor], name: str, axis: int) -> int:
    """One side of a tensor.

    Raises:
        UserError: the tensor is missing, or has no such axis.
    """
    if name not in weights or weights[name].ndim <= axis:
        raise UserError(f"checkpoint: tensor {name!r} is missing or has another shape than TTD-net's")
    return weights[name].shape[axis]


def count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules stand below ``prefix``."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def original_encoder(
    weights: dict[str, Tensor], *, n_heads: int, n_times: int, sfreq: float, ch_names: Sequence[str]
) -> InceptSADEncoder:
    """The original's ``InceptSADEncoder`` with its weights.

    Raises:
        UserError: tensors are missing or do not fit together, or the electrodes are not as many as the checkpoint's.
    """
    n_chans = size(weights, "conv_embed.spatial_conv.0.weight", 2)
    if n_chans != len(ch_names):
        raise UserError(f"ch_names: {len(ch_names)} electrodes are named, the checkpoint was trained on {n_chans}")
    n_branches = count(weights, "conv_embed.branches.")
    kernels = tuple(size(weights, f"conv_embed.branches.{i}.0.weight", 3) for i in range(n_branches))
    config = original_config(
        embed_dim=size(weights, "conv_embed.projection.0.weight", 0),
        depth=count(weights, "transformer.blocks."),
        n_heads=n_heads,
        n_filters=2 * size(weights, "conv_embed.branches.0.0.weight", 0),
        kernels_samples=kernels,
    )
    try:
        encoder = InceptSADEncoder(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
    except ValueError as error:
        raise UserError(f"n_times: {error}") from error
    load_strictly(encoder, renamed(weights, ENCODER_NAMES), source="checkpoint")
    return encoder


def original_config(**sizes: Any) -> InceptSADConfig:
    """The original's form at these sizes.

    Raises:
        UserError: the width is not divisible by the number of heads.
    """
    if sizes["embed_dim"] % sizes["n_heads"]:
        raise UserError(
            f"n_heads={sizes['n_heads']}: the checkpoint's width is {sizes['embed_dim']}, which it must divide"
        )
    return InceptSADConfig(
        stem="original",
        whiten=False,
        pool_samples=POOL,
        positions="none",
        attention_scale="embed_dim",
        block_init="xavier",
        stem_dropout=0.3,
        dropout=0.3,
        **sizes,
    )


def original_decoder(weights: dict[str, Tensor], *, n_heads: int, n_chans: int) -> ReconstructionDecoder:
    """The decoder of the original's masked pretraining; its length is that of its positions.

    Raises:
        UserError: tensors are missing or do not fit together.
    """
    own = {n: t for n, t in weights.items() if n.startswith("decoder_") and n != "decoder_pos"}
    width, embed_dim = (size(own, "decoder_embed.weight", axis) for axis in (0, 1))
    if width % n_heads:
        raise UserError(f"decoder_heads={n_heads}: the decoder's width is {width}, which it must divide")
    n_tokens = size(weights, "decoder_pos", 1)
    decoder = ReconstructionDecoder(
        DecoderConfig(width=width, depth=count(own, "decoder_blocks."), n_heads=n_heads),
        embed_dim=embed_dim,
        n_tokens=n_tokens,
        n_chans=n_chans,
        n_times=n_tokens * (size(own, "decoder_pred.weight", 0) // n_chans),
    )
    load_strictly(decoder, renamed(own, DECODER_NAMES), source="checkpoint")
    return decoder
