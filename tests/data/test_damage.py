"""Damage is found, named and left out; what only fails for a moment is tried again; what is hostile is refused."""

import errno
import json
import os
import resource
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from small_shards import sample, write_part

from ttd.config import UserError
from ttd.data import index as index_module
from ttd.data import members
from ttd.data.index import ShardIndex
from ttd.data.members import DamageError, StorageError
from ttd.data.quarantine import on_damage
from ttd.data.reader import ShardReader
from ttd.data.schema import hash_of
from ttd.data.stream import DataConfig, Stream, open_reader

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import damage
import fuzz_shards


def test_every_kind_of_damage_is_found_and_nothing_is_lost_in_silence(capsys):
    total, found, silent = damage.run(places=3)
    assert (total, found, silent) == (36, 36, 0), capsys.readouterr().out


def damaged(tmp_path):
    """Four samples, of which number 2 is damaged."""
    write_part(tmp_path / "train", n=4)
    path = tmp_path / "train" / "000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def stream(root, *, rank=0, world=1, **options):
    config = DataConfig(shards=root, **options)
    return Stream(open_reader(config), config, seed=0, global_batch_size=4, rank=rank, world_size=world)


def test_by_default_a_failed_read_stops_and_writes_nothing(tmp_path):
    damaged(tmp_path)
    where = "000001.tar: sample 'sub-0_img-0002', member eeg.npy at byte 512: damaged"
    with pytest.raises(DamageError, match=where), on_damage("fail"):
        next(stream(tmp_path).batches())
    assert not (tmp_path / "train" / "quarantine.json").exists()


def test_with_quarantine_a_failed_read_stops_once_and_every_rank_of_the_next_start_goes_without(tmp_path):
    damaged(tmp_path)
    with (
        pytest.raises(DamageError, match=r"it is in .*quarantine.json now, the next start leaves it out"),
        on_damage("quarantine"),
    ):
        next(stream(tmp_path).batches())
    written = json.loads((tmp_path / "train" / "quarantine.json").read_text())["samples"]
    assert [(entry["key"], "checksum" in entry["reason"]) for entry in written] == [("sub-0_img-0002", True)]
    ranks = [stream(tmp_path, rank=rank, world=2) for rank in range(2)]
    assert [own.n for own in ranks] == [3, 3]
    assert len({own.fingerprint for own in ranks}) == 1
    seen = [i for own in ranks for batch in islice(own.batches(), 3) for i in batch["index"].tolist()]
    assert sorted(seen) == sorted([0, 1, 2] * 4)


def test_the_policy_does_not_change_what_is_in_a_batch(tmp_path):
    write_part(tmp_path / "train", n=4)
    base = stream(tmp_path).fingerprint
    assert stream(tmp_path, damage="quarantine", decode_threads=7).fingerprint == base


def flaky(monkeypatch, faults):
    """Let ``os.preadv`` go wrong as often as ``faults`` says: an errno, or a number of bytes after which it ends."""
    real, left, pauses = os.preadv, list(faults), []

    def preadv(fd, buffers, offset):
        fault = left.pop(0) if left else None
        if isinstance(fault, tuple):
            return real(fd, [buffers[0][: fault[0]]], offset) if fault[0] else 0
        if fault:
            raise OSError(fault, os.strerror(fault))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(members.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("faults", [[errno.EIO], [(100,)], [(100,), (0,), errno.EIO], [errno.EIO] * 3])
def test_what_fails_for_a_moment_is_read_again_after_growing_pauses(tmp_path, monkeypatch, faults):
    write_part(tmp_path / "train", n=2)
    reader = ShardReader.open(tmp_path / "train")
    pauses = flaky(monkeypatch, faults)
    np.testing.assert_array_equal(reader.eeg(1), sample(1))
    assert len(pauses) <= 3
    assert pauses == sorted(pauses)


def test_what_keeps_failing_is_given_up_after_three_more_tries(tmp_path, monkeypatch):
    write_part(tmp_path / "train", n=2)
    reader = ShardReader.open(tmp_path / "train")
    pauses = flaky(monkeypatch, [errno.EIO] * 9)
    with pytest.raises(StorageError, match="sample 'sub-1_img-0001', member eeg.npy .*Input/output error"):
        reader.eeg(1)
    assert len(pauses) == 3


def test_flaky_storage_gives_no_wrong_sample(tmp_path, monkeypatch):
    write_part(tmp_path / "train", n=6)
    reader = ShardReader.open(tmp_path / "train")
    rng = np.random.default_rng(0)
    flaky(
        monkeypatch,
        [errno.EIO if rng.random() < 0.05 else (rng.integers(1, 200),) if rng.random() < 0.2 else None] * 400,
    )
    for _ in range(30):
        for i in range(6):
            np.testing.assert_array_equal(reader.eeg(i), sample(i))


def vouch(path, facts):
    """Write ``index.json`` with a hash that fits, as a hostile folder would."""
    path.write_text(json.dumps({**facts, "facts_sha256": hash_of(facts)}))


def test_a_flipped_digit_of_the_facts_is_found_and_older_indices_are_read(tmp_path):
    write_part(tmp_path / "train", n=2)
    path, index = tmp_path / "train" / "index.json", ShardIndex.read(tmp_path / "train")
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "sfreq": 101.0}))
    with pytest.raises(UserError, match=r"index\.json: damaged \(its content differs from its own hash\)"):
        ShardIndex.read(tmp_path / "train")
    del facts["facts_sha256"]
    path.write_text(json.dumps(facts))
    assert ShardIndex.read(tmp_path / "train").fingerprint == index.fingerprint


