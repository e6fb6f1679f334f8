"""What all encoders have in common: whose electrodes, which rate and length, whitening at the door, strict loading.

Shapes: B batch, C channels, T samples, N tokens, E width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttd.config import Config, UserError

log = logging.getLogger(__name__)


class EncoderBase(Config):
    """What the configuration of every encoder says."""

    whiten: bool = True
    """Whiten the channels at the door by a matrix fitted once on the training part (multivariate noise normalisation)."""


class Encoder(nn.Module):
    """EEG [B, C, T] → tokens [B, N, E].

    Attributes:
        n_tokens, embed_dim: N, fixed by ``n_times``, and E.
        ch_names: the electrodes in the order of the input's channels; weights move between caps by these names.
        channel_axis: tensors with an electrode axis, and which one it is; None where that is not known, so that the
            weights cannot move.
        by_position: whether electrodes are known by where they lie, so that any cap will do.
        transfer: what the last move between caps did with each electrode, or None.
    """

    n_tokens: int
    embed_dim: int
    whitening: Tensor | None
    channel_axis: dict[str, int] | None = {}  # noqa: RUF012 - replaced, never changed
    by_position = False

    def __init__(self, config: Any, *, n_times: int, sfreq: float, ch_names: Sequence[str]):
        super().__init__()
        self.config, self.n_times, self.sfreq, self.ch_names = config, n_times, float(sfreq), list(ch_names)
        self.transfer: dict[str, Any] | None = None
        self.register_buffer("whitening", torch.eye(len(self.ch_names)) if config.whiten else None)

    def set_noise_covariance(self, covariance: Tensor) -> None:
        """Fit the whitening to the covariance [C, C] of the background in the scaled training data.

        Guggenmos, Sterzer & Cichy, 2018, NeuroImage 173:434. Shrunk towards equal variances by 1 %.

        Raises:
            ValueError: the encoder does not whiten, or the shape is not [C, C].
        """
        n = len(self.ch_names)
        if self.whitening is None or covariance.shape != (n, n):
            shape = list(covariance.shape)
            raise ValueError(f"whiten={self.config.whiten}, {n} channels: cannot take a covariance {shape}")
        self.whitening.copy_(inverse_square_root(covariance))

    def whitened(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T] to whitened EEG [B, C, T], or leave it as it is."""
        return eeg if self.whitening is None else torch.matmul(self.whitening, eeg)


def inverse_square_root(covariance: Tensor, shrinkage: float = 0.01) -> Tensor:
    """The symmetric whitening matrix [C, C] of a covariance [C, C] shrunk towards its mean variance."""
    covariance = covariance.double()
    target = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.double)
    values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * target)
    return ((vectors * values**-0.5) @ vectors.T).float()


def load_strictly(module: nn.Module, weights: dict[str, Tensor], *, source: str, allow_partial: bool = False) -> None:
    """Load ``weights``, or say which tensors do not fit; nothing loads partly in silence.

    Raises:
        UserError: tensors are missing, unknown or of another shape, and ``allow_partial`` is not set.
    """
    own = module.state_dict()
    wrong = [f"{name}: missing in the file" for name in own if name not in weights]
    wrong += [f"{name}: unknown to the model" for name in weights if name not in own]
    wrong += [
        f"{name}: {list(weights[name].shape)} in the file, {list(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if wrong and not allow_partial:
        raise UserError(f"{source}: weights do not fit the configuration:\n  " + "\n  ".join(wrong))
    if wrong:
        log.warning("%s: loaded in part; started anew or left out:\n  %s", source, "\n  ".join(wrong))
    module.load_state_dict({n: t for n, t in weights.items() if n in own and t.shape == own[n].shape}, strict=False)
