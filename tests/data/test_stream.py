"""The order contract: every sample once per pass, whatever the number of ranks; the state is one integer."""

from itertools import islice

import numpy as np
import pytest
import torch
from small_shards import MEAN, STD, image_sha, sample, write_part, write_targets

from ttd.config import UserError
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, Stream, evaluation_batches, open_reader

N = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_part(root / "train", n=N)
    write_targets(root, "clip", range(N), lambda image: np.full(4, image, np.float16))
    write_targets(root, "vae", range(N), lambda image: np.full((8, 2, 2), image, np.float16))
    return root


def stream(root, *, seed=0, total=6, micro=None, rank=0, world=1, **options):
    config = DataConfig(shards=root, **options)
    return Stream(
        open_reader(config),
        config,
        seed=seed,
        global_batch_size=total,
        micro_batch_size=micro,
        rank=rank,
        world_size=world,
    )


def take(stream, n, samples_seen=0):
    return list(islice(stream.batches(samples_seen), n))


def scaled(eeg):
    return (eeg - np.array(MEAN)[:, None]) / np.array(STD)[:, None]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2])
def test_every_sample_is_seen_once_per_pass_and_global_batches_do_not_depend_on_ranks(root, world, micro):
    steps = 12 // (micro * world)
    alone = [batch["index"].tolist() for batch in take(stream(root, total=12), 5)]
    ranks = [take(stream(root, total=12, rank=rank, world=world, micro=micro), 5 * steps) for rank in range(world)]
    for step in range(5):
        together = [
            pair
            for batches in ranks
            for batch in batches[step * steps : (step + 1) * steps]
            for pair in zip(batch["position"].tolist(), batch["index"].tolist(), strict=True)
        ]
        assert [index for _, index in sorted(together)] == alone[step]
    seen = np.concatenate(alone)  # 60 samples: six passes over ten
    for start in range(0, 60, N):
        assert sorted(seen[start : start + N]) == list(range(N))


def test_passes_differ_and_seeds_differ(root):
    batches = take(stream(root, total=N), 3)
    orders = [tuple(batch["index"].tolist()) for batch in (*batches, *take(stream(root, total=N, seed=1), 1))]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("step", [0, 1, 2, 7])
def test_a_stream_resumed_at_any_step_continues_bit_for_bit(root, step):
    options = {"repetitions": "random", "time_jitter": 3, "noise": 0.1, "electrode_dropout": 0.3, "targets": ["clip"]}
    whole = take(stream(root, **options), 12)
    resumed = take(stream(root, **options), 12 - step, samples_seen=step * 6)
    for a, b in zip(whole[step:], resumed, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_resumed_on_more_ranks_sees_the_rest_of_the_pass(root):
    batches = take(stream(root, total=2), 2)
    for rank in range(3):
        batches += take(stream(root, total=6, rank=rank, world=3), 1, samples_seen=4)
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(N))


def test_batches_hold_what_the_contract_says(root):
    batch = take(stream(root, targets=["clip", "vae"]), 1)[0]
    index = batch["index"]
    assert batch["position"].tolist() == list(range(6))
    for row, i in enumerate(index.tolist()):
        np.testing.assert_allclose(batch["eeg"][row], scaled(sample(i).astype(np.float32).mean(0)), rtol=1e-6)
        assert batch["subject"][row] == i % 2
        assert batch["clip"][row].tolist() == [i] * 4
    reader = ShardReader.open(root / "train")
    assert batch["image"].tolist() == [sorted(map(image_sha, range(N))).index(image_sha(i)) for i in index.tolist()]
    assert batch["vae"].shape == (6, 8, 2, 2)
    assert {name: value.dtype for name, value in batch.items()} == {
        "eeg": torch.float32,
        "position": torch.int64,
        "index": torch.int64,
        "subject": torch.int64,
        "image": torch.int64,
        "clip": torch.float32,
        "vae": torch.float32,
    }
    assert len(reader) == N


def test_all_repetitions_are_samples_of_their_own(root):
    whole = stream(root, total=2 * N, repetitions="all")
    batch = take(whole, 1)[0]
    assert whole.n == 2 * N
    assert sorted(batch["index"].tolist()) == sorted([*range(N), *range(N)])
    first_point = (batch["eeg"][:, 0, 0] * STD[0] + MEAN[0]).round().int()
    seen = set(zip(batch["index"].tolist(), first_point.tolist(), strict=True))
    assert seen == {(i, i + 10 * r) for i in range(N) for r in range(2)}


def test_a_random_repetition_belongs_to_the_position_not_to_the_history(root):
    batches = take(stream(root, repetitions="random"), 20)
    chosen = []
    for batch in batches:
        for i, eeg in zip(batch["index"].tolist(), batch["eeg"], strict=True):
            chosen.append(round((float(eeg[0, 0]) * STD[0] + MEAN[0] - i) / 10))
    assert 0.35 < np.mean(chosen) < 0.65
    late = take(stream(root, repetitions="random"), 1, samples_seen=60)[0]
    assert torch.equal(late["eeg"], batches[10]["eeg"])


