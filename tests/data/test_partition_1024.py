"""1,024 ranks, by arithmetic: nobody is started, every sample is read once, nobody reads more than one more than another."""

import copy
import tracemalloc

import numpy as np
import pytest
from small_shards import write_part

from ttd.data.index import ShardIndex
from ttd.data.order import in_lanes
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, Stream

WORLD = 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_part(root / "train", n=2)
    return root


def index_of(folder, n, n_repetitions=1):
    """An index of ``n`` samples in memory: the rows of a small one again and again, under other keys."""
    small = ShardIndex.read(folder / "train")
    rows = np.arange(n) % len(small)
    keys = [f"s{i:07d}".encode() for i in range(n)]
    table = {
        "members": np.array(small.members),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys]),
        "shard": small.shard[rows],
        "offset": small.offset[rows],
        "size": small.size[rows],
        "xxh3": small.xxh3[rows],
        "n_repetitions": np.full(n, n_repetitions),
    }
    for name in ("subject", "cap", "image_sha256", "image_id", "concept", "label"):
        table[f"{name}.values"], table[f"{name}.codes"] = np.unique(small.column(name)[rows], return_inverse=True)
    facts = small.facts.model_copy(update={"n_samples": n})
    return ShardIndex(small.folder, facts, table, set(), small.reader.source)


def stream_of(index, folder, *, rank=0, world=WORLD, total=2 * WORLD, **options):
    config = DataConfig(shards=folder, **options)
    return Stream(ShardReader(index), config, seed=0, global_batch_size=total, rank=rank, world_size=world)


def ranks_of(stream, world):
    """The same stream as every rank of ``world`` has it: a rank is a number, nothing that is built depends on it."""
    for rank in range(world):
        own = copy.copy(stream)
        own.rank = rank
        yield own


def read_by(stream, n_positions):
    """Positions and elements that a rank reads of the first ``n_positions``."""
    mine = []
    for positions in stream.positions(0):
        mine.append(positions[positions < n_positions])
        if positions[-1] >= n_positions - stream.world_size:
            break
    positions = np.concatenate(mine)
    return positions, stream.elements(positions)


@pytest.mark.parametrize(("n", "passes"), [(10_007, 3), (1024, 3), (1000, 3), (7, 150)])
def test_1024_ranks_read_every_sample_once_per_pass_and_differ_by_at_most_one(folder, n, passes):
    """10,007 is a prime; 1,000 and 7 are fewer samples than ranks, so that a global batch goes through several passes."""
    stream = stream_of(index_of(folder, n), folder)
    times, per_rank = np.zeros((passes, n), int), np.zeros((passes, WORLD), int)
    sizes = set()
    for own in ranks_of(stream, WORLD):
        positions, elements = read_by(own, passes * n)
        np.add.at(times, (positions // n, elements), 1)
        per_rank[:, own.rank] = np.bincount(positions // n, minlength=passes)
        sizes.add(len(next(own.positions(0))))
    assert (times == 1).all()
    assert (per_rank.max(1) - per_rank.min(1) <= 1).all()
    assert sizes == {2}  # samples of a step: no rank has fewer, or a step more


def test_1024_ranks_in_lanes_read_every_sample_once_from_shards_of_their_own():
    shard = np.repeat(np.arange(2048), np.random.default_rng(0).integers(80, 120, 2048))
    order = in_lanes(shard, 2048, WORLD, seed=0, number=0)
    parts = [order[rank::WORLD] for rank in range(WORLD)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(shard)))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    early = min(lengths) * 3 // 4  # until the first lane ends, a rank reads its two shards, one after the other
    assert all(len(set(shard[part[:early]])) <= 2 for part in parts)


def test_what_a_rank_of_1024_keeps_of_the_order_grows_with_the_samples_alone(folder):
    """All repetitions of THINGS-EEG2's training part: ten subjects, 16,540 pictures, four times each."""
    n, repetitions = 165_400, 4
    index = index_of(folder, n, repetitions)
    kept = {}
    for world in (1, WORLD):
        tracemalloc.start()
        stream = stream_of(index, folder, rank=world - 1, world=world, repetitions="all")
        for samples_seen in (0, stream.n, 2 * stream.n, 3 * stream.n):
            stream.elements(next(stream.positions(samples_seen)))
        kept[world], peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert stream.n == n * repetitions
        assert peak <= 80 * stream.n  # 53 MB
    assert kept[WORLD] == pytest.approx(kept[1], rel=0.01)
    assert kept[WORLD] <= 48 * stream.n  # two tables and up to three passes of 8 bytes, and what a batch needs
