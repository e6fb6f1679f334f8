"""Samples by number: every byte verified, arrays owned by the caller.

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ttd.data.index import ShardIndex


class ShardReader:
    """Random access to the samples of one index."""

    def __init__(self, index: ShardIndex):
        self.index = index

    @classmethod
    def open(cls, folder: Path | str, *, open_test: bool = False) -> ShardReader:
        """Shorthand for ``ShardReader(ShardIndex.read(folder))``."""
        return cls(ShardIndex.read(folder, open_test=open_test))

    def __len__(self) -> int:
        return self.index.n_samples

    def read(self, i: int) -> dict[str, np.ndarray | dict | bytes]:
        """Every member of sample i by name: arrays for npy, dicts for json, bytes for images.

        Raises:
            UserError: a member is damaged; see ``members.MemberReader``.
        """
        out: dict[str, Any] = {}
        for name in self.index.member_names(i):
            value = self.index.read_member(i, name)
            out[name] = value.copy() if isinstance(value, np.ndarray) else value
        return out

    def eeg(self, i: int) -> np.ndarray:
        """All repetitions of sample i in µV, float32 [R, C, T]."""
        return self.eeg_view(i).astype(np.float32)

    def eeg_view(self, i: int) -> np.ndarray:
        """All repetitions of sample i in µV, float16 [R, C, T], valid until this thread's next read."""
        return self.index.read_member(i, "eeg.npy")

    def meta(self, i: int) -> dict[str, Any]:
        """``meta.json`` of sample i."""
        return self.index.meta(i)

    def image(self, i: int) -> bytes:
        """The encoded image file (png or jpg) of sample i of an image index."""
        name = next(name for name in self.index.member_names(i) if name.startswith("image."))
        return self.index.read_member(i, name)