def test_the_mean_of_k_random_repetitions_takes_different_ones(tmp_path):
    write_part(tmp_path / "train", n=2, n_repetitions=4)
    batches = take(stream(tmp_path, total=2, repetitions="random_mean_k", k=2), 60)
    values = {
        round((float(eeg[0, 0]) * STD[0] + MEAN[0] - i) / 10, 3)
        for batch in batches
        for i, eeg in zip(batch["index"].tolist(), batch["eeg"], strict=True)
    }
    assert values == {0.5, 1.0, 1.5, 2.0, 2.5}  # sums of two different ones of 0, 1, 2, 3


def test_time_jitter_shifts_and_repeats_the_edge(root):
    limit, shifts = 3, set()
    for batch in take(stream(root, time_jitter=limit), 20):
        for i, eeg in zip(batch["index"].tolist(), batch["eeg"], strict=True):
            plain = scaled(sample(i).astype(np.float32).mean(0))
            fits = [
                s
                for s in range(-limit, limit + 1)
                if np.allclose(eeg, plain[:, np.clip(np.arange(20) + s, 0, 19)], rtol=1e-5)
            ]
            assert len(fits) == 1
            shifts.update(fits)
    assert shifts == set(range(-limit, limit + 1))


def test_dropped_electrodes_are_zero_and_as_many_as_asked(root):
    eeg = torch.cat([batch["eeg"] for batch in take(stream(root, electrode_dropout=0.25), 100)])
    assert (eeg == 0).all(-1).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_evaluation_goes_in_order_and_averages_the_first_repetitions(tmp_path):
    write_part(tmp_path / "train", n=5, n_repetitions=4)
    config = DataConfig(shards=tmp_path, time_jitter=3, repetitions="random")
    reader = open_reader(config)
    for n in (1, 3, None):
        batches = list(evaluation_batches(reader, config, 2, n_repetitions=n))
        assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
        for batch in batches:
            for i, eeg in zip(batch["index"].tolist(), batch["eeg"], strict=True):
                expected = scaled(sample(i, 4)[:n].astype(np.float32).mean(0))
                np.testing.assert_allclose(eeg, expected, rtol=1e-5, atol=1e-6)
    some = next(iter(evaluation_batches(reader, config, 8, indices=[4, 0])))
    assert some["index"].tolist() == [4, 0]


def test_the_fingerprint_follows_everything_the_batches_depend_on(root, tmp_path):
    base = stream(root).fingerprint
    assert stream(root, micro=2, rank=1, world=3).fingerprint == base
    write_part(tmp_path / "train", n=N)
    assert stream(tmp_path).fingerprint == base, "a copy elsewhere is the same data"
    others = [stream(root, seed=1), stream(root, total=8), stream(root, time_jitter=1), stream(root, targets=["clip"])]
    (tmp_path / "train" / "quarantine.json").write_text('{"samples": [{"key": "sub-0_img-0000"}]}')
    others.append(stream(tmp_path))
    assert len({base, *(other.fingerprint for other in others)}) == 1 + len(others)
    assert others[-1].n == N - 1


def test_a_sample_in_quarantine_is_left_out(tmp_path):
    write_part(tmp_path / "train", n=4)
    (tmp_path / "train" / "quarantine.json").write_text('{"samples": [{"key": "sub-1_img-0001"}]}')
    reader = ShardReader.open(tmp_path / "train")
    assert reader.index.keys == ["sub-0_img-0000", "sub-0_img-0002", "sub-1_img-0003"]
    assert [float(reader.eeg(i)[0, 0, 0]) for i in range(3)] == [0.0, 2.0, 3.0]
    assert reader.index.codes("subject").tolist() == [0, 0, 1]


def test_a_batch_that_cannot_be_cut_is_refused(root):
    with pytest.raises(ValueError, match="must be a multiple of micro_batch_size=4 times world_size=1"):
        stream(root, micro=4)


def test_a_jitter_longer_than_the_epoch_is_refused(root):
    with pytest.raises(UserError, match="time_jitter=20 must be below the epoch's 20 points"):
        stream(root, time_jitter=20)


def test_targets_that_are_missing_are_named(root, tmp_path):
    with pytest.raises(UserError, match=r"targets/other: no such targets; make them with shards/precompute_targets.py"):
        stream(root, targets=["other"])
    write_part(tmp_path / "train", n=N)
    write_targets(tmp_path, "clip", range(3), lambda image: np.zeros(4, np.float16))
    with pytest.raises(UserError, match="7 of 10 images have no target"):
        stream(tmp_path, targets=["clip"])


def test_damage_met_while_streaming_reaches_the_consumer_by_name(tmp_path):
    write_part(tmp_path / "train", n=4)
    path = tmp_path / "train" / "000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"000001.tar: sample 'sub-0_img-0002', member eeg.npy at byte 512: damaged"):
        take(stream(tmp_path, total=4), 1)
