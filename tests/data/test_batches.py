"""Memory of batches is used again, but never while somebody holds it."""

from itertools import islice

import numpy as np
import torch
from small_shards import write_part, write_targets

from ttd.data.batches import MAX_BUFFERS, Buffers
from ttd.data.stream import DataConfig, Stream, open_reader


def test_a_buffer_comes_back_only_when_every_view_of_it_is_gone():
    buffers = Buffers()
    first = buffers.empty(4, 3)
    place = first.ctypes.data
    tensor = torch.from_numpy(first)
    view = tensor[1:].T
    del first, tensor
    assert buffers.empty(4, 3).ctypes.data != place
    del view
    assert place in {array.ctypes.data for array in (buffers.empty(4, 3), buffers.empty(4, 3))}
    assert buffers.empty(3, 4).shape == (3, 4)


def test_no_more_is_kept_than_a_loop_needs():
    buffers = Buffers()
    out = [buffers.empty(2) for _ in range(3 * MAX_BUFFERS)]
    assert len({array.ctypes.data for array in out}) == len(out)
    assert len(buffers.held[(2,), np.float32]) == MAX_BUFFERS


def test_batches_that_are_kept_do_not_change(tmp_path):
    write_part(tmp_path / "train", n=10)
    write_targets(tmp_path, "clip", range(10), lambda image: np.full(4, image, np.float16))
    config = DataConfig(shards=tmp_path, targets=["clip"], repetitions="random")
    stream = Stream(open_reader(config), config, seed=0, global_batch_size=2)
    kept = list(islice(stream.batches(), 40))
    for batch in kept:
        again = stream.read(batch["position"].numpy())
        assert all(torch.equal(batch[name], again[name]) for name in batch)
