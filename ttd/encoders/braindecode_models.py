"""Any model of braindecode as an encoder: ``name: braindecode:Labram``, ``braindecode:EEGNet`` and so on.

Braindecode (Schirrmeister et al., 2017, and followers; https://braindecode.org) is an optional package. A model that gives
features (``forward(x, return_features=True)``: Labram, CBraMod, REVE, EEGPT, BIOT, SignalJEPA, …) gives these as tokens and
loses its classifier; any other gives its output, ``embed_dim`` numbers, as one token.

The model's own demands are met or refused at the start: the rate it was made for, a length it can cut into its patches
(one epoch of zeros is passed through), electrodes it knows (by name, and with their 10-05 places where known).

Shapes: B batch, C channels, T samples, N tokens, E width.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from ttd.config import UserError
from ttd.encoders.base import Encoder, EncoderBase, load_strictly
from ttd.encoders.electrodes import RADIUS, directions

RATES = {"Labram": 200, "CBraMod": 200, "REVE": 200, "BIOT": 200, "CodeBrain": 200, "EEGPT": 256}
"""Hz of the published weights; their patches are counted in samples, so another rate shows them other frequencies."""


class BraindecodeConfig(EncoderBase):
    name: str = Field(default="braindecode:EEGNet", pattern=r"^braindecode:[A-Za-z][A-Za-z0-9]*$")
    """``braindecode:`` and the name of a class of ``braindecode.models``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of that class, such as ``drop_prob``; what the data say (channels, length, rate) is passed anyway."""
    embed_dim: int = Field(default=256, ge=1)
    """Outputs of a model that gives no features; the others bring their own width."""
    weights: Path | None = None
    """Published weights, a .safetensors file; everything but the classifier must fit."""
    gain: float = 1.0
    """Factor on the EEG, which comes scaled to unit variance: published weights expect their own unit (Labram and CBraMod
    0.1 mV, so about 0.1 for an EEG of 10 µV)."""
    whiten: bool = False
    """Off, because published weights know unmixed electrodes."""


def model_class(name: str) -> type[nn.Module]:
    """The class of ``braindecode.models`` behind ``braindecode:<name>``.

    Raises:
        UserError: the package is absent, or has no such model.
    """
    try:
        import braindecode.models as models
    except (ImportError, OSError) as error:  # OSError: a torchaudio built for another torch
        raise UserError(
            f"encoder.name=braindecode:{name}: the package braindecode cannot be imported ({error}); install it with "
            "pip install 'ttd[braindecode]', or take encoder.name inceptsad or nice"
        ) from error
    known = [n for n, c in vars(models).items() if inspect.isclass(c) and issubclass(c, nn.Module) and n[0].isupper()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
        raise UserError(f"encoder.name=braindecode:{name}: braindecode has no such model; there are {', '.join(near)}")
    return getattr(models, name)


def channel_info(ch_names: Sequence[str]) -> list[dict[str, Any]]:
    """Names and, where all are known, places, as MNE's ``info["chs"]`` has them."""
    try:
        places = directions(ch_names) * RADIUS
    except ValueError:
        return [{"ch_name": name, "kind": 2} for name in ch_names]
    return [
        {"ch_name": name, "kind": 2, "loc": np.concatenate([place, np.zeros(9)])}
        for name, place in zip(ch_names, places, strict=True)
    ]


class BraindecodeEncoder(Encoder):
    """EEG [B, C, T] → tokens [B, N, E] of a model of braindecode.

    Raises:
        ValueError: the model cannot read such data.
        UserError: braindecode is absent, or has no such model.
    """

    def __init__(self, config: BraindecodeConfig, *, n_times: int, sfreq: float, ch_names: Sequence[str]):
        with torch.device("cpu"):  # a foreign constructor need not work without data ("meta")
            super().__init__(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
            shape = self._fitted(config)
        self.n_tokens, self.embed_dim = int(shape[1]), int(shape[2])

    def _fitted(self, config: BraindecodeConfig) -> torch.Size:
        """Build the model for this cap, length and rate; returns the shape of its tokens for one epoch."""
        name, sfreq = config.name.partition(":")[2], self.sfreq
        kind = model_class(name)
        if RATES.get(name, sfreq) != sfreq:
            raise ValueError(
                f"{config.name} was made for {RATES[name]} Hz, the data have {sfreq:g} Hz; build them at its rate"
            )
        arguments = inspect.signature(kind.forward).parameters
        self.gives_features = "return_features" in arguments
        self.asks_names = "ch_names" in arguments
        self.channel_axis = {} if self.asks_names else None
        try:
            self.model = kind(
                n_outputs=config.embed_dim,
                n_chans=len(self.ch_names),
                chs_info=channel_info(self.ch_names),
                n_times=self.n_times,
                sfreq=sfreq,
                **config.options,
            )
            if self.gives_features and isinstance(getattr(self.model, "final_layer", None), nn.Module):
                self.model.final_layer = nn.Identity()
            self.eval()
            with torch.no_grad():
                shape = self(torch.zeros(1, len(self.ch_names), self.n_times)).shape
            self.train()
        except Exception as error:  # a foreign constructor says no in its own ways
            raise ValueError(
                f"{config.name} cannot read {len(self.ch_names)} channels of {self.n_times} samples at {sfreq:g} Hz with "
                f"options {config.options}: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        return shape

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to tokens [B, N, E]."""
        eeg = self.whitened(eeg) * self.config.gain
        named = {"ch_names": self.ch_names} if self.asks_names else {}
        if not self.gives_features:
            return self.model(eeg, **named).flatten(1)[:, None]
        features = self.model(eeg, return_features=True, **named)["features"]  # [B, E], [B, N, E] or [B, C, patches, E]
        return features[:, None] if features.ndim == 2 else features.flatten(1, -2)

    def load_published(self, path: Path) -> None:
        """Load weights as their authors published them for this class; only the classifier stays as it is.

        Raises:
            UserError: there is no such file, or tensors do not fit (all of them named).
        """
        if not path.is_file():
            raise UserError(f"encoder.weights: no file {path}; give the model.safetensors of a published model")
        renamed = getattr(self.model, "mapping", None) or {}
        weights = {renamed.get(name, name): t for name, t in load_file(path).items()}
        kept = {n: t for n, t in self.model.state_dict().items() if n.startswith("final_layer.")}
        weights = {n: t for n, t in weights.items() if not n.startswith("final_layer.")} | kept
        load_strictly(self.model, weights, source=str(path))
