"""Storage that fails now and then, answers in parts or stands still: no sample is wrong, and the wait is bounded and told."""

import errno
import logging
import os
import time
from itertools import islice

import numpy as np
import pytest
import torch
from small_shards import sample, write_part

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.members import PAUSES_S, DamageError, StorageError
from ttd.data.quarantine import on_damage
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, Stream, open_reader


@pytest.fixture
def root(tmp_path):
    write_part(tmp_path / "train", n=40)
    return tmp_path


def stream(root):
    config = DataConfig(shards=root, repetitions="random_mean_k", k=2, noise=0.1)
    return Stream(open_reader(config), config, seed=0, global_batch_size=8)


class Shim:
    """The real ``os.preadv``, and what goes wrong before it."""

    def __init__(self, monkeypatch, fault):
        self.real, self.fault, self.calls, self.faults = os.preadv, fault, 0, []
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, fd, buffers, offset):
        self.calls += 1
        fault = self.fault(self.calls)
        if fault is None:
            return self.real(fd, buffers, offset)
        self.faults.append(fault)
        if fault == "short":
            return self.real(fd, [buffers[0][: max(1, len(buffers[0]) // 3)]], offset)
        if fault == "nothing":
            return 0
        if fault == "stall":
            time.sleep(2.0)
            return self.real(fd, buffers, offset)
        raise OSError(fault, os.strerror(fault))


def seldom(rng):
    """5 % EIO, 10 % short reads, 2 % that bring nothing, and two stalls of 2 s."""

    def fault(call):
        if call in (100, 200):
            return "stall"
        share = rng.random()
        return errno.EIO if share < 0.05 else "short" if share < 0.15 else "nothing" if share < 0.17 else None

    return fault


def test_no_sample_is_wrong_and_the_time_that_was_lost_is_bounded_and_told(root, monkeypatch, caplog):
    own, calm = stream(root), stream(root)
    places = list(islice(own.positions(0), 50))
    truth = [calm.read(positions) for positions in places]
    source = own._index.reader.source
    shim = Shim(monkeypatch, seldom(np.random.default_rng(0)))
    with caplog.at_level(logging.WARNING, "ttd"):
        start = time.monotonic()
        found = [own.read(positions) for positions in places]
        took_s = time.monotonic() - start
    for ours, right in zip(found, truth, strict=True):
        assert all(torch.equal(ours[name], right[name]) for name in right)
    failed = sum(fault in (errno.EIO, "nothing") for fault in shim.faults)
    assert failed >= 15
    assert shim.faults.count("stall") == 2
    assert source.troubles == failed + 2, "short reads that go on are no trouble"
    assert 4.0 <= source.lost_s <= min(took_s, 4.0 + failed * sum(PAUSES_S)) + 1.0
    told = [record.getMessage() for record in caplog.records]
    assert any("a read took 2." in line or "such reads so far" in line for line in told)
    assert len(told) <= np.log2(source.troubles) + 1
    assert all("/train/0" in line and "at byte" in line and "s lost" in line for line in told)


def test_a_stall_alone_is_told_with_file_place_and_length(root, monkeypatch, caplog):
    reader = ShardReader.open(root / "train")
    Shim(monkeypatch, lambda call: "stall" if call == 1 else None)
    with caplog.at_level(logging.WARNING, "ttd"):
        np.testing.assert_array_equal(reader.eeg(1), sample(1))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "train/000000.tar at byte " in told
    assert "a read took 2.0 s (1 such reads so far, 2.0 s lost)" in told


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_is_opened_again_after_a_failure(root, monkeypatch, number):
    """A handle that a server forgot stays forgotten."""
    reader = ShardReader.open(root / "train")
    opened, real = [], os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(str(a[0])) or real(*a, **k))
    Shim(monkeypatch, lambda call: number if call == 1 else None)
    np.testing.assert_array_equal(reader.eeg(1), sample(1))
    assert [name.rpartition("/")[2] for name in opened] == ["000000.tar"] * 2


def test_after_three_more_tries_the_error_names_file_and_place_and_no_policy_drops_the_sample(root, monkeypatch):
    reader = ShardReader.open(root / "train")
    shim = Shim(monkeypatch, lambda call: errno.EIO)
    where = r"train/000000\.tar: sample 'sub-1_img-0001', member eeg\.npy at byte \d+: .*Input/output error, 4 times"
    start = time.monotonic()
    with pytest.raises(StorageError, match=where), on_damage("quarantine"):
        reader.eeg(1)
    assert shim.calls == 4
    assert sum(PAUSES_S) <= time.monotonic() - start <= sum(PAUSES_S) + 2
    assert not (root / "train" / "quarantine.json").exists(), "storage failed, not the sample"


def test_what_is_no_failure_of_a_moment_is_not_tried_again(root, monkeypatch):
    reader = ShardReader.open(root / "train")
    shim = Shim(monkeypatch, lambda call: errno.EACCES)
    with pytest.raises(DamageError, match="Permission denied"):
        reader.eeg(1)
    assert shim.calls == 1


def test_a_changed_byte_is_an_error_at_once_and_is_read_once(root, monkeypatch):
    path = root / "train" / "000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    reader = ShardReader.open(root / "train")
    shim = Shim(monkeypatch, lambda call: None)
    with pytest.raises(DamageError, match="damaged: the checksum differs"):
        reader.eeg(0)
    assert shim.calls == 1


def test_the_index_is_read_as_patiently_as_the_shards(root, monkeypatch):
    truth = ShardIndex.read(root / "train")
    Shim(monkeypatch, lambda call: errno.EIO if call in (1, 4) else "short" if call in (2, 5) else None)
    index = ShardIndex.read(root / "train")
    assert (index.keys, index.fingerprint) == (truth.keys, truth.fingerprint)
    Shim(monkeypatch, lambda call: errno.EIO)
    with pytest.raises(UserError, match=r"index\.json: cannot be read: .*Input/output error, 4 times"):
        ShardIndex.read(root / "train")
