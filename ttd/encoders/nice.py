"""NICE encoder: temporal filters on every electrode, an average over time, then one mix of all electrodes.

Song et al., 2024, "Decoding natural images from EEG for object recognition" (ICLR), arXiv:2308.13234, the module TSConv:
the strong plain baseline of the field, which ATM (Li et al., 2024, arXiv:2403.07721) uses as well. The widths of the paper
at 250 Hz (25, 51 and a step of 5 samples) are given in ms, so that they mean the same at any rate.

Nothing non-linear stands between the temporal filters and the average, so the average is taken first and only every
``stride_ms`` is filtered: the same function, a sixth of the time on a CPU.

Shapes: B batch, C channels, T samples, W filters, N tokens, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ttd.encoders.base import Encoder, EncoderBase


class NiceConfig(EncoderBase):
    """The defaults are the paper's. For epochs under 0.8 s: kernel_ms 104, pool_ms 104, stride_ms 24."""

    name: Literal["nice"] = "nice"
    embed_dim: int = Field(default=40, ge=1)
    """Width of a token."""
    n_filters: int = Field(default=40, ge=1)
    """Temporal filters, and maps of the spatial mix."""
    kernel_ms: float = Field(default=100.0, gt=0)
    """Width of the temporal filters."""
    pool_ms: float = Field(default=204.0, gt=0)
    """Width of the average over time."""
    stride_ms: float = Field(default=20.0, gt=0)
    """From one token to the next."""
    dropout: float = 0.5


class NiceEncoder(Encoder):
    """EEG [B, C, T] → tokens [B, N, E], one every ``stride_ms``.

    Raises:
        ValueError: the epoch is shorter than filter and average together.
    """

    channel_axis = {"spatial.weight": 2}  # noqa: RUF012 - replaced, never changed

    def __init__(self, config: NiceConfig, *, n_times: int, sfreq: float, ch_names: Sequence[str]):
        super().__init__(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
        widths = (config.kernel_ms, config.pool_ms, config.stride_ms)
        kernel, self.pool, self.stride = (max(1, round(ms * sfreq / 1000)) for ms in widths)
        if n_times < kernel + self.pool - 1:
            raise ValueError(
                f"n_times={n_times} is shorter than a filter of {kernel} and an average of {self.pool} samples; "
                "give a shorter kernel_ms or pool_ms"
            )
        self.embed_dim = config.embed_dim
        self.n_tokens = (n_times - self.pool - kernel + 1) // self.stride + 1
        self.temporal = nn.Conv2d(1, config.n_filters, (1, kernel))
        self.norm1 = nn.BatchNorm2d(config.n_filters)
        self.spatial = nn.Conv2d(config.n_filters, config.n_filters, (len(self.ch_names), 1))
        self.norm2 = nn.BatchNorm2d(config.n_filters)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Conv2d(config.n_filters, config.embed_dim, 1)
        for layer in (self.temporal, self.spatial):
            nn.init.normal_(layer.weight, 0.0, 0.02)  # as the authors
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.weight, 1.0, 0.02)

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to tokens [B, N, E]."""
        x = F.avg_pool1d(self.whitened(eeg), self.pool, stride=1)  # [B, C, T - pool + 1]
        x = F.conv2d(x[:, None], self.temporal.weight, self.temporal.bias, stride=(1, self.stride))  # [B, W, C, N]
        x = F.elu(self.norm2(self.spatial(F.elu(self.norm1(x)))))  # [B, W, 1, N]
        return self.project(self.dropout(x))[:, :, 0].transpose(1, 2)
