"""A grid of pictures drawn while training goes on, each below the one that was shown.

The EEG, the first noise and the sampler stay the same, so that grids of successive steps compare. Nothing here touches the
global generators: every first noise comes from a seed of its own, and evaluation mode has no dropout.

Shapes: N pictures, C channels, T time points, S pixels along a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ttd.diffusion.sampler import SamplerConfig, sample
from ttd.objectives.conditional_diffusion import ConditionalDiffusion

AT_ONCE = 4
"""Pictures per batch. SDXL's decoder holds a few float32 maps of 256 × 512² numbers at 512 pixels, 0.25 GiB each: four pictures
stay within the 4 GiB that ``ttd.diffusion.memory`` leaves beside what it counts."""
COLUMNS = 8
WHITE = 255


class SampleGrid:
    """Draws the same N pictures from any state of an objective.

    Args:
        eeg: epochs [N, C, T], as the conditioner reads them.
        shown: the pictures of these epochs, uint8 [N, 3, S, S].
        seeds: one per picture, of its first noise.

    Raises:
        ValueError: their numbers differ.
    """

    def __init__(self, config: SamplerConfig, *, eeg: Tensor, shown: Tensor, seeds: Sequence[int]):
        if not len(eeg) == len(shown) == len(seeds):
            raise ValueError(f"{len(eeg)} epochs, {len(shown)} pictures and {len(seeds)} seeds: one of each is needed")
        self.config, self.eeg, self.shown, self.seeds = config, eeg, shown, list(seeds)

    @torch.no_grad()
    def draw(self, objective: ConditionalDiffusion) -> Tensor:
        """Pictures uint8 [N, 3, S, S] of what ``objective``, in evaluation mode, sees in the EEG."""
        base, drawn = objective.base, []
        for start in range(0, len(self.eeg), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            condition = objective.conditioner(self.eeg[some].to(base.unet.device))
            images = sample(
                base,
                condition.context,
                condition.pooled,
                seeds=self.seeds[some],
                config=self.config,
                picture_size=self.shown.shape[-1],
            )
            drawn.append((images * 255).round().byte())
        return torch.cat(drawn)

    def __call__(self, objective: ConditionalDiffusion) -> dict[str, np.ndarray]:
        """``grid``, uint8 [height, width, 3]: rows of shown pictures, and below each what was drawn for it."""
        pairs = torch.stack([self.shown, self.draw(objective)], dim=1)  # [N, 2, 3, S, S]
        columns = min(COLUMNS, len(pairs))
        missing = -len(pairs) % columns
        pairs = torch.cat([pairs, torch.full((missing, *pairs.shape[1:]), WHITE, dtype=torch.uint8)])
        rows = pairs.unflatten(0, (-1, columns)).permute(0, 2, 4, 1, 5, 3)  # [rows, 2, S, columns, S, 3]
        return {"grid": rows.flatten(0, 2).flatten(1, 2).numpy()}
