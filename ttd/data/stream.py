"""The order in which samples are seen, and the batches made of them.

The infinite order is pass after pass, each a permutation keyed by (seed, pass). Element p of that order is at
position p; global batch g is the slice [g·G, (g+1)·G), so batches straddle passes and none is short. A rank takes every
``world_size``-th element of the slice. Hence the whole state is one integer, ``samples_seen``: any run resumed at
it, with any number of ranks, sees the same global batches.

Shapes: N samples, G global batch, B micro-batch, R repetitions, C channels, T time points.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from ttd.config import Config, UserError, fingerprint
from ttd.data import transforms
from ttd.data.reader import ShardReader
from ttd.data.schema import Part
from ttd.data.targets import TargetTable
from ttd.data.whitening import normaliser_of
from ttd.seeding import numpy_rng

PREFETCH = 2
"""Micro-batches prepared ahead by the one thread that reads."""


class DataConfig(Config):
    shards: Path
    """Folder of one study's shards: train/, validation/, test/, images/, targets/."""
    part: Part = "train"
    repetitions: transforms.Repetitions = "mean"
    """What training sees of an image's repetitions: each as a sample of its own (all), their mean, a random one, or
    the mean of ``k`` random ones."""
    k: int = Field(default=2, ge=1)
    time_jitter: int = Field(default=0, ge=0)
    """Shift each sample by up to so many time points, either way."""
    electrode_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a channel is set to its mean."""
    noise: float = Field(default=0.0, ge=0)
    """White noise, in standard deviations of the channel."""
    targets: list[str] = Field(default_factory=list)
    """Names under ``<shards>/targets`` to join: clip, vae."""


def open_reader(config: DataConfig, *, part: Part | None = None, open_test: bool = False) -> ShardReader:
    """The reader of ``config.part`` (or ``part``) of ``config.shards``.

    Raises:
        UserError: the folder is missing or damaged, or it is the locked test part (see ``splits.open_test``).
    """
    return ShardReader.open(Path(config.shards) / (part or config.part), open_test=open_test)


class _Batcher:
    """Reads samples by number and makes the batch both streams hand out."""

    def __init__(self, reader: ShardReader, config: DataConfig):
        index = reader.index
        self.reader, self.shape = reader, (index.n_chans, index.n_times)
        if index.cap not in index.facts.statistics:
            raise UserError(f"{index.folder}: the index has no channel statistics; build the shards again")
        self.statistics = index.facts.statistics[index.cap]
        self.normaliser = normaliser_of(index)
        self.owner = self.normaliser.codes(index) if self.normaliser else np.zeros(0, np.int64)  # [N]
        self.subject = index.codes("subject").astype(np.int64)
        self.image = index.codes("image_sha256").astype(np.int64)
        self.tables = [TargetTable.read(Path(config.shards) / "targets" / name) for name in config.targets]
        shas = index.column("image_sha256")
        self.rows = [table.rows(shas) for table in self.tables]

    def scale(self, eeg: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """µV [B, C, T] of samples ``indices`` [B] → what a model is given."""
        transforms.scale(eeg, self.statistics)
        return eeg if self.normaliser is None else self.normaliser.apply(eeg, self.owner[indices])

    def collate(self, eeg: np.ndarray, positions: np.ndarray, indices: np.ndarray) -> dict[str, torch.Tensor]:
        batch = {
            "eeg": eeg,
            "position": positions,
            "index": indices,
            "subject": self.subject[indices],
            "image": self.image[indices],
        }
        for table, rows in zip(self.tables, self.rows, strict=True):
            batch[table.name] = table.take(rows[indices])
        return {name: torch.from_numpy(value) for name, value in batch.items()}


class Stream:
    """Training batches of one rank, for ever.

    Args:
        reader: of the part to train on.
        config: what to make of each sample.
        seed: of the order and of all variation.
        global_batch_size: G, samples per optimizer step over all ranks.
        micro_batch_size: B, samples per forward pass of one rank.
        rank: of this process, below ``world_size``.

    Attributes:
        n: elements per pass: samples, or single repetitions when ``repetitions`` is ``all``.
        fingerprint: of everything the batches depend on, apart from rank, world size and micro-batch.

    Raises:
        ValueError: G is no multiple of B times ``world_size``.
        UserError: a target, the statistics or the index are missing.
    """

    def __init__(
        self,
        reader: ShardReader,
        config: DataConfig,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        micro_batch_size = micro_batch_size or global_batch_size // world_size
        if global_batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"global_batch_size={global_batch_size} must be a multiple of micro_batch_size={micro_batch_size} "
                f"times world_size={world_size}"
            )
        if config.time_jitter >= reader.index.n_times:
            raise UserError(
                f"data.time_jitter={config.time_jitter} must be below the epoch's {reader.index.n_times} points"
            )
        self.config, self.seed, self.rank, self.world_size = config, seed, rank, world_size
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self._batcher = _Batcher(reader, config)
        index = reader.index
        repeats = index.n_repetitions if config.repetitions == "all" else np.ones(index.n_samples, np.int64)
        self._sample = np.repeat(np.arange(index.n_samples), repeats)  # [n] element of a pass → sample
        self._repetition = np.arange(len(self._sample)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        self.n = len(self._sample)
        self._permutations: dict[int, np.ndarray] = {}
        self.fingerprint = fingerprint(
            {
                "index": index.fingerprint,
                "quarantine": index.quarantined,
                "targets": {table.name: table.fingerprint for table in self._batcher.tables},
                "seed": seed,
                "global_batch_size": global_batch_size,
                "config": config.model_dump(mode="json", exclude={"shards"}),
            }
        )

    def elements(self, positions: np.ndarray) -> np.ndarray:
        """Elements of a pass [B] (numbers below ``n``) at global positions [B]."""
        passes, slots = np.divmod(positions, self.n)
        return np.array([self._permutation(int(p))[s] for p, s in zip(passes, slots, strict=True)], np.int64)

    def batches(self, samples_seen: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """Micro-batches of this rank, G / (B · world_size) per global batch, starting after ``samples_seen`` samples.

        Each is a dict: ``eeg`` float32 [B, C, T] in standard deviations of the training part, ``position`` int64 [B]
        (unique for ever; keys all randomness), ``index`` int64 [B] (row of the shard index), ``subject`` int64 [B]
        (place in ``index.subjects``), ``image`` int64 [B] (dense number per distinct picture, -1 without), and one
        float32 tensor per target. One image may occur several times in a batch.

        Raises:
            UserError: a sample is damaged.
        """
        return _prefetched(self._read(positions) for positions in self._positions(samples_seen))

    def _positions(self, samples_seen: int) -> Iterator[np.ndarray]:
        while True:
            mine = np.arange(samples_seen + self.rank, samples_seen + self.global_batch_size, self.world_size)
            yield from mine.reshape(-1, self.micro_batch_size)
            samples_seen += self.global_batch_size

    def _permutation(self, number: int) -> np.ndarray:
        if number not in self._permutations:
            if len(self._permutations) > 2:
                self._permutations.clear()
            self._permutations[number] = numpy_rng(self.seed, "order", number).permutation(self.n)
        return self._permutations[number]

    def _read(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        config, seed, batcher = self.config, self.seed, self._batcher
        elements = self.elements(positions)
        indices = self._sample[elements]
        eeg = np.empty((len(positions), *batcher.shape), np.float32)
        for row, (position, element, i) in enumerate(zip(positions.tolist(), elements, indices, strict=True)):
            stored = batcher.reader.eeg_view(i)  # [R, C, T]
            if config.repetitions == "all":
                chosen = self._repetition[element : element + 1]
            else:
                chosen = transforms.choose_repetitions(
                    len(stored), config.repetitions, config.k, seed=seed, position=position
                )
            eeg[row] = transforms.average(stored, chosen)
        eeg = batcher.scale(eeg, indices)
        for row, position in enumerate(positions.tolist()):
            if config.time_jitter:
                transforms.jitter_time(eeg[row], config.time_jitter, seed=seed, position=position)
            if config.noise:
                transforms.add_noise(eeg[row], config.noise, seed=seed, position=position)
            if config.electrode_dropout:
                transforms.drop_electrodes(eeg[row], config.electrode_dropout, seed=seed, position=position)
        return batcher.collate(eeg, positions, indices)


def evaluation_batches(
    reader: ShardReader,
    config: DataConfig,
    batch_size: int,
    *,
    n_repetitions: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Every sample once, in the order of the index (or of ``indices``), nothing varied; the last batch may be short.

    The first ``n_repetitions`` repetitions (all if None) are averaged, whatever ``config`` says about training. Keys
    as in ``Stream.batches``; ``position`` is the row of the index.

    Raises:
        UserError: a sample is damaged, or a target is missing.
    """
    batcher = _Batcher(reader, config)
    rows = np.arange(len(reader)) if indices is None else np.asarray(indices, np.int64)
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        eeg = np.empty((len(some), *batcher.shape), np.float32)
        for row, i in enumerate(some):
            eeg[row] = transforms.average(reader.eeg_view(i), slice(n_repetitions))
        eeg = batcher.scale(eeg, some)
        yield batcher.collate(eeg, some.copy(), some)


def _prefetched(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, made ahead by one thread, which ends with the generator; its exceptions are raised here.

    Not a daemon: one that is cut off inside torch at the interpreter's end aborts the process. It looks whether the
    main thread still runs instead.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None) -> bool:
        while not stop.is_set() and threading.main_thread().is_alive():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:
            put(None, error)

    threading.Thread(target=work, name="ttd-prefetch").start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
