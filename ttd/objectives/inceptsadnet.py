"""InceptSADNet in its published shape, as a classifier of epochs.

TTD-net, ``code/sc_mbm/InceptSADNet.py``, the classifier that its encoder was adapted from: temporal filters of 15, 31 and 63
samples on every electrode, a spatial mix, squeeze-and-excitation, three transformer blocks without a norm after them, all tokens
flattened into layers of 512 and 64. 30 channels of 1001 samples give 62 tokens of 40 numbers, so 2,480 to the first layer; other
data give other numbers, which are computed. Its attention mask, which calls a method that does not exist, is left out, and so is
a second head that nothing calls.

Widths, rate, batch and passes are its configuration's; optimizer, schedule and draws of epochs are those of every network here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ttd.config import Config
from ttd.encoders import InceptSADConfig
from ttd.objectives.classification import ClassHeadConfig
from ttd.objectives.probing import NetworkSettings


class InceptSADNetConfig(Config):
    name: Literal["inceptsadnet"] = "inceptsadnet"
    kernels_samples: tuple[int, ...] = (15, 31, 63)
    """Widths of the temporal filters in samples whatever the rate, as in the original."""
    embed_dim: int = Field(default=40, ge=1)
    depth: int = Field(default=3, ge=0)
    n_heads: int = Field(default=5, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """In stem, blocks and after the layer of 512; three fifths of it after that of 64."""
    lr: float = Field(default=2e-3, gt=0)
    batch_size: int = Field(default=128, ge=2)
    passes: int = Field(default=100, ge=1)
    """Over the training epochs."""

    def settings(self) -> NetworkSettings:
        """The same in the words of any network of the probe."""
        encoder = InceptSADConfig(
            embed_dim=self.embed_dim,
            depth=self.depth,
            n_heads=self.n_heads,
            stem="original",
            kernels_samples=self.kernels_samples,
            pool_samples=16,
            positions="none",
            attention_scale="embed_dim",
            block_init="xavier",
            final_norm=False,
            whiten=False,
            stem_dropout=self.dropout,
            dropout=self.dropout,
        )
        return NetworkSettings(
            encoder=encoder,
            head=ClassHeadConfig(form="original", dropout=self.dropout),
            passes=self.passes,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=0.0,
            smoothing=0.0,
            mix=False,
            time_jitter=0,
            noise=0.0,
        )
