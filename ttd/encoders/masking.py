"""Masking: which samples of an epoch, and which electrodes, are hidden from the encoder, exactly and by key.

Default: spans of one length at uniformly drawn places, at least one visible sample apart, exactly ``ratio`` of the
time, all channels of a time step together. ``overlapping`` reproduces TTD-net, whose independently drawn spans overlap
and so hide about 40 % where 50 % is written. ``patches`` is the masking of He et al., 2022, arXiv:2111.06377, in time.

Shapes: B batch, C channels, T samples, S spans.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ttd import seeding
from ttd.config import Config


class MaskingConfig(Config):
    ratio: float = 0.5
    """Fraction of the time that is hidden."""
    span: int = 32
    """Length of a hidden span in samples; 16-32 at 128 Hz leave a gap between interpolation and the best linear
    filter."""
    overlapping: bool = False
    """TTD-net's form: spans drawn independently of each other, so fewer samples are hidden than ``ratio`` says."""
    patches: bool = False
    """A masked autoencoder's form: whole patches of ``span`` samples on a fixed grid, drawn each for itself, so that hidden ones
    may touch. The encoder mae is then given the visible patches alone, and ``span`` must be its patch."""
    electrodes: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of a window's electrodes that are hidden in training, for all of its time."""

    @model_validator(mode="after")
    def _one_form(self) -> MaskingConfig:
        if self.patches and self.overlapping:
            raise ValueError("patches and overlapping are two forms of masking; set one of them")
        return self


def temporal_mask(config: MaskingConfig, n_times: int, positions: Tensor, *, seed: int) -> Tensor:
    """Draw the hidden samples [B, T] (True = hidden), row i keyed by (seed, positions[i]).

    The exact form hides ``round(ratio * T)`` samples in every row; where that is no multiple of the span, one span per
    row is shorter. Spans neither overlap nor touch.

    Raises:
        ValueError: nothing would be hidden, nothing would be left, or too little to keep the spans apart.
    """
    hidden = round(config.ratio * n_times)
    if not 0 < hidden < n_times:
        raise ValueError(f"ratio={config.ratio} hides {hidden} of {n_times} samples; it must leave and hide some")
    if config.overlapping:
        return _overlapping(config, n_times, positions, seed)
    if config.patches:
        return _patches(config, n_times, positions, seed)
    n_spans, n_visible = -(-hidden // config.span), n_times - hidden
    if n_spans > n_visible + 1:
        raise ValueError(f"{n_spans} spans of {config.span} cannot stand apart with {n_visible} visible samples")
    draws = seeding.rand(seed, "mask", positions, (n_visible + 1 + n_spans,))  # [B, gaps + S]
    before = draws[:, : n_visible + 1].argsort(1)[:, :n_spans].sort(1).values  # [B, S] visible samples before each span
    length = torch.full_like(before, config.span)
    short = draws[:, n_visible + 1 :].argmax(1, keepdim=True)
    length.scatter_(1, short, hidden - (n_spans - 1) * config.span)
    return _spans(before + length.cumsum(1) - length, length, n_times)


def electrode_mask(config: MaskingConfig, present: Tensor, positions: Tensor, *, seed: int) -> Tensor:
    """Draw the hidden electrodes bool [B, C] among those ``present`` [B, C], row i keyed by (seed, positions[i]).

    Exactly ``round(electrodes * present)`` in every row, and never all of them.
    """
    n = present.sum(1)
    wanted = torch.minimum((config.electrodes * n).round().long(), n - 1)
    draws = seeding.rand(seed, "electrode mask", positions, (present.shape[1],)).masked_fill(~present, 2.0)  # [B, C]
    return draws.argsort(1).argsort(1) < wanted[:, None]


def _overlapping(config: MaskingConfig, n_times: int, positions: Tensor, seed: int) -> Tensor:
    hidden = int(n_times * config.ratio)
    n_spans = max(1, hidden // config.span)
    length = hidden // n_spans
    start = (seeding.rand(seed, "mask", positions, (n_spans,)) * (n_times - length)).long()
    return _spans(start, torch.full_like(start, length), n_times)


def n_visible_patches(config: MaskingConfig, n_patches: int) -> int:
    """How many of a window's patches stay visible: rounded down, as in the original.

    Raises:
        ValueError: all would be hidden, or none.
    """
    n_visible = int(n_patches * (1 - config.ratio))
    if not 0 < n_visible < n_patches:
        raise ValueError(
            f"ratio={config.ratio} leaves {n_visible} of {n_patches} patches visible; it must leave and hide some"
        )
    return n_visible


def _patches(config: MaskingConfig, n_times: int, positions: Tensor, seed: int) -> Tensor:
    n_patches = n_times // config.span
    order = seeding.rand(seed, "mask", positions, (n_patches,)).argsort(1).argsort(1)
    hidden = order >= n_visible_patches(config, n_patches)  # [B, patches]
    mask = torch.zeros(len(positions), n_times, dtype=torch.bool)
    mask[:, : n_patches * config.span] = hidden.repeat_interleave(config.span, 1)
    return mask


def _spans(start: Tensor, length: Tensor, n_times: int) -> Tensor:
    """Cover [start, start + length) of every row: [B, S] → bool [B, T]."""
    edges = torch.zeros(len(start), n_times + 1, dtype=torch.long)
    edges.scatter_add_(1, start, torch.ones_like(start))
    edges.scatter_add_(1, start + length, -torch.ones_like(start))
    return edges.cumsum(1)[:, :n_times] > 0
