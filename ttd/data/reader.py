"""Samples by number: every byte verified, arrays owned by the caller.

Shapes: B samples of a batch, R repetitions, C channels, T time points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.members import decode_npy

ROWS = 16
"""Members read before they are converted together; 4 to 32 cost the same (measured, benchmarks/loader_cpu_2026-11-20.md)."""
ALIGNMENT = 64


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
            DamageError: a member is damaged; see ``members.MemberReader``.
        """
        out: dict[str, Any] = {}
        for name in self.index.member_names(i):
            value = self.index.read_member(i, name)
            out[name] = value.copy() if isinstance(value, np.ndarray) else value
        return out

    def arrays(self, rows: np.ndarray, name: str, out: torch.Tensor) -> None:
        """Fill ``out`` [B, ...] with the npy member ``name`` of the samples ``rows`` [B], converted to its type.

        The members are read straight into one buffer, row below row, and converted ``ROWS`` at a time.

        Raises:
            DamageError: a member is damaged.
            UserError: a member has another shape than a row of ``out``.
        """
        places = self.index.places(rows, name)
        if not places:
            return
        size = places[0][4]
        pitch = size + -size % ALIGNMENT
        buffer = self.index.reader.buffer(ROWS * pitch)
        read_into = self.index.reader.read_into
        raw = np.frombuffer(buffer, np.uint8).reshape(ROWS, pitch)
        for start in range(0, len(places), ROWS):
            some = places[start : start + ROWS]
            at = 0
            for shard, key, _, offset, n, xxh3 in some:
                if n != size:
                    raise self._wrong_shape(key, name, f"has {n} bytes, others have {size}")
                read_into(shard, key, name, offset, xxh3, buffer[at : at + size])
                at += pitch
            if not start:
                first = decode_npy(buffer[:size])
                head = size - first.nbytes
                header = raw[0, :head].copy()
                if first.shape != tuple(out.shape[1:]):
                    raise self._wrong_shape(some[0][1], name, f"has shape {list(first.shape)}")
            if (raw[: len(some), :head] != header).any():
                raise self._wrong_shape(some[0][1], name, "or a sample after it has another shape or type")
            values = raw[: len(some), head:size].view(first.dtype).reshape(len(some), *first.shape)
            out[start : start + len(some)].copy_(torch.from_numpy(values))

    def _wrong_shape(self, key: str, name: str, problem: str) -> UserError:
        return UserError(f"{self.index.folder}: sample {key!r}: {name} {problem}; build the shards again")

    def eeg(self, i: int) -> np.ndarray:
        """All repetitions of sample i in µV, float32 [R, C, T]."""
        return self.eeg_view(i).astype(np.float32)

    def eeg_view(self, i: int) -> np.ndarray:
        """All repetitions of sample i in µV, float16 [R, C, T], valid until this thread's next read."""
        eeg = self.index.read_member(i, "eeg.npy")
        expected = (self.index.n_repetitions[i], len(self.index.names_of(i)), self.index.n_times)
        if eeg.shape != expected:
            raise self._wrong_shape(self.index.keys[i], "eeg.npy", f"has shape {list(eeg.shape)}, not {list(expected)}")
        return eeg

    def meta(self, i: int) -> dict[str, Any]:
        """``meta.json`` of sample i."""
        return self.index.meta(i)

    def image(self, i: int) -> bytes:
        """The encoded image file (png or jpg) of sample i of an index that holds images."""
        name = next(name for name in self.index.member_names(i) if name.startswith("image."))
        return self.index.read_member(i, name)
