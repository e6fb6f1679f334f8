"""The order in which samples are seen, and the batches made of them.

The infinite order is pass after pass, each a permutation keyed by (seed, pass). Element p of that order is at
position p; global batch g is the slice [g·G, (g+1)·G), so batches straddle passes and none is short. A rank takes every
``world_size``-th element of the slice. Hence the whole state is one integer, ``samples_seen``: any run resumed at
it, with any number of ranks, sees the same global batches.

Shapes: N samples, G global batch, B micro-batch, R repetitions, C channels, T time points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from ttd.config import Config, UserError, fingerprint
from ttd.data import order, transforms
from ttd.data.batches import Batcher
from ttd.data.index import ShardIndex
from ttd.data.joined import join
from ttd.data.prefetch import prefetched
from ttd.data.quarantine import Damage
from ttd.data.reader import ShardReader
from ttd.data.remote import RemoteConfig, open_remote_index
from ttd.data.schema import Part


class DataConfig(Config):
    shards: Path
    """Folder of one study's shards: train/, validation/, test/, images/, targets/."""
    also: list[Path] = Field(default_factory=list)
    """Folders of other studies whose windows are seen as well (pretraining); ``montage`` must then be given."""
    montage: list[str] | Literal["union"] | None = None
    """Channels of every batch where caps differ (pretraining): all electrodes of any cap, or those named. One that a sample
    lacks is zero, and ``present`` says so. None: there is one cap."""
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
    picture_size: int | None = Field(default=None, ge=8)
    """Join the decoded pictures, RGB, so many pixels along a side; none where null."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode them."""
    remote: RemoteConfig | None = None
    """Read ``part`` from materialised tars at an address instead of ``<shards>/<part>``."""
    damage: Damage = "fail"
    """What a damaged sample does: ``fail`` stops the run; ``quarantine`` writes it into ``quarantine.json`` first, so that
    the next start leaves it out on every rank (``quarantine.guards_data``)."""
    leave_out: list[str] = Field(default_factory=list)
    """Subjects that neither training nor its validation sees: one name is a fold of leave-one-subject-out."""

    def fingerprint_part(self) -> dict:
        """The fields that decide what is in a batch."""
        content = self.model_dump(mode="json", exclude={"shards", "also", "decode_threads", "remote", "damage"})
        for name in ("picture_size", "montage"):
            if content[name] is None:
                del content[name]
        if not self.leave_out:
            del content["leave_out"]
        return content

    @property
    def folders(self) -> list[Path]:
        """``shards`` and all of ``also``."""
        return [self.shards, *self.also]


def open_reader(config: DataConfig, *, part: Part | None = None, open_test: bool = False) -> ShardReader:
    """The reader of ``config.part`` from where ``config`` says, or of another ``part`` of ``config.shards``.

    Raises:
        UserError: the folder is missing or damaged, or it is the locked test part (see ``splits.open_test``).
    """
    if config.remote is not None and part in (None, config.part):
        return ShardReader(open_remote_index(config.remote))
    return ShardReader(open_index(config, part=part, open_test=open_test))


