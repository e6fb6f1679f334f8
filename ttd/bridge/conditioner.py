"""EEG conditioner: from an EEG epoch to what the UNet is given, and to the picture's CLIP embedding.

encoder → tokens; CLIP head → embedding; bridge: tokens and the embedding (as one more token) → context → pooled.
What is trained is explicit: ``freeze`` names the parts that are not, and a frozen part also stays in evaluation mode
(no dropout, running statistics fixed).

Shapes: B batch, C channels, T times, N EEG tokens, E their width, Q conditioning tokens, D their width, P width of the
pooled condition, F width of the CLIP embedding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttd.bridge.eldm import EldmBridge, EldmBridgeConfig
from ttd.bridge.heads import ClipHead, PooledProjection
from ttd.bridge.resampler import PerceiverResampler, ResamplerConfig
from ttd.config import Config, UserError, write_json
from ttd.encoders import Encoder
from ttd.encoders.transfer import load_strictly


class BridgeConfig(Config):
    name: Literal["perceiver"] = "perceiver"
    resampler: ResamplerConfig = ResamplerConfig()
    aligned_token: bool = True
    """Hand the CLIP head's embedding to the resampler as one more token, and map it directly to context and pooled condition
    as well: the resampler alone learns too slowly to say anything in a few hundred steps. The original gives the EEG tokens
    alone."""

    @property
    def n_queries(self) -> int:
        """Conditioning tokens Q handed to the UNet."""
        return self.resampler.n_queries


DIRECT_WIDTH = 256
"""Hidden width of the direct maps; with 16 tokens of 2048 numbers they hold 9.1 M parameters."""


class FreezeConfig(Config):
    freeze: tuple[Literal["encoder", "clip_head"], ...] = ("encoder",)
    """Parts that stay as alignment left them. Everything else of the conditioner is trained."""


class PerceiverConditionerConfig(BridgeConfig, FreezeConfig):
    """The bridge of TTD-net, on Flamingo's resampler."""


class EldmConditionerConfig(EldmBridgeConfig, FreezeConfig):
    """The bridge of DreamDiffusion."""


def _by_name(content: Any) -> Any:
    """Read a section of YAML as the one configuration it names (without a name, perceiver), so that mistakes are told for it."""
    if isinstance(content, FreezeConfig):
        return content
    if not isinstance(content, dict):
        raise ValueError("give a section: {name: perceiver, …} or {name: eldm, …}")
    kinds: dict[str, type[FreezeConfig]] = {"perceiver": PerceiverConditionerConfig, "eldm": EldmConditionerConfig}
    name = content.get("name", "perceiver")
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"no bridge {name!r}; there are {' and '.join(kinds)}")
    return kinds[name].model_validate(content)


ConditionerConfig = Annotated[PerceiverConditionerConfig | EldmConditionerConfig, BeforeValidator(_by_name)]


class Condition(NamedTuple):
    """What an EEG epoch says: to the UNet (context, pooled) and to the CLIP loss."""

    context: Tensor
    """Conditioning tokens [B, Q, D]."""
    pooled: Tensor
    """Pooled condition [B, P]."""
    clip: Tensor
    """CLIP embedding of the picture [B, F], of any length."""


