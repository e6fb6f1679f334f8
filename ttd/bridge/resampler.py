"""Perceiver resampler: a fixed number of conditioning tokens from EEG tokens of any number.

Alayrac et al., 2022, "Flamingo", arXiv:2204.14198, section 3.1. With ``queries_see_each_other: false`` it is the
resampler of TTD-net (``code/dc_ldm/ip_adapter_bridge.py``): 102,864,896 parameters for 16 × 2048 from width 1024.

Shapes: B batch, N EEG tokens, E encoder width, Q queries, D width of the UNet's cross-attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttd.config import Config


class ResamplerConfig(Config):
    n_queries: int = 16
    """Conditioning tokens Q handed to the UNet, whatever the length of the epoch."""
    depth: int = 2
    """Layers of attention and feed-forward."""
    n_heads: int = 8
    dropout: float = 0.1
    queries_see_each_other: bool = True
    """Whether the queries stand among the keys, as in Flamingo; the original's see the EEG alone."""


class ResamplerLayer(nn.Module):
    """The queries attend to the tokens (and to each other), then pass a feed-forward network; pre-norm, residual."""

    def __init__(self, config: ResamplerConfig, width: int):
        super().__init__()
        self.queries_see_each_other = config.queries_see_each_other
        self.norm1 = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, config.n_heads, dropout=config.dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.ff = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Update the queries x [B, Q, D] from tokens [B, N, D]."""
        queries, keys = self.norm1(x), self.norm_kv(tokens)
        if self.queries_see_each_other:
            keys = torch.cat([keys, queries], dim=1)  # [B, N + Q, D]
        x = x + self.cross_attn(queries, keys, keys, need_weights=False)[0]
        return x + self.ff(self.norm2(x))


class PerceiverResampler(nn.Module):
    """Learned queries gather what the UNet is told from the EEG tokens.

    Args:
        eeg_dim: width E of the encoder's tokens.
        context_dim: width D of the UNet's cross-attention (2048 for SDXL).

    Raises:
        ValueError: D is not divisible by the number of heads.
    """

    def __init__(self, config: ResamplerConfig, *, eeg_dim: int, context_dim: int):
        super().__init__()
        if context_dim % config.n_heads:
            raise ValueError(f"context_dim={context_dim} must be divisible by n_heads={config.n_heads}")
        self.input_proj = nn.Linear(eeg_dim, context_dim)
        self.norm_in = nn.LayerNorm(context_dim)
        self.latent_tokens = nn.Parameter(torch.randn(1, config.n_queries, context_dim) * 0.02)  # as the original
        self.layers = nn.ModuleList(ResamplerLayer(config, context_dim) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(context_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map EEG tokens [B, N, E] to conditioning tokens [B, Q, D]."""
        tokens = self.norm_in(self.input_proj(tokens))  # [B, N, D]
        x = self.latent_tokens.expand(len(tokens), -1, -1)  # [B, Q, D]
        for layer in self.layers:
            x = layer(x, tokens)
        return self.norm_out(x)
