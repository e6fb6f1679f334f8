"""Subject layers: a linear map of the channels for each subject, before an encoder that all of them share.

Défossez et al., 2023, "Decoding speech perception from non-invasive brain recordings", arXiv:2208.12266, section 2.3.
Every map starts as the identity and is stored as its distance from it, so that weight decay pulls subjects together
and not towards silence. Who was not trained on is given the mean of all maps.

Shapes: B batch, S subjects, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SubjectLayers(nn.Module):
    """EEG [B, C, T] → EEG [B, C, T].

    Args:
        subjects: S names, one map each.
        n_chans: C.
        numbered: names in the order of the numbers that batches give subjects; some may have no map.

    Raises:
        ValueError: no subject, or one twice.
    """

    place: Tensor

    def __init__(self, subjects: Sequence[str], n_chans: int, *, numbered: Sequence[str] | None = None):
        super().__init__()
        if not subjects or len(set(subjects)) < len(subjects):
            raise ValueError(f"need subjects, each once, got {list(subjects)}")
        self.subjects, self.n_chans = list(subjects), n_chans
        self.weight = nn.Parameter(torch.zeros(len(subjects), n_chans, n_chans))
        self.register_buffer("place", self.places(numbered or subjects), persistent=False)

    def places(self, names: Sequence[str]) -> Tensor:
        """Which map each name has, -1 where it has none."""
        of = {name: i for i, name in enumerate(self.subjects)}
        return torch.tensor([of.get(name, -1) for name in names])

    def forward(self, eeg: Tensor, place: Tensor) -> Tensor:
        """Map EEG [B, C, T] by the maps ``place`` [B]; -1 takes their mean."""
        maps = torch.cat([self.weight, self.weight.mean(0, keepdim=True)])  # [S + 1, C, C]
        return eeg + torch.bmm(maps[place], eeg)
