"""The order of one pass over the data: a function of (seed, pass), the same whatever the number of ranks.

Two orders. ``permutation`` draws every element anywhere: right where any byte is as near as any other. ``in_lanes`` keeps to
the order inside a shard, because an object store is read from front to back: the shards are drawn in a new order each pass and
dealt to a fixed number of lanes, and the lanes take turns. Its shuffle is as good as the one that dealt samples to shards
(``shards/materialise.py`` draws it once): neighbours in a shard stay neighbours in every pass, what meets them does not.

Shapes: n elements of a pass, S shards.
"""

from __future__ import annotations

import numpy as np

from ttd.seeding import numpy_rng


def permutation(n: int, *, seed: int, number: int) -> np.ndarray:
    """Elements [n] of pass ``number``, each place equally likely."""
    return numpy_rng(seed, "order", number).permutation(n)


def in_lanes(shard: np.ndarray, n_shards: int, lanes: int, *, seed: int, number: int) -> np.ndarray:
    """Elements [n] of pass ``number``, of which element i lies in shard ``shard[i]`` [n], front to back.

    Element p comes from lane p mod ``lanes`` until a lane ends; so a rank whose world size divides ``lanes`` keeps to
    shards of its own.
    """
    turn, lane = np.divmod(numpy_rng(seed, "shards", number).permutation(n_shards)[shard], lanes)
    by_lane = np.lexsort((np.arange(len(shard)), turn, lane))
    counts = np.bincount(lane, minlength=lanes)
    slot = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)  # place within its lane
    return by_lane[np.lexsort((lane[by_lane], slot))]
