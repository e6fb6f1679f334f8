"""CLIP head and bridge of TTD-net's ``latest.pth``: sizes are read off the tensors, names are translated.

``code/dc_ldm/ip_adapter_bridge.py``: 8 heads, no dropout in the CLIP head, which averages the encoder's tokens.
"""

from __future__ import annotations

from torch import Tensor

from ttd.bridge.conditioner import Bridge, BridgeConfig
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.bridge.resampler import ResamplerConfig
from ttd.config import UserError
from ttd.encoders.base import load_strictly
from ttd.encoders.original import count, size


def original_head(bridge: dict[str, Tensor], *, n_tokens: int) -> ClipHead:
    """The CLIP head in the tensors of ``cond_model.bridge``.

    Raises:
        UserError: the checkpoint was trained without a CLIP loss, or its tensors do not fit together.
    """
    if not any(name.startswith("clip_proj.") for name in bridge):
        raise UserError(
            "checkpoint: was trained without a CLIP loss, so it has no CLIP head; only with one can it be read"
        )
    head = ClipHead(
        ClipHeadConfig(mode="mean", dropout=0.0),
        embed_dim=size(bridge, "clip_proj.0.weight", 1),
        n_tokens=n_tokens,
        clip_dim=size(bridge, "clip_proj.2.weight", 0),
    )
    weights = {n.replace("clip_proj.", "project."): t for n, t in bridge.items() if n.startswith("clip_proj.")}
    if "logit_scale" in bridge:
        weights["logit_scale"] = bridge["logit_scale"].reshape(1)
    load_strictly(head, weights, source="checkpoint")
    return head


def original_bridge(bridge: dict[str, Tensor], pool: dict[str, Tensor], *, clip_dim: int, n_heads: int) -> Bridge:
    """Resampler and pooled projection in the tensors of ``cond_model.bridge`` and ``pool_proj``.

    Raises:
        UserError: tensors are missing or do not fit together.
    """
    context_dim, eeg_dim = (size(bridge, "resampler.input_proj.weight", axis) for axis in (0, 1))
    if context_dim % n_heads:
        raise UserError(f"resampler_heads={n_heads}: the resampler's width is {context_dim}, which it must divide")
    config = ResamplerConfig(
        n_queries=size(bridge, "resampler.latent_tokens", 1),
        depth=count(bridge, "resampler.layers."),
        n_heads=n_heads,
        queries_see_each_other=False,
    )
    own = Bridge(
        BridgeConfig(resampler=config, aligned_token=False),
        eeg_dim=eeg_dim,
        clip_dim=clip_dim,
        context_dim=context_dim,
        pooled_dim=size(pool, "weight", 0),
    )
    weights = {n: t for n, t in bridge.items() if n.startswith("resampler.")}
    load_strictly(own, weights | {f"pooled.project.{n}": t for n, t in pool.items()}, source="checkpoint")
    return own
