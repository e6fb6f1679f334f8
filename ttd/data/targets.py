"""Fixed targets of images (CLIP embedding, VAE moments), one per distinct image, joined to EEG samples by sha256.

Shapes: N images, then the target's own: [D] for ``clip``, [8, h, w] for ``vae`` (mean, then log variance).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.writer import ShardWriter

MAX_IN_MEMORY = 256 * 2**20
"""Bytes of a table that every rank holds whole. CLIP embeddings of THINGS are 41 MB; moments of 512-pixel images, 1.5 GB,
are read when asked for, at about 10 µs each (measured, benchmarks/loader_cpu_2026-11-20.md)."""


class TargetTable:
    """One target of every image: in memory up to ``MAX_IN_MEMORY`` bytes, beyond that read (and verified) when asked for.

    Attributes:
        name: the folder's name.
        shas: sha256 of the N images, in the order of the rows.
        shape: of one target.
        fingerprint: of the content.
    """

    def __init__(self, folder: Path, reader: ShardReader):
        index = reader.index
        self.folder, self.name, self.reader = folder, folder.name, reader
        self.shas, self.fingerprint = index.keys, index.fingerprint
        first = index.read_member(0, "target.npy")
        self.shape = first.shape
        self._row = {sha: i for i, sha in enumerate(self.shas)}
        self._values: torch.Tensor | None = None  # [N, ...] in the type that is stored
        if len(index) * first.nbytes <= MAX_IN_MEMORY:
            self._values = torch.empty((len(index), *self.shape), dtype=torch.from_numpy(first.copy()).dtype)
            reader.arrays(np.arange(len(index)), "target.npy", self._values)

    @classmethod
    def read(cls, folder: Path | str) -> TargetTable:
        """Open ``<root>/targets/<name>``.

        Raises:
            UserError: there are no such targets, or a member is damaged.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise UserError(f"{folder}: no such targets; make them with shards/precompute_targets.py")
        index = ShardIndex.read(folder)
        if index.facts.kind != "target":
            raise UserError(f"{folder}: holds samples of kind {index.facts.kind!r}, not targets")
        return cls(folder, ShardReader(index))

    def __len__(self) -> int:
        return len(self.shas)

    def rows(self, shas: Sequence[str] | np.ndarray) -> np.ndarray:
        """Row numbers [n] of images.

        Raises:
            UserError: an image has no target; names how many and the first.
        """
        rows = np.array([self._row.get(str(sha), -1) for sha in shas], np.int64)
        if (rows < 0).any():
            absent = [str(sha) for sha, row in zip(shas, rows, strict=True) if row < 0]
            raise UserError(
                f"{self.folder}: {len(absent)} of {len(rows)} images have no target "
                f"(first: sha256 {absent[0] or 'missing'}); run shards/precompute_targets.py again"
            )
        return rows

    def fill(self, rows: np.ndarray, out: torch.Tensor) -> None:
        """Write the targets of row numbers [n] into ``out`` [n, ...]."""
        if self._values is not None:
            out.copy_(self._values.index_select(0, torch.from_numpy(rows)))
        else:
            self.reader.arrays(rows, "target.npy", out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Targets [n, ...] of row numbers, float32."""
        out = torch.empty((len(rows), *self.shape))
        self.fill(rows, out)
        return out.numpy()

    def array(self, shas: Sequence[str] | np.ndarray) -> np.ndarray:
        """Targets [n, ...] of images by sha256, float32."""
        return self.take(self.rows(shas))


class MemberTable:
    """The targets that the samples of a materialised index carry themselves; row i is sample i."""

    def __init__(self, reader: ShardReader, name: str):
        self.reader, self.name, self.fingerprint = reader, name, reader.index.fingerprint
        self.member = f"{name}.npy"
        if self.member not in reader.index.members:
            have = ", ".join(m.removesuffix(".npy") for m in reader.index.members if m.endswith(".npy")) or "none"
            raise UserError(f"{reader.index.folder}: was materialised without target {name!r} (it has {have})")
        shapes = reader.index.facts.source["targets"]
        self.shape = tuple(shapes[name])

    def fill(self, rows: np.ndarray, out: torch.Tensor) -> None:
        """Write the targets of row numbers [n] into ``out`` [n, ...]."""
        self.reader.arrays(rows, self.member, out)


def is_current(folder: Path, source: dict[str, Any]) -> bool:
    """Whether ``folder`` holds the targets that ``source`` describes."""
    return (folder / "index.json").is_file() and ShardIndex.read(folder).facts.source == source


def pack_targets(folder: Path, images: ShardReader, blocks: Iterable[np.ndarray], *, source: dict[str, Any]) -> None:
    """Write the target of every image into ``folder``, whole or not at all.

    Args:
        images: of the study's ``images/``.
        blocks: targets [b, ...] float16 or float32, together one per image, in the order of the index.
        source: what the targets are made from (images, weights, size); kept in the index for ``is_current``.
    """
    facts = images.index.facts
    values = (value for block in blocks for value in block)
    with ShardWriter(folder, kind="target", samples_per_shard=4096) as writer:
        for sha, value in zip(images.index.keys, values, strict=True):
            writer.write(sha, {"target.npy": value})
        writer.finish({"study": facts.study, "simulated": facts.simulated, "source": source})
