"""What both streams hand out: samples read by number, scaled, with the targets and pictures of their images.

Shapes: B batch, R repetitions, C channels, T time points, S pixels along a side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ttd.config import UserError
from ttd.data import transforms
from ttd.data.pictures import PictureDecoder
from ttd.data.reader import ShardReader
from ttd.data.targets import MemberTable, TargetTable
from ttd.data.whitening import normaliser_of

Choose = Callable[[int, int], np.ndarray | slice]
"""Which repetitions to average, of (row of the batch, R)."""
MAX_BUFFERS = 8
"""Per shape: the batches made ahead, the one that is made, and those that the loop still holds."""
UNUSED = 2
"""References to an array that only its list holds, as ``sys.getrefcount`` counts them (its own argument is one)."""


class Buffers:
    """Arrays that are used again once nobody holds them: fresh memory for every batch costs as much as reading it (the system
    clears it first; measured, benchmarks/loader_cpu_2026-11-20.md)."""

    def __init__(self) -> None:
        self.held: dict[tuple[tuple[int, ...], type], list[np.ndarray]] = {}

    def empty(self, *shape: int, dtype: type = np.float32) -> np.ndarray:
        """An array whose last user has let go of it (tensors made from an array hold on to it), or a new one."""
        held = self.held.setdefault((shape, dtype), [])
        for i in range(len(held)):
            if sys.getrefcount(held[i]) == UNUSED:
                return held[i]
        array: np.ndarray = np.empty(shape, dtype)
        if len(held) < MAX_BUFFERS:
            held.append(array)
        return array


class Batcher:
    """Makes batches of the samples of one index.

    Args:
        reader: of the samples.
        root: the study's folder, where ``targets/`` and ``images/`` are, unless the samples hold their own.
        targets: names to join.
        picture_size: S of the decoded pictures to join; none where None.
        threads: that decode them.
    """

    def __init__(
        self,
        reader: ShardReader,
        root: Path,
        targets: list[str],
        *,
        picture_size: int | None = None,
        threads: int = 1,
    ):
        index = reader.index
        self.reader, self.index, self.shape = reader, index, (index.n_chans, index.n_times)
        caps = [index.cap] if index.montage is None else list(index.facts.caps)
        if not set(caps) <= set(index.facts.statistics):
            raise UserError(f"{index.folder}: the index has no channel statistics; build the shards again")
        self.statistics = [index.facts.statistics[cap] for cap in caps]
        self.places = [_places(index.facts.caps[cap], index.ch_names) for cap in caps]
        self.cap = (
            np.array([caps.index(cap) for cap in index.column("cap")]) if index.montage is not None else None
        )  # [N]
        self.normaliser = normaliser_of(index)
        self.owner = self.normaliser.codes(index) if self.normaliser else np.zeros(0, np.int64)  # [N]
        self.buffers = Buffers()
        self.single = bool((index.n_repetitions == 1).all())
        self.subject = index.codes("subject").astype(np.int64)
        self.image = index.codes("image_sha256").astype(np.int64)
        own = index.facts.kind == "materialised"
        shas = index.column("image_sha256")
        self.tables: list[TargetTable | MemberTable] = []
        self.rows: list[np.ndarray] = []  # [N] of each table
        for name in targets:
            if own:
                self.tables.append(MemberTable(reader, name))
                self.rows.append(np.arange(len(index)))
            else:
                table = TargetTable.read(root / "targets" / name)
                self.tables.append(table)
                self.rows.append(table.rows(shas))
        self.decoder = PictureDecoder(picture_size, threads) if picture_size else None
        self.pictures, self.picture_row = reader, np.arange(len(index))
        if self.decoder and not own:
            self.pictures = ShardReader.open(root / "images")
            places = {sha: row for row, sha in enumerate(self.pictures.index.keys)}
            absent = [sha for sha in shas if sha not in places]
            if absent:
                raise UserError(
                    f"{root / 'images'}: {len(absent)} of {len(shas)} pictures are not there or in quarantine; build again"
                )
            self.picture_row = np.array([places[sha] for sha in shas], np.int64)

    def batch(
        self,
        indices: np.ndarray,
        positions: np.ndarray,
        choose: Choose,
        vary: Callable[[np.ndarray], None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The batch of samples ``indices`` [B] at ``positions`` [B] of the stream.

        Args:
            choose: the repetitions to average, of (row, R).
            vary: changes scaled EEG [B, C, T] in place.

        Raises:
            DamageError: a sample is damaged.
        """
        self.index.stage(indices)
        present = None
        if self.cap is None:
            eeg = self._scaled(indices, choose, 0, np.arange(len(indices)))
            if self.normaliser is not None:
                eeg = self.normaliser.apply(eeg, self.owner[indices])
        else:
            eeg, present = self._on_montage(indices, choose)
        if vary is not None:
            vary(eeg)
            if present is not None:
                eeg *= present[:, :, None]  # noise is for electrodes that are there
        batch = {
            "eeg": eeg,
            "position": positions,
            "index": indices,
            "subject": self.subject[indices],
            "image": self.image[indices],
        }
        if present is not None:
            batch["present"] = present
        for table, rows in zip(self.tables, self.rows, strict=True):
            batch[table.name] = self.buffers.empty(len(indices), *table.shape)
            table.fill(rows[indices], torch.from_numpy(batch[table.name]))
        out = {name: torch.from_numpy(value) for name, value in batch.items()}
        if self.decoder is not None:
            index = self.pictures.index
            files = (
                (f"{index.folder}: sample {index.keys[i]!r}", self.pictures.image(i))
                for i in self.picture_row[indices].tolist()
            )
            decoded = self.buffers.empty(len(indices), self.decoder.size, self.decoder.size, 3, dtype=np.uint8)
            self.decoder.batch(files, decoded)
            out["picture"] = torch.from_numpy(decoded).permute(0, 3, 1, 2)  # channels last in memory, as it was decoded
        return out

    def _scaled(self, indices: np.ndarray, choose: Choose, cap: int, rows: np.ndarray) -> np.ndarray:
        """Scaled EEG [b, C of the cap, T] of samples ``indices`` [b] of one cap, which are the batch's ``rows`` [b]."""
        statistics = self.statistics[cap]
        eeg = self.buffers.empty(len(indices), len(statistics.mean), self.shape[1])
        if self.single:
            self.reader.arrays(indices, "eeg.npy", torch.from_numpy(eeg)[:, None])
        else:
            for place, (row, i) in enumerate(zip(rows.tolist(), indices.tolist(), strict=True)):
                stored = self.reader.eeg_view(i)  # [R, C, T]
                eeg[place] = transforms.average(stored, choose(row, len(stored)))
        transforms.scale(eeg, statistics)
        return eeg

    def _on_montage(self, indices: np.ndarray, choose: Choose) -> tuple[np.ndarray, np.ndarray]:
        """Scaled EEG [B, C, T] on the montage, zero where a sample's cap has no such electrode, and which are there [B, C]."""
        assert self.cap is not None
        eeg = self.buffers.empty(len(indices), *self.shape)
        present = np.zeros(eeg.shape[:2], bool)
        eeg[:] = 0
        for cap in np.unique(self.cap[indices]).tolist():
            rows = np.flatnonzero(self.cap[indices] == cap)
            own, to = self.places[cap]
            eeg[rows[:, None], to] = self._scaled(indices[rows], choose, cap, rows)[:, own]
            present[rows[:, None], to] = True
        return eeg, present


def _places(cap: list[str], montage: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a cap that the montage has, and where they stand there."""
    shared = [name for name in cap if name in montage]
    return np.array([cap.index(n) for n in shared], int), np.array([montage.index(n) for n in shared], int)
