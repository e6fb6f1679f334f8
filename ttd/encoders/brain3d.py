"""Brain3D's EEG encoder as sketched: electrode attention, three temporal convolutions, one vector of all that is left.

After a public sketch of Brain3D (Balloni et al., 2026, arXiv:2604.08068; the paper's own code was not found): each electrode is
scaled by a gate computed from the averages of all electrodes over the epoch, then convolutions of 25, 13 and 7 samples with steps
of 4, 2 and 2 go to 128, 256 and 512 maps, which are flattened and projected to 512 numbers. The sketch assumes 64 electrodes and
256 samples, and counts 8 time steps there where its convolutions leave 9; here every size comes from the data.

Shapes: B batch, C channels, T samples, H width of the gate, L time steps left, E width. One token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ttd.encoders.base import Encoder, EncoderBase


class Brain3DConfig(EncoderBase):
    """The defaults are the sketch's. For epochs under 0.8 s at 125 Hz: kernels_samples [13, 7, 3]."""

    name: Literal["brain3d"] = "brain3d"
    embed_dim: int = Field(default=512, ge=1)
    kernels_samples: tuple[int, ...] = (25, 13, 7)
    """Widths of the convolutions in samples; the sketch names no rate."""
    strides_samples: tuple[int, ...] = (4, 2, 2)
    n_maps: tuple[int, ...] = (128, 256, 512)
    gate_width: int | None = Field(default=None, ge=1)
    """Numbers between the two layers of the electrode attention: a quarter of the electrodes where null. What it came to is
    saved, so that the encoder can move to another cap."""
    whiten: bool = False
    """Off, as in the sketch."""

    @model_validator(mode="after")
    def _as_many(self) -> Brain3DConfig:
        n = {len(self.kernels_samples), len(self.strides_samples), len(self.n_maps)}
        if len(n) > 1 or 0 in n:
            raise ValueError("kernels_samples, strides_samples and n_maps need one number per convolution each")
        return self


def steps_left(config: Brain3DConfig, n_times: int) -> int:
    """Time steps L after the convolutions, which add no margin.

    Raises:
        ValueError: none is left.
    """
    n = n_times
    for kernel, stride in zip(config.kernels_samples, config.strides_samples, strict=True):
        if n < kernel:
            raise ValueError(
                f"n_times={n_times} is too short for convolutions of {list(config.kernels_samples)} samples with steps of "
                f"{list(config.strides_samples)}; give shorter kernels_samples"
            )
        n = (n - kernel) // stride + 1
    return n


class Brain3DEncoder(Encoder):
    """EEG [B, C, T] → one token [B, 1, E].

    Raises:
        ValueError: the epoch is too short for the convolutions.
    """

    channel_axis = {  # noqa: RUF012 - replaced, never changed
        "gate.0.weight": 1,
        "gate.2.weight": 0,
        "gate.2.bias": 0,
        "temporal.0.weight": 1,
    }

    def __init__(self, config: Brain3DConfig, *, n_times: int, sfreq: float, ch_names: Sequence[str]):
        n_chans = len(ch_names)
        width = config.gate_width or max(1, n_chans // 4)
        config = config.model_copy(update={"gate_width": width})
        super().__init__(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
        self.embed_dim, self.n_tokens = config.embed_dim, 1
        self.gate = nn.Sequential(nn.Linear(n_chans, width), nn.ReLU(), nn.Linear(width, n_chans), nn.Sigmoid())
        layers: list[nn.Module] = []
        of = n_chans
        for into, kernel, stride in zip(config.n_maps, config.kernels_samples, config.strides_samples, strict=True):
            layers += [nn.Conv1d(of, into, kernel, stride=stride), nn.BatchNorm1d(into), nn.ReLU()]
            of = into
        self.temporal = nn.Sequential(*layers)
        self.project = nn.Linear(of * steps_left(config, n_times), config.embed_dim)

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to one token [B, 1, E]."""
        eeg = self.whitened(eeg)
        eeg = eeg * self.gate(eeg.mean(2))[:, :, None]
        return self.project(self.temporal(eeg).flatten(1))[:, None]
