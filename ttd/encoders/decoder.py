"""The light decoder of masked pretraining: tokens of the encoder → the EEG they came from. Thrown away afterwards.

Form of TTD-net's temporal-masking decoder (which follows He et al., 2022, "Masked autoencoders", arXiv:2111.06377).

Shapes: B batch, N tokens, E width of the encoder, C channels, T samples.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ttd.config import Config
from ttd.encoders.transformer import Block, sincos_positions, xavier


class DecoderConfig(Config):
    width: int = 512
    depth: int = 4
    n_heads: int = 8
    dropout: float = 0.1


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
            Block(config.width, config.n_heads, dropout=config.dropout, init="xavier") for _ in range(config.depth)
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
