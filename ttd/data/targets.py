"""Fixed targets of images (CLIP embedding, VAE moments), one per distinct image, joined to EEG samples by sha256.

Shapes: N images, then the target's own: [D] for ``clip``, [8, h, w] for ``vae`` (mean, then log variance).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.writer import ShardWriter


class TargetTable:
    """One target of every image, whole in memory.

    Attributes:
        name: the folder's name.
        shas: sha256 of the N images, in the order of the rows.
        shape: of one target.
        fingerprint: of the content.
    """

    def __init__(self, folder: Path, index: ShardIndex, values: np.ndarray):
        self.folder, self.name = folder, folder.name
        self.shas, self.values, self.fingerprint = index.keys, values, index.fingerprint
        self.shape = values.shape[1:]
        self._row = {sha: i for i, sha in enumerate(self.shas)}

    @classmethod
    def read(cls, folder: Path | str) -> TargetTable:
        """Load ``<root>/targets/<name>``.

        Raises:
            UserError: there are no such targets, or a member is damaged.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise UserError(f"{folder}: no such targets; make them with shards/precompute_targets.py")
        index = ShardIndex.read(folder)
        if index.facts.kind != "target":
            raise UserError(f"{folder}: holds samples of kind {index.facts.kind!r}, not targets")
        first = index.read_member(0, "target.npy")
        values = np.empty((len(index), *first.shape), first.dtype)
        for i in range(len(index)):
            values[i] = index.read_member(i, "target.npy")
        return cls(folder, index, values)

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

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Targets [n, ...] of row numbers, float32."""
        return self.values[rows].astype(np.float32)

    def array(self, shas: Sequence[str] | np.ndarray) -> np.ndarray:
        """Targets [n, ...] of images by sha256, float32."""
        return self.take(self.rows(shas))


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
