"""InceptSAD encoder: temporal filters of three widths, a spatial mix, squeeze-and-excitation, transformer blocks.

TTD-net's ``InceptSADEncoder`` is reproduced exactly by the switches of ``configs/*/ttdnet_original.yaml``
(``stem: original``, ``whiten: false``, ``positions: none``, ``attention_scale: embed_dim``, ``block_init: xavier``).
The default keeps the idea and reorders it: without a non-linearity between time and space both orders span the same
linear filters, and mixing the electrodes first costs an eighth of the time.

With ``electrodes: positions`` the weights of the spatial mix are a smooth function of where an electrode lies (a sum of
spherical harmonics, as in Défossez et al., 2023, arXiv:2208.12266, with Fourier terms in the plane), so one encoder
reads any cap.

Inception: Szegedy et al., 2015, arXiv:1409.4842. Squeeze-and-excitation: Hu et al., 2018, arXiv:1709.01507.

Shapes: B batch, C channels, T samples, M maps of the stem, N tokens, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from ttd.encoders.base import Encoder, EncoderBase
from ttd.encoders.electrodes import directions, spherical_harmonics
from ttd.encoders.transformer import Block, sincos_positions, xavier


class InceptSADConfig(EncoderBase):
    """The defaults are the ``base`` width (1024 × 6); ``tiny`` for small studies is written out in
    configs/*/demo.yaml."""

    name: Literal["inceptsad"] = "inceptsad"
    embed_dim: int = 1024
    depth: int = 6
    n_heads: int = 8
    stem: Literal["spatial_first", "original"] = "spatial_first"
    n_filters: int = 16
    """Maps per kernel width after the spatial mix (the original: 8 temporal filters, each with 2 spatial ones)."""
    kernels_ms: tuple[float, ...] = (48.0, 96.0, 192.0)
    """Widths of the temporal filters in ms, rounded to an odd number of samples."""
    kernels_samples: tuple[int, ...] | None = None
    """Widths in samples whatever the rate, as in the original (7, 15, 31); instead of ``kernels_ms``."""
    token_ms: float = 64.0
    """Upper bound of a token's length; longer tokens blur the P1-N1-P2 sequence."""
    pool_samples: int | None = None
    """Samples per token whatever the rate, as in the original (16); instead of ``token_ms``."""
    positions: Literal["sincos", "none"] = "sincos"
    """Fixed positions before the blocks; without them the blocks cannot know the order of the tokens."""
    attention_scale: Literal["head_dim", "embed_dim"] = "head_dim"
    block_init: Literal["zero", "xavier"] = "zero"
    """``zero``: every block starts as the identity."""
    final_norm: bool = True
    """LayerNorm on the tokens. InceptSADNet, the classifier that TTD-net's encoder comes from, has none."""
    electrodes: Literal["free", "positions"] = "free"
    """``free``: every electrode has weights of its own. ``positions``: weights are a function of the electrode's place, so that
    the encoder moves to any cap of 10-05 names, also to electrodes it has never seen."""
    stem_dropout: float = 0.1
    dropout: float = 0.3

    @model_validator(mode="after")
    def _consistent(self) -> InceptSADConfig:
        if self.depth and self.embed_dim % self.n_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be divisible by n_heads={self.n_heads}")
        if self.n_filters % 2 and self.stem == "original":
            raise ValueError(f"n_filters={self.n_filters} must be even: two spatial filters per temporal one")
        if self.electrodes == "positions" and self.stem == "original":
            raise ValueError("electrodes=positions needs stem=spatial_first; the original's stem knows no places")
        return self


def odd_samples(width_ms: float, sfreq: float) -> int:
    """The odd number of samples nearest to a width in ms, at least 3."""
    return max(3, 2 * round((width_ms * sfreq / 1000 - 1) / 2) + 1)


def pool_sizes(config: InceptSADConfig, sfreq: float) -> tuple[int, int]:
    """The two poolings whose product is the samples per token: at most ``token_ms``, or ``pool_samples`` exactly."""
    total = config.pool_samples or max(1, int(config.token_ms * sfreq / 1000))
    first = next(p for p in (4, 3, 2, 1) if p <= total and (config.pool_samples is None or total % p == 0))
    return first, total // first


class InceptSADEncoder(Encoder):
    """EEG [B, C, T] → tokens [B, N, E]; N is fixed by ``n_times`` and the pooling.

    Raises:
        ValueError: the epoch is shorter than a token, or the place of an electrode is needed and not known.
    """

    positions: Tensor | None

    def __init__(self, config: InceptSADConfig, *, n_times: int, sfreq: float, ch_names: Sequence[str]):
        super().__init__(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
        self.embed_dim = config.embed_dim
        self.by_position = config.electrodes == "positions"
        self.channel_axis = {} if self.by_position else {"stem.spatial.weight": 1, "stem.spatial.0.weight": 2}
        pools = pool_sizes(config, sfreq)
        self.n_tokens = n_times // pools[0] // pools[1]
        if self.n_tokens < 1:
            raise ValueError(f"n_times={n_times} is shorter than one token of {pools[0] * pools[1]} samples")
        kernels = config.kernels_samples or tuple(odd_samples(width, sfreq) for width in config.kernels_ms)
        stem = OriginalStem if config.stem == "original" else SpatialFirstStem
        self.stem = stem(config, ch_names=self.ch_names, kernels=kernels, pools=pools)
        positions = sincos_positions(self.n_tokens, self.embed_dim) if config.positions == "sincos" else None
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                config.embed_dim,
                config.n_heads,
                dropout=config.dropout,
                scale=config.attention_scale,
                init=config.block_init,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim) if config.final_norm else nn.Identity()

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to tokens [B, N, E]."""
        x = self.stem(self.whitened(eeg))  # [B, N, E]
        if self.positions is not None and len(self.blocks):
            x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class SqueezeExcitation(nn.Module):
    """Scale every map by a gate computed from the averages of all maps over time."""

    def __init__(self, n_maps: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, n_maps // reduction)
        self.gate = nn.Sequential(
            nn.Linear(n_maps, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, n_maps, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, M, T] to [B, M, T]."""
        return x * self.gate(x.mean(2))[:, :, None]


class SpatialFirstStem(nn.Module):
    """Spatial mix, one temporal filter per map, BN, ELU, pool, squeeze-and-excitation, projection, BN, ELU, pool."""

    harmonics: Tensor | None

    def __init__(
        self, config: InceptSADConfig, *, ch_names: Sequence[str], kernels: Sequence[int], pools: tuple[int, int]
    ):
        super().__init__()
        n_maps = config.n_filters * len(kernels)
        self.kernels, self.pools = tuple(kernels), pools
        harmonics = electrode_harmonics(ch_names) if config.electrodes == "positions" else None
        self.register_buffer("harmonics", harmonics, persistent=False)
        self.spatial = nn.Linear(len(ch_names) if harmonics is None else len(harmonics), n_maps, bias=False)
        self.temporal = nn.ParameterList(
            nn.Parameter(torch.randn(config.n_filters, width) * width**-0.5) for width in kernels
        )
        self.norm1 = nn.BatchNorm1d(n_maps)
        self.excite = SqueezeExcitation(n_maps)
        self.project = nn.Conv1d(n_maps, config.embed_dim, 1, bias=False)
        self.norm2 = nn.BatchNorm1d(config.embed_dim)
        self.dropout = nn.Dropout(config.stem_dropout)
        xavier(self)

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T] to tokens [B, N, E]."""
        weight = self.spatial.weight if self.harmonics is None else self.spatial.weight @ self.harmonics  # [M, C]
        x = torch.matmul(weight, eeg)  # [B, M, T]
        filters = torch.cat([_centre(f, max(self.kernels)) for f in self.temporal])  # [M, widest]
        x = F.elu(self.norm1(depthwise_filter(x, filters)))
        x = self.dropout(F.avg_pool1d(x, self.pools[0]))  # [B, M, T / p1]
        x = F.elu(self.norm2(self.project(self.excite(x))))
        x = self.dropout(F.avg_pool1d(x, self.pools[1]))  # [B, E, N]
        return x.transpose(1, 2)


class OriginalStem(nn.Module):
    """TTD-net's stem: temporal filters, BN and ELU on every electrode, then the spatial mix. Names as in the
    original."""

    def __init__(
        self, config: InceptSADConfig, *, ch_names: Sequence[str], kernels: Sequence[int], pools: tuple[int, int]
    ):
        super().__init__()
        n_temporal = config.n_filters // 2
        n_maps = 2 * n_temporal * len(kernels)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1, n_temporal, (1, width), padding=(0, width // 2), bias=False),
                nn.BatchNorm2d(n_temporal),
                nn.ELU(),
            )
            for width in kernels
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(n_maps // 2, n_maps, (len(ch_names), 1), groups=n_maps // 2, bias=False),
            nn.BatchNorm2d(n_maps),
            nn.ELU(),
            nn.AvgPool2d((1, pools[0])),
            nn.Dropout(config.stem_dropout),
        )
        self.excite = SqueezeExcitation(n_maps)
        self.project = nn.Sequential(
            nn.Conv2d(n_maps, config.embed_dim, 1, bias=False),
            nn.BatchNorm2d(config.embed_dim),
            nn.ELU(),
            nn.AvgPool2d((1, pools[1])),
            nn.Dropout(config.stem_dropout),
        )
        xavier(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T] to tokens [B, N, E]."""
        x = torch.cat([branch(eeg[:, None]) for branch in self.branches], dim=1)  # [B, 24, C, T]
        x = self.excite(self.spatial(x)[:, :, 0])  # [B, 48, T / p1]
        return self.project(x[:, :, None])[:, :, 0].transpose(1, 2)


HARMONIC_DEGREE = 7
"""64 harmonics, as many as a usual cap has electrodes."""


def electrode_harmonics(ch_names: Sequence[str]) -> Tensor:
    """Spherical harmonics at the electrodes [K, C], scaled so that a map is an average over the head: the same source gives
    about the same map however many electrodes see it."""
    values = spherical_harmonics(directions(ch_names), HARMONIC_DEGREE)  # [C, K]
    return torch.from_numpy(values.T * values.shape[1] ** 0.5 / len(values)).float()


def _centre(filters: Tensor, width: int) -> Tensor:
    """Pad filters [F, k] with zeros on both sides to [F, width]; both widths are odd."""
    side = (width - filters.shape[1]) // 2
    return F.pad(filters, (side, side))


def depthwise_filter(x: Tensor, filters: Tensor, block: int = 32) -> Tensor:
    """Cross-correlate each map of [B, M, T] with its own filter [M, k] (k odd, zero padding), length kept.

    The same numbers as ``conv1d(groups=M, padding=k // 2)``; written as one product with Toeplitz matrices over blocks
    of ``block`` samples, which is 3 to 4 times as fast forward and backward on a CPU.
    """
    b, m, t = x.shape
    width = filters.shape[1]
    n_blocks = -(-t // block)
    window = block + width - 1
    x = F.pad(x, (width // 2, n_blocks * block - t + width // 2))
    x = x.unfold(2, window, block).permute(1, 0, 2, 3).reshape(m, b * n_blocks, window)
    shifted = (
        F.pad(filters, (block - 1, block - 1)).unfold(1, window, 1).flip(1)
    )  # [M, block, window], row i shifted by i
    x = torch.bmm(x, shifted.transpose(1, 2))  # [M, B * blocks, block]
    return x.view(m, b, n_blocks * block).transpose(0, 1)[..., :t]
