"""The light decoder of masked pretraining: tokens of the encoder → the EEG they came from. Thrown away afterwards.

``ReconstructionDecoder`` has the form of TTD-net's: the encoder saw the hidden time filled in. ``MaskTokenDecoder`` has that of
He et al., 2022, "Masked autoencoders", arXiv:2111.06377, and DreamDiffusion: the encoder saw the visible patches alone, and a
learned token stands for each hidden one.

Shapes: B batch, N tokens, V visible tokens, E width of the encoder, W width of the decoder, C channels, T samples, P of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ttd.config import Config
from ttd.encoders.transformer import Block, sincos_positions, xavier
from ttd.encoders.vit import positions_in_halves, vit_blocks


class DecoderConfig(Config):
    width: int = 512
    depth: int = 4
    n_heads: int = 8
    dropout: float = 0.1
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Width of the blocks' GELU layer in widths of the decoder."""


class ReconstructionDecoder(nn.Module):
    """Project, add fixed positions, ``depth`` blocks, and predict the samples of each token's stretch of time.

    Where T is no multiple of N, each token predicts ``ceil(T / N)`` samples and the surplus at the end is cut.
    """

    def __init__(self, config: DecoderConfig, *, embed_dim: int, n_tokens: int, n_chans: int, n_times: int):
        super().__init__()
        self.config, self.n_chans, self.n_times, self.stretch = config, n_chans, n_times, math.ceil(n_times / n_tokens)
        self.embed = nn.Linear(embed_dim, config.width)
        self.register_buffer("positions", sincos_positions(n_tokens, config.width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.width, config.n_heads, dropout=config.dropout, init="xavier", mlp_ratio=config.mlp_ratio)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.predict = nn.Linear(config.width, n_chans * self.stretch)
        xavier(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, N, E] to EEG [B, C, T]."""
        x = self.embed(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.predict(self.norm(x)).unflatten(2, (self.n_chans, self.stretch))  # [B, N, C, stretch]
        return x.permute(0, 2, 1, 3).flatten(2)[..., : self.n_times]


class MaskTokenDecoder(nn.Module):
    """Project the visible patches and the class token, put a learned token in each hidden place, add fixed positions,
    ``depth`` blocks, and predict every patch. Samples after the last whole patch come back as zeros; they are never hidden."""

    positions: Tensor

    def __init__(
        self, config: DecoderConfig, *, embed_dim: int, n_tokens: int, n_chans: int, n_times: int, patch_samples: int
    ):
        super().__init__()
        self.config, self.n_chans, self.n_times, self.patch_samples = config, n_chans, n_times, patch_samples
        self.embed = nn.Linear(embed_dim, config.width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(config.width))
        self.register_buffer("positions", positions_in_halves(n_tokens, config.width), persistent=False)
        self.blocks = vit_blocks(
            config.width, config.depth, config.n_heads, mlp_ratio=config.mlp_ratio, dropout=config.dropout
        )
        self.norm = nn.LayerNorm(config.width)
        self.predict = nn.Linear(config.width, patch_samples * n_chans)
        xavier(nn.ModuleList([self.embed, self.predict]))

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Map the class token and the visible patches [B, 1 + V, E], at the places ``kept`` [B, V], to EEG [B, C, T]."""
        x = self.embed(tokens)
        places = kept[:, :, None].expand(-1, -1, x.shape[2])
        patches = self.mask_token.to(x.dtype).expand(len(x), len(self.positions), -1)
        patches = patches.scatter(1, places, x[:, 1:]) + self.positions  # [B, N, W]
        x = torch.cat([x[:, :1], patches], dim=1)  # the class token's position is zero
        for block in self.blocks:
            x = block(x)
        x = self.predict(self.norm(x[:, 1:])).unflatten(2, (self.patch_samples, self.n_chans))  # [B, N, P, C]
        x = x.permute(0, 3, 1, 2).flatten(2)
        return F.pad(x, (0, self.n_times - x.shape[2]))
