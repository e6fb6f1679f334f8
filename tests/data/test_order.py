"""The order inside lanes: every element once, whole shards from front to back, ranks with shards of their own."""

import numpy as np
import pytest

from ttd.data.order import in_lanes, permutation


def uneven(n_shards=13, seed=0):
    return np.repeat(np.arange(n_shards), np.random.default_rng(seed).integers(1, 40, n_shards))


@pytest.mark.parametrize("lanes", [1, 3, 8, 50])
def test_every_element_comes_once_and_a_shard_is_read_from_front_to_back(lanes):
    shard = uneven()
    for number in range(3):
        order = in_lanes(shard, 13, lanes, seed=0, number=number)
        assert sorted(order) == list(range(len(shard)))
        assert all((np.diff(order[shard[order] == s]) > 0).all() for s in range(13))


def test_passes_and_seeds_differ_and_the_same_pass_is_the_same():
    shard = uneven()
    orders = [in_lanes(shard, 13, 4, seed=seed, number=number) for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert np.array_equal(orders[0], orders[3])


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_rank_that_divides_the_lanes_has_shards_of_its_own(world):
    shard = np.repeat(np.arange(16), 25)
    order = in_lanes(shard, 16, 8, seed=3, number=0)
    sets = [set(shard[order[rank::world]]) for rank in range(world)]
    assert sum(map(len, sets)) == 16


def test_a_batch_mixes_as_many_shards_as_there_are_lanes():
    shard = np.repeat(np.arange(32), 64)
    order = in_lanes(shard, 32, 8, seed=0, number=0)
    assert all(len(set(shard[order[start : start + 32]])) == 8 for start in range(0, 2048, 32))
    anywhere = permutation(len(shard), seed=0, number=0)
    assert np.mean([len(set(shard[anywhere[start : start + 32]])) for start in range(0, 2048, 32)]) > 18
