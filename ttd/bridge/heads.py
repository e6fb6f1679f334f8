"""Heads on the encoder's tokens: the CLIP head for alignment, the pooled projection for SDXL's second condition.

Shapes: B batch, C channels, T time points, N EEG tokens, E encoder width, Q conditioning tokens, D their width, P width
of the pooled condition, K width of the CLIP embedding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttd.bridge.linear_readout import LinearReadout
from ttd.config import Config

MAX_LOGIT_SCALE = math.log(100.0)  # Radford et al., 2021, arXiv:2103.00020, section 2.5


class ClipHeadConfig(Config):
    mode: Literal["flat", "query", "mean", "weighted"] = "flat"
    """``flat``: one linear map of all tokens. ``query``: a learned query attends to them, then an MLP. ``mean``:
    TTD-net's form, which averages the tokens first and so forgets which moment a value belongs to. ``weighted``:
    DreamDiffusion's form, a learned weighted sum of the tokens, then a linear map."""
    dropout: float = 0.3


class ClipHead(nn.Module):
    """Tokens [B, N, E] → an embedding [B, K] to compare with CLIP's, and the learned scale of that comparison.

    With a ``linear`` readout beside it, the embedding is the mean of both directions where the EEG is given as well; in
    training, and without the EEG, it is the network's alone.
    """

    def __init__(
        self,
        config: ClipHeadConfig,
        *,
        embed_dim: int,
        n_tokens: int,
        clip_dim: int,
        linear: LinearReadout | None = None,
    ):
        super().__init__()
        self.linear = linear
        self.config, self.embed_dim, self.n_tokens, self.clip_dim = config, embed_dim, n_tokens, clip_dim
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))  # DeepSpeed cannot broadcast a scalar
        self.dropout = nn.Dropout(config.dropout)
        if config.mode == "flat":
            self.project: nn.Module = nn.Linear(n_tokens * embed_dim, clip_dim)
        elif config.mode == "weighted":
            self.sum = nn.Conv1d(n_tokens, 1, 1)
            self.project = nn.Linear(embed_dim, clip_dim)
        else:
            self.project = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.GELU(), nn.Linear(embed_dim, clip_dim))
        if config.mode == "query":
            self.query = nn.Parameter(torch.zeros(n_tokens, embed_dim))

    def forward(self, tokens: Tensor, eeg: Tensor | None = None) -> Tensor:
        """Map tokens [B, N, E], and for the linear readout the ``eeg`` [B, C, T], to an embedding [B, K], not normalised."""
        if self.config.mode == "flat":
            x = tokens.flatten(1)
        elif self.config.mode == "query":
            weight = ((tokens * self.query).sum(2) * self.embed_dim**-0.5).softmax(1)  # [B, N]; a key per moment
            x = (weight[:, :, None] * tokens).sum(1)
        elif self.config.mode == "weighted":
            x = self.sum(tokens)[:, 0]
        else:
            x = tokens.mean(1)
        embedding = self.project(self.dropout(x))
        if self.linear is None or eeg is None or self.training:
            return embedding
        return (F.normalize(embedding.float(), dim=1) + F.normalize(self.linear(eeg), dim=1)) / 2

    def scale(self) -> Tensor:
        """The factor on cosines, at most 100."""
        return self.logit_scale[0].clamp(max=MAX_LOGIT_SCALE).exp()


class PooledProjection(nn.Module):
    """The mean of the conditioning tokens, mapped to the width of SDXL's pooled text embedding (TTD-net's form)."""

    def __init__(self, *, context_dim: int, pooled_dim: int):
        super().__init__()
        self.project = nn.Linear(context_dim, pooled_dim)
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    def forward(self, context: Tensor) -> Tensor:
        """Map conditioning tokens [B, Q, D] to the pooled condition [B, P]."""
        return self.project(context.mean(1))
