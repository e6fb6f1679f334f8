"""Encoder and decoder of DreamDiffusion's pretraining checkpoints: sizes are read off the tensors, names are translated.

Its file holds ``model``, ``optimizer``, ``epoch``, ``scaler`` and the pickled ``config``. ``model`` is encoder and decoder
together (``MAEforEEG`` of ``code/sc_mbm/mae_for_eeg.py``), in the names of timm's blocks. What no tensor tells (heads,
electrodes, rate) is passed. Parts of the optional loss on pictures (``nature_img_*``) reconstruct no EEG and are left out.

Shapes: C channels, P samples of a patch, N patches, E width of the encoder, W of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ttd.config import UserError
from ttd.encoders.base import load_strictly
from ttd.encoders.decoder import DecoderConfig, MaskTokenDecoder
from ttd.encoders.mae import MAEConfig, MAEEncoder
from ttd.encoders.original import count, renamed, size

MARK = "patch_embed.proj.weight"
"""The tensor by which such a checkpoint is known."""
BLOCK_NAMES = {
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attention.out.",
    "mlp.fc1.": "feedforward.0.",
    "mlp.fc2.": "feedforward.3.",
}
ENCODER_NAMES = {"patch_embed.proj.": "embed.", "cls_token": "class_token", **BLOCK_NAMES}
DECODER_NAMES = {"decoder_embed.": "embed.", "decoder_blocks.": "blocks.", "decoder_norm.": "norm.", "decoder_pred.": "predict.",
                 **BLOCK_NAMES}  # fmt: skip
DECODER_ONLY = ("decoder_", "mask_token", "nature_img_")


def original_mae_encoder(
    weights: Mapping[str, Tensor], *, n_heads: int, sfreq: float, ch_names: Sequence[str]
) -> MAEEncoder:
    """The encoder of ``MAEforEEG`` with its weights; its length is that of its positions.

    Raises:
        UserError: tensors are missing or do not fit together, or the electrodes are not as many as the checkpoint's.
    """
    embed_dim, n_chans, patch = (size(weights, MARK, axis) for axis in range(3))
    if n_chans != len(ch_names):
        raise UserError(f"ch_names: {len(ch_names)} electrodes are named, the checkpoint was trained on {n_chans}")
    if embed_dim % n_heads:
        raise UserError(f"n_heads={n_heads}: the checkpoint's width is {embed_dim}, which it must divide")
    config = MAEConfig(
        patch_samples=patch,
        embed_dim=embed_dim,
        depth=count(weights, "blocks."),
        n_heads=n_heads,
        mlp_ratio=size(weights, "blocks.0.mlp.fc1.weight", 0) / embed_dim,
    )
    n_tokens = size(weights, "pos_embed", 1) - 1
    encoder = MAEEncoder(config, n_times=n_tokens * patch, sfreq=sfreq, ch_names=ch_names)
    own = {n: t for n, t in weights.items() if not n.startswith(DECODER_ONLY) and n != "pos_embed"}
    load_strictly(encoder, _one_row(renamed(own, ENCODER_NAMES), "class_token"), source="checkpoint")
    _check_positions(weights, "pos_embed", encoder.positions)
    return encoder


def original_mae_decoder(weights: Mapping[str, Tensor], encoder: MAEEncoder, *, n_heads: int) -> MaskTokenDecoder:
    """The decoder of ``MAEforEEG`` with its weights.

    Raises:
        UserError: tensors are missing or do not fit together.
    """
    width = size(weights, "decoder_embed.weight", 0)
    if width % n_heads:
        raise UserError(f"decoder_heads={n_heads}: the decoder's width is {width}, which it must divide")
    config = DecoderConfig(
        width=width,
        depth=count(weights, "decoder_blocks."),
        n_heads=n_heads,
        dropout=0.0,
        mlp_ratio=size(weights, "decoder_blocks.0.mlp.fc1.weight", 0) / width,
    )
    decoder = MaskTokenDecoder(
        config,
        embed_dim=encoder.embed_dim,
        n_tokens=encoder.n_tokens,
        n_chans=len(encoder.ch_names),
        n_times=encoder.n_times,
        patch_samples=encoder.config.patch_samples,
    )
    own = {n: t for n, t in weights.items() if n.startswith(("decoder_", "mask_token")) and n != "decoder_pos_embed"}
    load_strictly(decoder, _one_row(renamed(own, DECODER_NAMES), "mask_token"), source="checkpoint")
    _check_positions(weights, "decoder_pos_embed", decoder.positions)
    return decoder


def _one_row(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tokens are [1, 1, E] there and [E] here."""
    return {n: t.flatten() if n == name else t for n, t in weights.items()}


def _check_positions(weights: Mapping[str, Tensor], name: str, positions: Tensor) -> None:
    """The positions of the file must be the fixed ones: zero for the class token, then one per patch."""
    expected = torch.cat([torch.zeros(1, positions.shape[1]), positions])[None]
    found = weights.get(name)
    if found is None or found.shape != expected.shape or not torch.allclose(found.float(), expected, atol=1e-4):
        raise UserError(f"checkpoint: {name} does not hold the fixed positions of DreamDiffusion's encoder")
