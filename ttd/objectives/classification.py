"""A classifier of epochs: encoder and head. With the InceptSAD encoder it is InceptSADNet.

TTD-net's InceptSADNet (the classifier its encoder was adapted from) is the form ``head: {form: original}`` with the
encoder of ``objectives/inceptsadnet.py``; the default is one linear layer on all tokens.

Shapes: B batch, C channels, T samples, N tokens, E width of the encoder, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ttd.config import Config
from ttd.encoders import Encoder


class ClassHeadConfig(Config):
    form: Literal["linear", "original"] = "linear"
    """``linear``: dropout and one linear layer. ``original``: LayerNorm, 512 ELU, 64 ELU, as in InceptSADNet."""
    tokens: Literal["flat", "mean"] = "flat"
    """``flat`` keeps which moment a value belongs to; ``mean`` forgets it, for signals without an event."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Before the linear layer, or after the layer of 512."""


class ClassHead(nn.Module):
    """Tokens [B, N, E] → logits [B, K]."""

    def __init__(self, config: ClassHeadConfig, *, embed_dim: int, n_tokens: int, n_classes: int):
        super().__init__()
        self.config = config
        width = embed_dim * (n_tokens if config.tokens == "flat" else 1)
        if config.form == "linear":
            self.classify = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, n_classes))
        else:
            hidden = [nn.LayerNorm(width), nn.Linear(width, 512), nn.ELU(), nn.Dropout(config.dropout)]
            self.classify = nn.Sequential(
                *hidden, nn.Linear(512, 64), nn.ELU(), nn.Dropout(0.6 * config.dropout), nn.Linear(64, n_classes)
            )  # 0.5 and 0.3 in the original

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, N, E] to logits [B, K]."""
        return self.classify(tokens.flatten(1) if self.config.tokens == "flat" else tokens.mean(1))


class Classifier(nn.Module):
    """Encoder and head, trained by cross-entropy.

    Args:
        smoothing: share of the target that is spread over all classes (Szegedy et al., 2016, arXiv:1512.00567).
    """

    def __init__(self, encoder: Encoder, head: ClassHeadConfig, *, n_classes: int, smoothing: float = 0.0):
        super().__init__()
        self.encoder, self.smoothing = encoder, smoothing
        self.head = ClassHead(head, embed_dim=encoder.embed_dim, n_tokens=encoder.n_tokens, n_classes=n_classes)

    def logits(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to logits [B, K]."""
        return self.head(self.encoder(eeg)).float()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: "eeg" [B, C, T] and "label" [B], numbers below K. Chance of the accuracy: 1 / K."""
        logits = self.logits(batch["eeg"])
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.smoothing)
        accuracy = (logits.detach().argmax(1) == batch["label"]).float().mean()
        return {"loss": loss, "accuracy": accuracy}