def test_a_shard_name_cannot_leave_the_folder(tmp_path):
    write_part(tmp_path / "train", n=2)
    path = tmp_path / "train" / "index.json"
    for name in ("../../000000.tar", "/etc/passwd", "000000.tar\\n", ""):
        content = json.loads(path.read_text())
        content["shards"][0]["name"] = name
        vouch(path, content)
        with pytest.raises(UserError, match=r"index\.json: damaged"):
            ShardIndex.read(tmp_path / "train")


def rewrite_table(folder, change):
    """Change the table and make index.json vouch for it, as a hostile folder would."""
    import hashlib
    from io import BytesIO

    with np.load(folder / "index.npz", allow_pickle=False) as file:
        table = change({name: file[name].copy() for name in file.files})
    out = BytesIO()
    np.savez_compressed(out, **table)
    (folder / "index.npz").write_bytes(out.getvalue())
    facts = json.loads((folder / "index.json").read_text())
    facts["index_sha256"] = hashlib.sha256(out.getvalue()).hexdigest()
    vouch(folder / "index.json", facts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"size": t["size"] + 2**40}, "reaches beyond its shard"),
        (lambda t: t | {"size": t["size"] - 2**40}, "reaches beyond its shard"),
        (lambda t: t | {"shard": t["shard"] + 9}, "shard that does not exist"),
        (lambda t: t | {"shard": t["shard"] - 1}, "shard that does not exist"),
        (lambda t: t | {"offset": t["offset"][:, :1]}, "do not fit.*offset"),
        (lambda t: t | {"subject.codes": t["subject.codes"] + 99}, "do not fit.*subject"),
        (lambda t: t | {"key_ends": t["key_ends"][::-1]}, "ends of keys"),
        (lambda t: {n: v for n, v in t.items() if n != "xxh3"}, "xxh3"),
        (lambda t: t | {"keys": np.zeros(10**6, np.uint8)}, "would unpack to more"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(index_module, "MAX_TABLE", 500_000)
    write_part(tmp_path / "train", n=4)
    rewrite_table(tmp_path / "train", change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=rf"index\.npz: damaged.*{words}"):
        ShardIndex.read(tmp_path / "train")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB


def test_objects_in_a_table_are_not_unpickled(tmp_path):
    write_part(tmp_path / "train", n=2)
    rewrite_table(tmp_path / "train", lambda t: t | {"extra": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match="only pickle could read"):
        ShardIndex.read(tmp_path / "train")


def test_nested_json_is_one_sentence(tmp_path):
    write_part(tmp_path / "train", n=2)
    (tmp_path / "train" / "index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"index\.json: damaged"):
        ShardIndex.read(tmp_path / "train")
    (tmp_path / "train" / "quarantine.json").write_text("{}")
    write_part(tmp_path / "other", n=2)
    (tmp_path / "other" / "quarantine.json").write_text("{}")
    with pytest.raises(UserError, match=r"quarantine.json: damaged"):
        ShardIndex.read(tmp_path / "other")


def test_an_eeg_of_another_length_than_the_index_says_is_never_handed_out(tmp_path):
    write_part(tmp_path / "train", n=2)
    path = tmp_path / "train" / "index.json"
    facts = json.loads(path.read_text())
    for n_times in (10, 1, 21):
        vouch(path, {**facts, "n_times": n_times})
        with pytest.raises(UserError, match=r"eeg.npy has shape"):
            next(stream(tmp_path).batches())
    write_part(tmp_path / "single" / "train", n=2, n_repetitions=1)
    path = tmp_path / "single" / "train" / "index.json"
    vouch(path, {**json.loads(path.read_text()), "n_times": 1})
    with pytest.raises(UserError, match=r"eeg.npy has shape \[1, 3, 20\]"):
        next(stream(tmp_path / "single").batches())


def test_fuzzed_shards_and_indices_are_refused_or_read_as_they_were_written():
    outcomes = fuzz_shards.run(600, seed=1)
    assert {what for _, what in outcomes} == {"refused", "as written"}, outcomes
