"""Probes of an encoder, as classifiers of scikit-learn on epochs [n, C, T]: frozen with a linear layer, or trained whole.

A probe is fitted many times on few epochs (one fit per group left out, per choice, per permutation), all in memory and
in one process: hence a loop of its own, of a fixed number of updates, without checkpoints and without a look at what is
scored. Scikit-learn chooses between several settings inside the training groups.

Augmentations of small data: mixing two epochs of one class (Zhang et al., 2018, arXiv:1710.09412, within a class), a
shift in time, white noise. Each class makes up the same share of every batch in expectation.

Shapes: n epochs, B batch, C channels, T samples, N tokens, E width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from torch import Tensor

from ttd.config import Config
from ttd.encoders import EncoderConfig, InceptSADConfig, build_encoder, load_encoder
from ttd.encoders.build import construct
from ttd.objectives.classification import ClassHeadConfig, Classifier
from ttd.seeding import key, torch_rng

Scale = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation [C]."""


class LinearProbeConfig(Config):
    """Logistic regression on the standardised tokens of a frozen encoder."""

    name: Literal["linear_probe"] = "linear_probe"
    encoder: Path
    """The export/encoder folder of a run; electrodes are matched by name."""
    random_start: bool = False
    """The same encoder before any training: what the form alone gives."""
    tokens: Literal["flat", "mean"] = "flat"
    strengths: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Inverse strength C of the penalty; several: chosen inside the training groups."""


class NetworkSettings(Config):
    """One way to train a network on labelled epochs."""

    encoder: EncoderConfig = InceptSADConfig()
    """Form of an encoder that starts at random."""
    start: Path | None = None
    """The export/encoder folder of a run to go on from, instead of ``encoder``: full fine-tuning."""
    head: ClassHeadConfig = ClassHeadConfig()
    steps: int = Field(default=200, ge=1)
    passes: int | None = Field(default=None, ge=1)
    """As many updates as this many passes over the training epochs would take, instead of ``steps``."""
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=3e-3, gt=0)
    """Highest rate: a tenth of the steps up, then half a cosine down."""
    weight_decay: float = Field(default=0.05, ge=0)
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    mix: bool = True
    """Replace every epoch by a random mixture with another one of its class."""
    time_jitter: int = Field(default=2, ge=0)
    """Shift each epoch by up to so many samples, either way."""
    noise: float = Field(default=0.3, ge=0)
    """White noise, in standard deviations of the channel."""
    members: int = Field(default=1, ge=1)
    """Networks of different random starts whose logits are averaged."""


class NetworkConfig(Config):
    """Encoder and head, trained whole."""

    name: Literal["network"] = "network"
    settings: list[NetworkSettings] = Field(default=[NetworkSettings()], min_length=1)
    """Several: one is chosen inside the training groups."""


class EncoderTokens(TransformerMixin, BaseEstimator):
    """Tokens of a frozen encoder as features: [n, C, T] → [n, N·E], or [n, E] of their mean.

    Args:
        config: which encoder, and what becomes of its tokens.
        sfreq, ch_names: of the epochs.
        scale: of the data the encoder was trained on; of the epochs it is fitted to where None.
        seed: of a random start.
    """

    def __init__(
        self, config: LinearProbeConfig, *, sfreq: float, ch_names: Sequence[str], scale: Scale | None, seed: int = 0
    ):
        self.config, self.sfreq, self.ch_names, self.scale, self.seed = config, sfreq, ch_names, scale, seed

    def fit(self, epochs: np.ndarray, labels: Any = None) -> EncoderTokens:
        """Load the encoder; its weights are not changed."""
        facts: dict[str, Any] = {"sfreq": self.sfreq, "ch_names": list(self.ch_names), "n_times": epochs.shape[-1]}
        self.encoder_ = load_encoder(self.config.encoder, **facts)
        if self.config.random_start:
            trained = self.encoder_
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key(self.seed, "random encoder"))
                self.encoder_ = construct(trained.config, **facts)
            if trained.whitening is not None and self.encoder_.whitening is not None:
                self.encoder_.whitening.copy_(trained.whitening)  # fitted to the data, not learnt
        self.scale_ = self.scale or scale_of(epochs)
        return self

    @torch.no_grad()
    def transform(self, epochs: np.ndarray) -> np.ndarray:
        """Features in the order of the tokens."""
        encoder = self.encoder_.eval()
        tokens = torch.cat([encoder(some) for some in scaled(epochs, self.scale_).split(128)])  # [n, N, E]
        return (tokens.flatten(1) if self.config.tokens == "flat" else tokens.mean(1)).float().numpy()


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """Trains ``settings.members`` classifiers on epochs [n, C, T]; the score of an epoch is the mean of their logits.

    Args:
        settings: form and training.
        sfreq, ch_names: of the epochs.
        scale: of the data that ``settings.start`` was trained on; of the training epochs where None.
        seed: of start, order and variation.
    """

    def __init__(
        self, settings: NetworkSettings, *, sfreq: float, ch_names: Sequence[str], scale: Scale | None, seed: int = 0
    ):
        self.settings, self.sfreq, self.ch_names, self.scale, self.seed = settings, sfreq, ch_names, scale, seed

    def fit(self, epochs: np.ndarray, labels: np.ndarray) -> NetworkClassifier:
        """Train on labelled epochs."""
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        self.scale_ = self.scale if self.scale is not None and self.settings.start else scale_of(epochs)
        eeg, label = scaled(epochs, self.scale_), torch.from_numpy(numbers)
        self.members_ = [self._trained(eeg, label, member) for member in range(self.settings.members)]
        return self

    @torch.no_grad()
    def decision_function(self, epochs: np.ndarray) -> np.ndarray:
        """Mean logits [n, K]; for two classes that of the second minus that of the first [n]."""
        eeg = scaled(epochs, self.scale_)
        logits = torch.stack([torch.cat([m.logits(some) for some in eeg.split(256)]) for m in self.members_]).mean(0)
        return (logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits).numpy()

    def predict(self, epochs: np.ndarray) -> np.ndarray:
        """The class of the highest score [n]."""
        scores = self.decision_function(epochs)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def _trained(self, eeg: Tensor, label: Tensor, member: int) -> Classifier:
        s, own = self.settings, key(self.seed, "network", member)
        facts: dict[str, Any] = {"sfreq": self.sfreq, "ch_names": list(self.ch_names), "n_times": eeg.shape[-1]}
        n_classes = len(self.classes_)
        with torch.random.fork_rng(devices=[]):  # dropout and initialisation draw from the global generator
            torch.manual_seed(own)
            encoder = load_encoder(s.start, **facts) if s.start else build_encoder(s.encoder, **facts)
            if not s.start and getattr(encoder, "whitening", None) is not None:
                encoder.set_noise_covariance(background(eeg, label))
            module = Classifier(encoder, s.head, n_classes=n_classes, smoothing=s.smoothing).train()
            optimizer = torch.optim.AdamW(module.parameters(), lr=s.lr, weight_decay=s.weight_decay)
            draw = torch_rng(own, "batches")
            weight = 1 / torch.bincount(label).float()[label]  # each class as often as the others
            steps = s.steps if s.passes is None else s.passes * math.ceil(len(label) / s.batch_size)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = s.lr * rate(step, steps)
                rows = torch.multinomial(weight, min(s.batch_size, len(label)), generator=draw)
                losses = module({"eeg": varied(eeg, label, rows, s, draw), "label": label[rows]})
                losses["loss"].backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return module.eval()


def rate(step: int, steps: int) -> float:
    """Share of the highest learning rate at an update: a tenth of them up, half a cosine down."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def varied(eeg: Tensor, label: Tensor, rows: Tensor, settings: NetworkSettings, draw: torch.Generator) -> Tensor:
    """The epochs ``rows`` [B] of ``eeg`` [n, C, T], mixed, shifted and with noise as ``settings`` say [B, C, T]."""
    batch, n = eeg[rows], len(rows)
    if settings.mix:
        same = (label[rows][:, None] == label[None]).float()  # [B, n]
        partner = torch.multinomial(same, 1, generator=draw)[:, 0]
        share = torch.rand(n, 1, 1, generator=draw)
        batch = share * batch + (1 - share) * eeg[partner]
    if settings.time_jitter:
        shift = torch.randint(-settings.time_jitter, settings.time_jitter + 1, (n, 1), generator=draw)
        place = (torch.arange(eeg.shape[2]) + shift).clamp(0, eeg.shape[2] - 1)  # the edge's value repeats
        batch = batch.gather(2, place[:, None].expand(-1, eeg.shape[1], -1))
    if settings.noise:
        batch = batch + settings.noise * torch.randn(batch.shape, generator=draw)
    return batch


def background(eeg: Tensor, label: Tensor) -> Tensor:
    """Covariance [C, C] of what is left of the epochs when the mean of their class is taken away."""
    means = torch.stack([eeg[label == k].mean(0) for k in range(int(label.max()) + 1)])
    flat = (eeg - means[label]).transpose(0, 1).flatten(1)
    return flat @ flat.T / flat.shape[1]


def scale_of(epochs: np.ndarray) -> Scale:
    """Mean and standard deviation per channel of epochs [n, C, T]."""
    return epochs.mean(axis=(0, 2)), epochs.std(axis=(0, 2)) + 1e-12


def scaled(epochs: np.ndarray, scale: Scale) -> Tensor:
    """Epochs [n, C, T] in standard deviations of the channels, float32."""
    mean, std = (np.asarray(s, np.float32)[:, None] for s in scale)
    return torch.from_numpy((np.asarray(epochs, np.float32) - mean) / std)