class Bridge(nn.Module):
    """EEG tokens and the aligned embedding → conditioning tokens and pooled condition.

    Args:
        eeg_dim, clip_dim: widths E and F of what comes in.
        context_dim, pooled_dim: widths D and P from the base's UNet.
    """

    def __init__(self, config: BridgeConfig, *, eeg_dim: int, clip_dim: int, context_dim: int, pooled_dim: int):
        super().__init__()
        self.config = BridgeConfig(resampler=config.resampler, aligned_token=config.aligned_token)
        self.dims = {"eeg_dim": eeg_dim, "clip_dim": clip_dim, "context_dim": context_dim, "pooled_dim": pooled_dim}
        self.aligned = nn.Linear(clip_dim, eeg_dim) if config.aligned_token else None
        self.resampler = PerceiverResampler(config.resampler, eeg_dim=eeg_dim, context_dim=context_dim)
        self.pooled = PooledProjection(context_dim=context_dim, pooled_dim=pooled_dim)
        self.direct = _direct(clip_dim, config.resampler.n_queries * context_dim) if config.aligned_token else None
        self.direct_pooled = _direct(clip_dim, pooled_dim) if config.aligned_token else None

    def forward(self, tokens: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens [B, N, E] and embedding [B, F] to context [B, Q, D] and pooled [B, P]."""
        if self.aligned is None or self.direct is None or self.direct_pooled is None:
            context = self.resampler(tokens)
            return context, self.pooled(context)
        unit = F.normalize(clip, dim=-1) * math.sqrt(clip.shape[-1])  # entries of variance 1, as the tokens'
        tokens = torch.cat([tokens, self.aligned(unit)[:, None]], dim=1)  # [B, N + 1, E]
        context = self.resampler(tokens)
        context = context + self.direct(unit).view_as(context)
        return context, self.pooled(context) + self.direct_pooled(unit)


def _direct(clip_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(clip_dim, DIRECT_WIDTH), nn.GELU(), nn.Linear(DIRECT_WIDTH, out_dim))


class EEGConditioner(nn.Module):
    """Encoder, CLIP head and bridge as one module.

    Args:
        encoder, clip_head: as alignment exported them.
        bridge: a new one, or a trained one (``load_bridge``).
        freeze: parts that are not trained.
    """

    def __init__(self, encoder: Encoder, clip_head: ClipHead, bridge: Bridge | EldmBridge, *, freeze: Sequence[str]):
        super().__init__()
        self.encoder, self.clip_head, self.bridge, self.freeze = encoder, clip_head, bridge, list(freeze)
        self.requires_grad_(True)
        for part in self.freeze:
            self.get_submodule(part).requires_grad_(False)
        self.train(self.training)

    @classmethod
    def build(
        cls,
        config: PerceiverConditionerConfig | EldmConditionerConfig,
        *,
        encoder: Encoder,
        clip_head: ClipHead,
        context_dim: int,
        pooled_dim: int,
    ) -> EEGConditioner:
        """A conditioner with a new bridge between this encoder and a UNet of these widths."""
        widths = {"eeg_dim": encoder.embed_dim, "context_dim": context_dim, "pooled_dim": pooled_dim}
        bridge: Bridge | EldmBridge
        if isinstance(config, EldmBridgeConfig):
            bridge = EldmBridge(config, n_tokens=encoder.n_tokens, **widths)
        else:
            bridge = Bridge(config, clip_dim=clip_head.clip_dim, **widths)
        return cls(encoder, clip_head, bridge, freeze=config.freeze)

    def train(self, mode: bool = True) -> EEGConditioner:
        """Switch training mode, frozen parts aside."""
        super().train(mode)
        for part in self.freeze:
            self.get_submodule(part).eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where its weights lie; a pipeline of diffusers asks each of its parts."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of its weights."""
        return next(self.parameters()).dtype

    def forward(self, eeg: Tensor) -> Condition:
        """Map EEG [B, C, T], scaled as in training, to its condition."""
        tokens = self.encoder(eeg)  # [B, N, E]
        clip = self.clip_head(tokens)  # [B, F]; the network's: a ridge knows training pictures too well to learn from
        context, pooled = self.bridge(tokens, clip)
        return Condition(context, pooled, clip)

    def count_trainable(self) -> dict[str, int]:
        """Trainable parameters of each part.

        Raises:
            AssertionError: a frozen part has some, or another part has not all.
        """
        counts = {}
        for name, part in self.named_children():
            counts[name] = sum(p.numel() for p in part.parameters() if p.requires_grad)
            expected = 0 if name in self.freeze else sum(p.numel() for p in part.parameters())
            assert counts[name] == expected, f"{name}: {counts[name]} trainable parameters, expected {expected}"
        return counts


def save_bridge(folder: Path, bridge: Bridge | EldmBridge) -> None:
    """Write a bridge as ``model.safetensors`` and ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in bridge.state_dict().items()}, folder / "model.safetensors")
    write_json(folder / "config.json", {"bridge": bridge.config.model_dump(mode="json"), **bridge.dims})


def load_bridge(folder: Path) -> Bridge | EldmBridge:
    """Read what ``save_bridge`` wrote.

    Raises:
        UserError: the folder holds no bridge, or weights and configuration disagree (the tensors are named).
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no bridge; give the run folder of a finished fine-tuning")
    try:
        facts = json.loads((folder / "config.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'}: damaged ({error}); export the run again") from error
    stated = facts.pop("bridge")
    bridge: Bridge | EldmBridge
    if stated.get("name") == "eldm":
        bridge = EldmBridge(EldmBridgeConfig.model_validate(stated), **facts)
    else:
        bridge = Bridge(BridgeConfig.model_validate(stated), **facts)
    try:
        weights = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'model.safetensors'}: cannot be read ({error}); export the run again") from error
    load_strictly(bridge, weights, source=str(folder))
    return bridge
