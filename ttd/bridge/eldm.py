"""eLDM's conditioning: EEG tokens are mapped to the UNet's conditioning tokens by two linear maps, and those to one more vector.

DreamDiffusion's ``code/dc_ldm/ldm_for_eeg.py`` and ``openaimodel.py`` (Bai et al., 2023, arXiv:2306.16934), after MinD-Vis (Chen
et al., 2023, arXiv:2211.06956), for Stable Diffusion 1.5: 128 EEG tokens → 64 → 77 tokens (over the tokens, each number of a
token alike), width 1024 → 768; and 77 tokens → 38 → 1, width 768 → 1280, the time condition, which is added to the time-step
embedding. Nowhere is there a nonlinearity.

Shapes: B batch, N EEG tokens, E their width, Q conditioning tokens, D their width, P width of the pooled condition.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ttd.config import Config


class EldmBridgeConfig(Config):
    name: Literal["eldm"] = "eldm"
    n_queries: int = Field(default=77, ge=1)
    """Conditioning tokens Q; 77 is the length of Stable Diffusion's captions."""


class EldmBridge(nn.Module):
    """EEG tokens → conditioning tokens and pooled condition, the time condition of Stable Diffusion 1.5.

    Args:
        n_tokens, eeg_dim: N and E of what comes in.
        context_dim, pooled_dim: widths D and P from the base's UNet.
    """

    def __init__(self, config: EldmBridgeConfig, *, n_tokens: int, eeg_dim: int, context_dim: int, pooled_dim: int):
        super().__init__()
        self.config = EldmBridgeConfig(n_queries=config.n_queries)
        self.dims = {
            "n_tokens": n_tokens, "eeg_dim": eeg_dim, "context_dim": context_dim, "pooled_dim": pooled_dim,
        }  # fmt: skip
        q = config.n_queries
        self.channel_mapper = nn.Sequential(*_over_tokens(n_tokens, q))
        self.dim_mapper = nn.Linear(eeg_dim, context_dim)
        self.time_condition = nn.Sequential(*_over_tokens(q, 1), nn.Linear(context_dim, pooled_dim))

    def forward(self, tokens: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens [B, N, E] to context [B, Q, D] and pooled [B, P]; the embedding ``clip`` is not read."""
        context = self.dim_mapper(self.channel_mapper(tokens))
        return context, self.time_condition(context)[:, 0]


def _over_tokens(n_in: int, n_out: int) -> tuple[nn.Conv1d, nn.Conv1d]:
    """Two maps over tokens through half of them, at least one."""
    half = max(1, n_in // 2)
    return nn.Conv1d(n_in, half, 1), nn.Conv1d(half, n_out, 1)
