"""What encoder and decoder of a masked autoencoder share: its blocks, and its form of fixed positions.

He et al., 2022, "Masked autoencoders are scalable vision learners", arXiv:2111.06377.

Shapes: N tokens, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttd.encoders.transformer import Block

ONE_OF_THREE = 0.5**0.5
"""Query, key and value are one [3E, E] layer there: Xavier's bound for it is this much smaller than for [E, E] each."""


def vit_blocks(dim: int, depth: int, n_heads: int, *, mlp_ratio: float, dropout: float = 0.0) -> nn.ModuleList:
    """Blocks [B, N, E] → [B, N, E] that start as those of a vision transformer.

    Raises:
        ValueError: ``dim`` is not divisible by ``n_heads``.
    """
    blocks = [Block(dim, n_heads, dropout=dropout, init="xavier", mlp_ratio=mlp_ratio) for _ in range(depth)]
    for block in blocks:
        for layer in (block.attention.query, block.attention.key, block.attention.value):
            nn.init.xavier_uniform_(layer.weight, gain=ONE_OF_THREE)
    return nn.ModuleList(blocks)


def positions_in_halves(n: int, dim: int) -> Tensor:
    """Fixed positions [n, dim], sines in the first half of the columns and cosines in the second.

    Raises:
        ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"positions need an even width, got {dim}")
    frequency = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(n, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
