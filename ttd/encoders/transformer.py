"""The transformer block shared by encoders and decoders, and fixed sine-cosine positions.

Pre-norm block of Vaswani et al., 2017, arXiv:1706.03762, with the residual branches started at zero (as in Zhang et
al., 2019, "Fixup", arXiv:1901.09321), so that a deeper model starts as a shallow one.

Shapes: B batch, N tokens, E width, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sincos_positions(n: int, dim: int) -> Tensor:
    """Fixed positions [n, dim] of Vaswani et al., section 3.5: sines in the even, cosines in the odd columns.

    Raises:
        ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"positions need an even width, got {dim}")
    frequency = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(n, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).float()


class Attention(nn.Module):
    """Multi-head self-attention through SDPA; ``scale`` divides by the root of the head's width or, as TTD-net did, of
    E."""

    def __init__(self, dim: int, n_heads: int, *, dropout: float, scale: Literal["head_dim", "embed_dim"]):
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"width {dim} must be divisible by n_heads={n_heads}")
        self.n_heads, self.dropout = n_heads, dropout
        self.scale = (dim // n_heads if scale == "head_dim" else dim) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, E] to [B, N, E]."""
        b, n, e = x.shape
        q, k, v = (
            proj(x).view(b, n, self.n_heads, e // self.n_heads).transpose(1, 2)  # [B, H, N, E/H]
            for proj in (self.query, self.key, self.value)
        )
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, scale=self.scale)
        return self.out(x.transpose(1, 2).reshape(b, n, e))


class Block(nn.Module):
    """Attention and a GELU layer ``mlp_ratio`` times as wide, each behind a LayerNorm and around a residual."""

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        dropout: float = 0.0,
        scale: Literal["head_dim", "embed_dim"] = "head_dim",
        init: Literal["zero", "xavier"] = "zero",
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        hidden = int(dim * mlp_ratio + 1e-6)  # a ratio read off a checkpoint may be a little under a whole number
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, n_heads, dropout=dropout, scale=scale)
        last = nn.Linear(hidden, dim)
        self.feedforward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), last)
        self.dropout = nn.Dropout(dropout)
        xavier(self)
        if init == "zero":
            nn.init.zeros_(self.attention.out.weight)
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, E] to [B, N, E]."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feedforward(self.norm2(x)))


def xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer below ``module``."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
