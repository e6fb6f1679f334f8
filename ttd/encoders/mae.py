"""ViT-MAE encoder: patches of a few samples of all electrodes, fixed positions, transformer blocks.

The encoder of DreamDiffusion (Bai et al., 2023, arXiv:2306.16934), a masked autoencoder (He et al., 2022, arXiv:2111.06377)
in one dimension. The defaults are its sizes: 512 samples of 128 electrodes give 128 tokens of 1024 numbers.

In pretraining it sees the visible patches alone, behind a class token (``encode_visible``). Afterwards it sees every patch and
no class token, as in the original; the token then takes part in nothing.

Shapes: B batch, C channels, T samples, P samples of a patch, N patches and as many tokens, V visible ones, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ttd.encoders.base import Encoder, EncoderBase
from ttd.encoders.vit import positions_in_halves, vit_blocks


class MAEConfig(EncoderBase):
    """The defaults are DreamDiffusion's; 256 × 4 with 8 heads is a size for small studies."""

    name: Literal["mae"] = "mae"
    patch_samples: int = Field(default=4, ge=1)
    """Samples of a patch whatever the rate, as in the original."""
    embed_dim: int = Field(default=1024, ge=2)
    depth: int = Field(default=24, ge=0)
    n_heads: int = Field(default=16, ge=1)
    mlp_ratio: float = Field(default=1.0, gt=0)
    """Width of the blocks' GELU layer in widths of a token."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    whiten: bool = False
    """Off, as in the original."""

    @model_validator(mode="after")
    def _consistent(self) -> MAEConfig:
        if self.embed_dim % self.n_heads or self.embed_dim % 2:
            raise ValueError(f"embed_dim={self.embed_dim} must be even and divisible by n_heads={self.n_heads}")
        return self


class MAEEncoder(Encoder):
    """EEG [B, C, T] → tokens [B, N, E], one per patch; samples after the last whole patch are not read.

    Raises:
        ValueError: the epoch is shorter than a patch.
    """

    config: MAEConfig
    positions: Tensor
    channel_axis = {"embed.weight": 1}  # noqa: RUF012 - replaced, never changed

    def __init__(self, config: MAEConfig, *, n_times: int, sfreq: float, ch_names: Sequence[str]):
        super().__init__(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
        self.embed_dim, self.n_tokens = config.embed_dim, n_times // config.patch_samples
        if self.n_tokens < 1:
            raise ValueError(f"n_times={n_times} is shorter than one patch of {config.patch_samples} samples")
        self.embed = nn.Conv1d(len(self.ch_names), self.embed_dim, config.patch_samples, stride=config.patch_samples)
        nn.init.normal_(self.embed.weight, std=0.02)  # this and the token: as the authors
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]
        self.class_token = nn.Parameter(0.02 * torch.randn(self.embed_dim))
        self.register_buffer("positions", positions_in_halves(self.n_tokens, self.embed_dim), persistent=False)
        self.blocks = vit_blocks(
            self.embed_dim, config.depth, config.n_heads, mlp_ratio=config.mlp_ratio, dropout=config.dropout
        )
        self.norm = nn.LayerNorm(self.embed_dim)

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to tokens [B, N, E]."""
        tokens = self._through_blocks(self._patches(eeg))
        return (
            tokens + 0.0 * self.class_token
        )  # is not read here; ranks and states want a gradient of all that is trained

    def encode_visible(self, eeg: Tensor, kept: Tensor) -> Tensor:
        """Map EEG [B, C, T], of which the patches ``kept`` [B, V] are read, to class token and patches [B, 1 + V, E]."""
        x = self._patches(eeg)
        x = x.gather(1, kept[:, :, None].expand(-1, -1, self.embed_dim))
        first = self.class_token.to(x.dtype).expand(len(x), 1, -1)  # its position is zero
        return self._through_blocks(torch.cat([first, x], dim=1))

    def _patches(self, eeg: Tensor) -> Tensor:
        return self.embed(self.whitened(eeg)).transpose(1, 2) + self.positions

    def _through_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
