"""Self-contained pair tars: plain to tar, to webdataset and to TTD, from a folder or an address, with the same samples."""

import hashlib
import io
import json
import runpy
import shutil
import subprocess
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from small_shards import facts, meta, sample
from web_server import serve

from ttd.config import UserError, load_config, run
from ttd.data.index import ShardIndex
from ttd.data.materialise import Pairs, materialise
from ttd.data.reader import ShardReader
from ttd.data.remote import RemoteConfig, open_remote_index
from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.data.verify import verify
from ttd.data.writer import ShardWriter
from ttd.experiments.materialise import MaterialiseConfig

REPOSITORY = Path(__file__).parents[2]
N, SIZE = 11, 16


def picture(i):
    rng = np.random.default_rng(i)
    pixels = rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    if i % 2:
        return "image.jpg", simplejpeg.encode_jpeg(pixels, quality=95)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return "image.png", out.getvalue()


def sha(i):
    return hashlib.sha256(picture(i)[1]).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pairs of eleven samples and ten pictures (the last two share one), one target, and what is materialised of them."""
    root = tmp_path_factory.mktemp("study")
    shown = [min(i, N - 2) for i in range(N)]
    with ShardWriter(root / "train", kind="paired", samples_per_shard=4) as writer:
        for i, image in enumerate(shown):
            about = meta(i) | {"image_id": f"image-{image}", "image_sha256": sha(image)}
            writer.write(f"s{i}", {"eeg.npy": sample(i), "meta.json": about})
        writer.finish(facts())
    with (
        ShardWriter(root / "images", kind="image") as images,
        ShardWriter(root / "targets" / "clip", kind="target") as clip,
    ):
        for i in sorted(set(shown)):
            name, content = picture(i)
            images.write(sha(i), {name: content, "meta.json": {"image_id": f"image-{i}", "sha256": sha(i)}})
            clip.write(sha(i), {"target.npy": np.full(4, i, np.float16)})
        images.finish({"study": "Simulated"})
        clip.finish({"study": "Simulated"})
    (root / "split.json").write_text("{}")
    pairs = Pairs(root, "train", ["clip"], images=True)
    assert list(materialise(root / "pairs" / "train", pairs, samples_per_shard=3, seed=0)) == list(range(1, N + 1))
    return root


def by_key(reader, batches):
    """{key: (eeg, clip, picture)} of a pass."""
    out = {}
    for batch in batches:
        for row, i in enumerate(batch["index"].tolist()):
            out[reader.index.keys[i]] = tuple(batch[name][row] for name in ("eeg", "clip", "picture"))
    return out


def one_pass(config):
    reader = open_reader(config)
    stream = Stream(reader, config, seed=0, global_batch_size=1)
    return by_key(reader, islice(stream.batches(), N))


def test_webdataset_and_tar_read_the_same_samples(root):
    import webdataset

    paths = sorted((root / "pairs" / "train").glob("*.tar"))
    names = subprocess.run(["tar", "-tf", paths[0]], check=True, capture_output=True, text=True).stdout.split()
    assert len(names) == 3 * 4
    decoded = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("rgb8"))
    reader = ShardReader.open(root / "train")
    assert sorted(s["__key__"] for s in decoded) == sorted(reader.index.keys)
    assert [s["__key__"] for s in decoded] != reader.index.keys, "samples are dealt to shards in a drawn order"
    ours = one_pass(DataConfig(shards=root, targets=["clip"], picture_size=SIZE))
    for s in decoded:
        i = reader.index.find(s["__key__"])
        np.testing.assert_array_equal(s["eeg.npy"], sample(i))
        assert s["meta.json"] == reader.meta(i)
        _, clip, seen = ours[s["__key__"]]
        np.testing.assert_array_equal(s["clip.npy"], clip.numpy())
        if "image.png" in s:  # jpg: webdataset decodes with Pillow, which may differ by a level
            np.testing.assert_array_equal(s["image.png"], seen.permute(1, 2, 0).numpy())
        else:
            assert np.abs(s["image.jpg"].astype(int) - seen.permute(1, 2, 0).numpy()).mean() < 2


def test_a_folder_of_pairs_streams_the_same_samples_as_the_study(root):
    options = {"targets": ["clip"], "picture_size": SIZE}
    study = one_pass(DataConfig(shards=root, **options))
    pairs = one_pass(DataConfig(shards=root / "pairs", **options))
    assert study.keys() == pairs.keys()
    assert all(torch.equal(a, b) for key in study for a, b in zip(study[key], pairs[key], strict=True))


@pytest.mark.parametrize("ranges", [True, False])
def test_an_address_streams_the_same_samples_as_the_study(root, ranges):
    options = {"targets": ["clip"], "picture_size": SIZE}
    study = one_pass(DataConfig(shards=root, **options))
    with serve(root / "pairs" / "train", ranges=ranges) as server:
        remote = one_pass(DataConfig(shards=root, remote=RemoteConfig(url=server.url, streams=2), **options))
    assert study.keys() == remote.keys()
    assert all(torch.equal(a, b) for key in study for a, b in zip(study[key], remote[key], strict=True))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_read_an_address_in_one_global_order_and_resume_anywhere(root, world):
    with serve(root / "pairs" / "train") as server:
        config = DataConfig(shards=root, remote=RemoteConfig(url=server.url, streams=4))

        def positions(world, rank, steps, seen):
            stream = Stream(open_reader(config), config, seed=1, global_batch_size=4, rank=rank, world_size=world)
            return [
                pair
                for batch in islice(stream.batches(seen), steps)
                for pair in zip(batch["position"].tolist(), batch["index"].tolist(), strict=True)
            ]

        alone = dict(positions(1, 0, 11, 0))
        assert sorted(alone[p] for p in range(N)) == sorted(alone[p] for p in range(N, 2 * N)) == list(range(N))
        together = [pair for rank in range(world) for pair in positions(world, rank, 6, 20)]
        assert dict(together) == {p: i for p, i in alone.items() if 20 <= p < 44}


def test_a_rank_of_two_reads_half_of_the_bytes(tmp_path):
    with ShardWriter(tmp_path / "train", kind="materialised", samples_per_shard=64) as writer:
        for i in range(512):  # eight shards, four for each rank
            eeg = np.random.default_rng(i).standard_normal((1, 3, 2048)).astype(np.float16)
            writer.write(f"s{i}", {"eeg.npy": eeg, "meta.json": meta(i, 1)})
        writer.finish(facts() | {"n_times": 2048, "source": {"targets": {}}})
    size = sum(path.stat().st_size for path in (tmp_path / "train").glob("*.tar"))
    with serve(tmp_path / "train") as server:
        config = DataConfig(shards=tmp_path, remote=RemoteConfig(url=server.url, streams=4))
        stream = Stream(open_reader(config), config, seed=0, global_batch_size=32, rank=1, world_size=2)
        for _ in islice(map(stream.read, stream.positions(0)), 16):
            pass
        requests = [path for path in server.requested if path.endswith(".tar")]
    assert len(requests) == len(set(requests)) == 4, "four shards of eight, each asked for once"
    assert server.sent["tar"] <= 1.02 * size / 2


def test_a_server_that_fails_now_and_then_is_asked_again(root):
    with serve(root / "pairs" / "train", fail_every=3) as server:
        config = DataConfig(
            shards=root, remote=RemoteConfig(url=server.url, streams=2), targets=["clip"], picture_size=SIZE
        )
        assert len(one_pass(config)) == N
    assert server.failures > 0


def test_a_server_that_always_fails_is_given_up_on_by_name(root, monkeypatch):
    monkeypatch.setattr("ttd.data.remote.PAUSES_S", (0, 0, 0))
    with serve(root / "pairs" / "train") as server:
        config = DataConfig(shards=root, remote=RemoteConfig(url=server.url, streams=2))
        reader = open_reader(config)
        server.fail_every = 1
        with pytest.raises(UserError, match=r"\d{6}.tar: not to be had after 3 more tries: .*503"):
            next(Stream(reader, config, seed=0, global_batch_size=2).batches())
        assert server.failures >= 4


def test_damage_at_an_address_is_named(root):
    with serve(root / "pairs" / "train") as server:
        server.change = ("000001.tar", 600)
        config = DataConfig(shards=root, remote=RemoteConfig(url=server.url))
        stream = Stream(open_reader(config), config, seed=0, global_batch_size=N)
        with pytest.raises(
            UserError, match=r"000001.tar: sample '.*', member eeg.npy at byte 512: damaged: the checksum"
        ):
            next(stream.batches())


def test_a_shard_that_ends_early_at_an_address_is_damage_by_name(root, tmp_path, monkeypatch):
    monkeypatch.setattr("ttd.data.remote.PAUSES_S", (0, 0, 0))
    shutil.copytree(root / "pairs" / "train", tmp_path / "train")
    path = tmp_path / "train" / "000002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with serve(tmp_path / "train") as server:
        config = DataConfig(shards=root, remote=RemoteConfig(url=server.url))
        stream = Stream(open_reader(config), config, seed=0, global_batch_size=N)
        with pytest.raises(UserError, match=r"000002.tar: sample '.*', member eeg.npy at byte 512: truncated"):
            next(stream.batches())


def test_only_materialised_and_unlocked_shards_are_read_from_an_address(root, tmp_path):
    with serve(root / "train") as server, pytest.raises(UserError, match="kind 'paired'.*only materialised"):
        open_remote_index(RemoteConfig(url=server.url))
    with serve(tmp_path) as server, pytest.raises(UserError, match="holds no shards"):
        open_remote_index(RemoteConfig(url=server.url))


def test_s3_is_read_through_fsspec(root):
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    class Bucket(LocalFileSystem):
        protocol = "s3"

        @classmethod
        def _strip_protocol(cls, path):
            return str(root / "pairs" / "train" / path.rpartition("/")[2])

    fsspec.register_implementation("s3", Bucket, clobber=True)
    remote = RemoteConfig(url="s3://bucket/train", streams=2)
    assert len(one_pass(DataConfig(shards=root, remote=remote, targets=["clip"], picture_size=SIZE))) == N


def test_verify_knows_materialised_shards_and_the_same_work_is_not_done_twice(root):
    assert verify(root / "pairs").findings == []
    pairs = Pairs(root, "train", ["clip"], images=True)
    assert list(materialise(root / "pairs" / "train", pairs, samples_per_shard=3, seed=0)) == []


def test_a_target_that_was_not_materialised_is_named(root):
    config = DataConfig(shards=root / "pairs", targets=["vae"])
    with pytest.raises(UserError, match=r"was materialised without target 'vae' \(it has clip, eeg\)"):
        Stream(open_reader(config), config, seed=0, global_batch_size=1)


def test_a_sample_in_quarantine_is_not_materialised(root, tmp_path):
    (root / "train" / "quarantine.json").write_text(json.dumps({"samples": [{"key": "s3"}]}))
    try:
        pairs = Pairs(root, "train", [], images=False)
        list(materialise(tmp_path / "train", pairs, samples_per_shard=8, seed=0))
    finally:
        (root / "train" / "quarantine.json").unlink()
    index = ShardIndex.read(tmp_path / "train")
    assert sorted(index.keys) == sorted(f"s{i}" for i in range(N) if i != 3)
    assert index.members == ["eeg.npy", "meta.json"]


def test_the_command_reads_its_configuration_and_says_what_it_wrote(root, tmp_path, capsys):
    load_config(MaterialiseConfig, [REPOSITORY / "configs" / "shards" / "materialise_simulated.yaml"])
    module = runpy.run_path(str(REPOSITORY / "shards" / "materialise.py"))

    def command(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(module["main"], MaterialiseConfig, doc="", check=module["check"], argv=[f"shards={root}", *arguments])
        return stop.value.code, *capsys.readouterr()

    arguments = [f"output_dir={tmp_path / 'out'}", "targets=[clip]", "samples_per_shard=4"]
    code, said, noted = command(*arguments)
    assert code == 0
    assert f"{tmp_path / 'out' / 'train'}: {N} samples" in said
    assert f"train: {N} samples, about 0.00 GB" in noted
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) == 3
    assert (tmp_path / "out" / "split.json").read_text() == (root / "split.json").read_text()
    assert "there already" in command(*arguments)[1]
    code, _, refused = command(f"output_dir={root}", "targets=[vae]")
    assert code == 2
    assert "is the folder that is read" in refused
    assert "targets/vae: no such targets" in refused
