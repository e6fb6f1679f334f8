"""Writer, index, reader: what is written is what is read, by us, by tar and by webdataset."""

import hashlib
import json
import subprocess

import numpy as np
import pytest
from small_shards import CH_NAMES, facts, meta, sample, write_part

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.members import decode_npy
from ttd.data.reader import ShardReader
from ttd.data.writer import ShardWriter, encode_npy


def test_a_sample_comes_back_as_it_was_written(tmp_path):
    write_part(tmp_path / "train", n=5)
    reader = ShardReader.open(tmp_path / "train")
    assert reader.index.keys == [f"sub-{i % 2}_img-{i:04d}" for i in range(5)]
    for i in range(5):
        read = reader.read(i)
        np.testing.assert_array_equal(read["eeg.npy"], sample(i))
        assert read["eeg.npy"].dtype == np.float16
        assert reader.eeg(i).dtype == np.float32
        assert read["meta.json"] == meta(i) == reader.meta(i)


def test_the_index_states_what_the_data_alone_knows(tmp_path):
    write_part(tmp_path / "train", n=5)
    index = ShardIndex.read(tmp_path / "train")
    assert (index.ch_names, index.sfreq, index.n_times, index.n_samples) == (CH_NAMES, 100.0, 20, 5)
    assert index.subjects == ["sub-0", "sub-1"]
    assert index.codes("subject").tolist() == [0, 1, 0, 1, 0]
    assert [shard.n_samples for shard in index.facts.shards] == [2, 2, 1]
    assert index.column("label").tolist() == [""] * 5
    assert index.codes("label").tolist() == [-1] * 5


def test_tar_reads_our_shards(tmp_path):
    write_part(tmp_path / "train", n=3)
    listing = subprocess.run(
        ["tar", "-tf", tmp_path / "train" / "000000.tar"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert listing == [
        "sub-0_img-0000.eeg.npy",
        "sub-0_img-0000.meta.json",
        "sub-1_img-0001.eeg.npy",
        "sub-1_img-0001.meta.json",
    ]
    subprocess.run(["tar", "-xf", tmp_path / "train" / "000000.tar", "-C", tmp_path], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "sub-1_img-0001.eeg.npy", allow_pickle=False), sample(1))
    assert json.loads((tmp_path / "sub-1_img-0001.meta.json").read_text()) == meta(1)


def test_webdataset_reads_our_shards(tmp_path):
    import webdataset

    write_part(tmp_path / "train", n=5)
    urls = sorted(str(path) for path in (tmp_path / "train").glob("*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in read] == ShardIndex.read(tmp_path / "train").keys
    np.testing.assert_array_equal(decode_npy(read[3]["eeg.npy"]), sample(3))


def test_the_same_samples_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_part(tmp_path / name, n=5)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_folder_is_whole_or_absent(tmp_path):
    with ShardWriter(tmp_path / "train", kind="paired") as writer:
        writer.write("a", {"eeg.npy": sample(0), "meta.json": meta(0)})
        assert not (tmp_path / "train").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_folder_replaces_the_old_one(tmp_path):
    write_part(tmp_path / "train", n=5)
    write_part(tmp_path / "train", n=2)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert ShardIndex.read(tmp_path / "train").n_samples == 2


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("has.dot", {}, "no dots"),
        ("k" * 81, {}, "1 to 80 characters"),
        ("k", {"eeg.npy": np.full((2, 3, 20), np.nan)}, "NaN"),
        ("k", {"eeg.npy": np.full((2, 3, 20), 1e6)}, "is it in µV"),
        ("k", {"eeg.npy": np.zeros((3, 20))}, r"expected \[R, C, T\]"),
        ("k", {"eeg.npy": np.zeros((1, 3, 20))}, "1 repetitions, but meta.json lists"),
        ("k", {"meta.json": {**meta(0), "colour": 1}}, "colour: Extra inputs"),
        ("k", {"meta.json": {**meta(0), "image_sha256": None}}, "lacks image_sha256"),
        ("k", {"picture.npy": np.zeros(1)}, "expected eeg.npy and meta.json"),
    ],
)
def test_a_sample_that_breaks_the_contract_is_refused_when_written(tmp_path, key, change, words):
    with ShardWriter(tmp_path / "train", kind="paired") as writer, pytest.raises(UserError, match=words):
        writer.write(key, {"eeg.npy": sample(0), "meta.json": meta(0)} | change)


def test_a_sample_that_does_not_fit_its_cap_is_refused_at_the_end(tmp_path):
    with ShardWriter(tmp_path / "train", kind="paired") as writer:
        writer.write("k", {"eeg.npy": np.zeros((2, 4, 20)), "meta.json": meta(0)})
        with pytest.raises(UserError, match=r"'k'.*shape \[1, 4, 20\], expected \[R, 3, 20\] of cap 'three'"):
            writer.finish(facts())


def test_missing_facts_are_named(tmp_path):
    with ShardWriter(tmp_path / "train", kind="paired") as writer:
        writer.write("k", {"eeg.npy": sample(0), "meta.json": meta(0)})
        with pytest.raises(UserError, match="must state sfreq, n_times"):
            writer.finish({k: v for k, v in facts().items() if k not in ("sfreq", "n_times")})


def test_a_key_cannot_be_written_twice(tmp_path):
    with ShardWriter(tmp_path / "train", kind="paired") as writer:
        writer.write("k", {"eeg.npy": sample(0), "meta.json": meta(0)})
        with pytest.raises(UserError, match="written before"):
            writer.write("k", {"eeg.npy": sample(0), "meta.json": meta(0)})


def test_a_missing_or_damaged_index_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no shards \(index.json is missing\)"):
        ShardIndex.read(tmp_path)
    write_part(tmp_path / "train", n=2)
    table = tmp_path / "train" / "index.npz"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"index\.npz: damaged"):
        ShardIndex.read(tmp_path / "train")
    (tmp_path / "train" / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json: damaged"):
        ShardIndex.read(tmp_path / "train")
    (tmp_path / "train" / "index.json").write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema_version 99, this code reads 1"):
        ShardIndex.read(tmp_path / "train")


def test_the_test_part_is_locked(tmp_path):
    write_part(tmp_path / "test", n=2, part="test")
    with pytest.raises(UserError, match="the test part is locked"):
        ShardIndex.read(tmp_path / "test")
    assert ShardIndex.read(tmp_path / "test", open_test=True).n_samples == 2


def test_objects_in_an_npy_are_never_unpickled(tmp_path):
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="only pickle could read"):
        decode_npy(path.read_bytes())
    with pytest.raises(ValueError, match="object arrays"):
        encode_npy(np.array([None]))


def test_an_npy_header_that_announces_more_than_there_is_allocates_nothing():
    content = encode_npy(np.zeros(4, np.float32)).replace(b"(4,)", b"(4000000000000,)")
    with pytest.raises(ValueError, match="announces shape"):
        decode_npy(content[:128])


def test_images_and_targets_are_keyed_by_the_hash_of_the_image(tmp_path):
    content = b"\x89PNG not really"
    sha = hashlib.sha256(content).hexdigest()
    with ShardWriter(tmp_path / "images", kind="image") as writer:
        writer.write(sha, {"image.png": content, "meta.json": {"image_id": "a", "concept": None, "sha256": sha}})
        writer.finish({"study": "S"})
    reader = ShardReader.open(tmp_path / "images")
    assert reader.image(0) == content
    assert reader.index.column("image_sha256").tolist() == [sha]