def open_index(config: DataConfig, *, part: Part | None = None, open_test: bool = False) -> ShardIndex:
    """The index of a part of ``config.shards``, joined with that of every other folder that has such a part.

    The montage is that of the training parts, whatever part is read.

    Raises:
        UserError: as ``open_reader``; or several folders and no montage.
    """
    if config.also and config.montage is None:
        raise UserError("data.also: several studies need common channels; set data.montage=union, or name electrodes")
    part = part or config.part
    parts = {
        number: ShardIndex.read(folder / part, open_test=open_test)
        for number, folder in enumerate(config.folders)
        if not config.also or part == config.part or (folder / part / "index.json").is_file()
    }
    if not parts:
        raise UserError(f"data: none of {', '.join(map(str, config.folders))} holds a part {part}")
    index = join(parts) if config.also else parts[0]
    if config.montage is not None:
        electrodes = config.montage
        if electrodes == "union" and part != config.part:
            electrodes = open_index(config).ch_names
        index.use_montage(electrodes)
    return index


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
        self._batcher = _batcher(reader, config)
        self._index = index = reader.index
        self._lanes = config.remote.streams if config.remote is not None and index.reader.source.sequential else 0
        kept = kept_rows(index, config.leave_out)
        repeats = index.n_repetitions[kept] if config.repetitions == "all" else np.ones(len(kept), np.int64)
        self._sample = np.repeat(kept, repeats)  # [n] element of a pass → sample
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
                "config": config.fingerprint_part(),
                **({"lanes": self._lanes} if self._lanes else {}),
            }
        )

    def elements(self, positions: np.ndarray) -> np.ndarray:
        """Elements of a pass [B] (numbers below ``n``) at global positions [B]."""
        passes, slots = np.divmod(positions, self.n)
        if passes[0] == passes[-1]:
            return self._permutation(int(passes[0]))[slots]
        return np.array([self._permutation(int(p))[s] for p, s in zip(passes, slots, strict=True)], np.int64)

    def batches(self, samples_seen: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """Micro-batches of this rank, G / (B · world_size) per global batch, starting after ``samples_seen`` samples.

        Each is a dict: ``eeg`` float32 [B, C, T] in standard deviations of the training part, ``position`` int64 [B]
        (unique for ever; keys all randomness), ``index`` int64 [B] (row of the shard index), ``subject`` int64 [B]
        (place in ``index.subjects``), ``image`` int64 [B] (dense number per distinct picture, -1 without), with a montage
        ``present`` bool [B, C], and one float32 tensor per target. One image may occur several times in a batch.

        Raises:
            DamageError: a sample is damaged.
        """
        return prefetched(self.read(positions) for positions in self.positions(samples_seen))

    def positions(self, samples_seen: int) -> Iterator[np.ndarray]:
        """Global positions [B] of this rank's micro-batches, for ever."""
        while True:
            mine = np.arange(samples_seen + self.rank, samples_seen + self.global_batch_size, self.world_size)
            yield from mine.reshape(-1, self.micro_batch_size)
            samples_seen += self.global_batch_size

    def _permutation(self, number: int) -> np.ndarray:
        if number not in self._permutations:
            if len(self._permutations) > 2:
                self._permutations.clear()
            self._permutations[number] = (
                order.in_lanes(
                    self._index.shard[self._sample],
                    len(self._index.facts.shards),
                    self._lanes,
                    seed=self.seed,
                    number=number,
                )
                if self._lanes
                else order.permutation(self.n, seed=self.seed, number=number)
            )
        return self._permutations[number]

    def read(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """The micro-batch at global positions [B]; see ``batches``."""
        config, seed = self.config, self.seed
        elements = self.elements(positions)
        places = positions.tolist()

        def choose(row: int, n: int) -> np.ndarray:
            if config.repetitions == "all":
                return self._repetition[elements[row] : elements[row] + 1]
            return transforms.choose_repetitions(n, config.repetitions, config.k, seed=seed, position=places[row])

        def vary(eeg: np.ndarray) -> None:
            for row, position in enumerate(places):
                if config.time_jitter:
                    transforms.jitter_time(eeg[row], config.time_jitter, seed=seed, position=position)
                if config.noise:
                    transforms.add_noise(eeg[row], config.noise, seed=seed, position=position)
                if config.electrode_dropout:
                    transforms.drop_electrodes(eeg[row], config.electrode_dropout, seed=seed, position=position)

        varied = config.time_jitter or config.noise or config.electrode_dropout
        return self._batcher.batch(self._sample[elements], positions, choose, vary if varied else None)


def kept_rows(index: ShardIndex, leave_out: Sequence[str]) -> np.ndarray:
    """Rows [n] of the samples whose subject is not left out.

    Raises:
        UserError: there is no sample, or nobody is left; or, in the training part, nobody has such a name, so that nobody
            would be left out.
    """
    if not len(index):
        raise UserError(f"{index.folder}: holds no sample, all are in quarantine.json; build the shards again")
    unknown = [repr(name) for name in leave_out if name not in index.subjects]
    if unknown and index.facts.part == "train":
        raise UserError(
            f"data.leave_out: no subject {', '.join(unknown)} in {index.folder}, which has {', '.join(index.subjects)}"
        )
    rows = np.flatnonzero(~np.isin(index.column("subject"), leave_out)) if leave_out else np.arange(len(index))
    if leave_out and not len(rows):
        raise UserError(
            f"data.leave_out={list(leave_out)}: {index.folder} holds no other subject; leave fewer subjects out"
        )
    return rows


def evaluation_batches(
    reader: ShardReader,
    config: DataConfig,
    batch_size: int,
    *,
    n_repetitions: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Every sample once, in the order of the index (or of ``indices``), nothing varied; the last batch may be short.

    Subjects of ``config.leave_out`` are left out, unless ``indices`` ask for them. The first ``n_repetitions``
    repetitions (all if None) are averaged, whatever ``config`` says about training. Keys as in ``Stream.batches``;
    ``position`` is the row of the index.

    Raises:
        DamageError: a sample is damaged.
        UserError: a target is missing.
    """
    batcher = _batcher(reader, config)
    rows = kept_rows(reader.index, config.leave_out) if indices is None else np.asarray(indices, np.int64)
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        yield batcher.batch(some, some.copy(), lambda row, n: slice(n_repetitions))


def _batcher(reader: ShardReader, config: DataConfig) -> Batcher:
    return Batcher(
        reader,
        Path(config.shards),
        config.targets,
        picture_size=config.picture_size,
        threads=config.decode_threads,
    )
