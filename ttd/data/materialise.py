"""Self-contained pair tars: every sample with its picture and its targets, for object stores and for other tools.

The members are byte for byte those of the study's shards, so whoever reads them (TTD, ``webdataset``, ``tar``) decodes the same
samples. Which samples share a shard is drawn once, because such tars are read from front to back (see ``order.in_lanes``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.schema import IMAGE_MEMBERS
from ttd.data.targets import TargetTable
from ttd.data.writer import ShardWriter
from ttd.seeding import numpy_rng

KEPT = (
    "study",
    "part",
    "sfreq",
    "tmin",
    "n_times",
    "caps",
    "statistics",
    "normalise",
    "preprocessing",
    "split_fingerprint",
    "simulated",
)
"""Facts that hold for the materialised samples as well."""


class Pairs:
    """The paired samples of one part, each with what is to be stored beside its EEG.

    Args:
        root: the study's folder.
        targets: names under ``<root>/targets``.
        images: whether the encoded picture is stored.

    Raises:
        UserError: the part holds no paired samples, or an image or a target of one of them is missing.
    """

    def __init__(self, root: Path, part: str, targets: Sequence[str], *, images: bool):
        self.reader = ShardReader.open(root / part)
        self.index = index = self.reader.index
        if index.facts.kind != "paired":
            raise UserError(
                f"{index.folder}: holds samples of kind {index.facts.kind!r}; only paired ones are materialised"
            )
        shas = index.column("image_sha256")
        tables = {name: TargetTable.read(root / "targets" / name) for name in targets}
        self.targets = {name: (table, table.rows(shas)) for name, table in tables.items()}
        self.images = ShardReader.open(root / "images") if images else None
        self.image_row: list[int] = []
        if self.images is not None:
            places = {sha: row for row, sha in enumerate(self.images.index.keys)}
            absent = [sha for sha in shas if sha not in places]
            if absent:
                raise UserError(f"{root / 'images'}: {len(absent)} of {len(shas)} shown images are not there")
            self.image_row = [places[sha] for sha in shas]

    def members(self, i: int) -> dict[str, Any]:
        """Every member of sample i, by name."""
        out: dict[str, Any] = self.reader.read(i)
        for name, (table, rows) in self.targets.items():
            out[f"{name}.npy"] = table.reader.read(int(rows[i]))["target.npy"]
        if self.images is not None:
            picture = self.images.read(self.image_row[i])
            out |= {name: picture[name] for name in IMAGE_MEMBERS if name in picture}
        return out

    @property
    def source(self) -> dict[str, Any]:
        """What the result depends on, apart from how it is dealt to shards."""
        return {
            "paired": self.index.fingerprint,
            "targets": {name: list(table.shape) for name, (table, _) in self.targets.items()},
            "fingerprints": {name: table.fingerprint for name, (table, _) in self.targets.items()},
            "images": self.images.index.fingerprint if self.images is not None else None,
        }


def materialise(folder: Path, pairs: Pairs, *, samples_per_shard: int, seed: int) -> Iterator[int]:
    """Write ``folder``, whole or not at all; yields the number of samples written so far. Nothing if it is there already."""
    source = {**pairs.source, "samples_per_shard": samples_per_shard, "seed": seed}
    if (folder / "index.json").is_file() and ShardIndex.read(folder).facts.source == source:
        return
    order = numpy_rng(seed, "materialise").permutation(len(pairs.index)).tolist()
    facts = pairs.index.facts.model_dump(include=set(KEPT))
    with ShardWriter(folder, kind="materialised", samples_per_shard=samples_per_shard) as writer:
        for n, i in enumerate(order, 1):
            writer.write(pairs.index.keys[i], pairs.members(i))
            yield n
        writer.finish({**facts, "source": source})
