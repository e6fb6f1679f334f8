"""Samples of several caps in one batch: canonical channels, zeros where an electrode is absent, and who is present."""

import json

import numpy as np
import pytest
import torch

from ttd.config import UserError
from ttd.data.members import DamageError
from ttd.data.quarantine import on_damage
from ttd.data.stream import DataConfig, Stream, evaluation_batches, open_index, open_reader
from ttd.data.writer import ShardWriter

CAPS = {"three": ["Fz", "Cz", "Pz"], "two": ["Pz", "Oz"]}
UNION = ["Fz", "Cz", "Pz", "Oz"]
T = 16


def eeg_of(cap: str, i: int) -> np.ndarray:
    """[1, C, T]; channel c of sample i is i + 10 c, exact in float16."""
    return np.broadcast_to(i + 10.0 * np.arange(len(CAPS[cap]))[:, None], (1, len(CAPS[cap]), T)).astype(np.float16)


def write(folder, caps, *, study="Simulated", part="train", n=3, sfreq=100.0):
    """``n`` windows per cap; the standard deviations of cap k are k + 2."""
    with ShardWriter(folder / part, kind="window", samples_per_shard=2) as writer:
        for cap in caps:
            for i in range(n):
                meta = {"study": study, "subject": "01", "cap": cap, "sessions": ["1"], "runs": [part], "onsets": [0.0]}
                writer.write(f"{cap}-{i}", {"eeg.npy": eeg_of(cap, i), "meta.json": meta})
        statistics = {
            cap: {"mean": [0.0] * len(CAPS[cap]), "std": [2.0 + k] * len(CAPS[cap])} for k, cap in enumerate(caps)
        }
        facts = {"study": study, "part": part, "sfreq": sfreq, "tmin": 0.0, "n_times": T}
        writer.finish({**facts, "caps": {cap: CAPS[cap] for cap in caps}, "statistics": statistics})


@pytest.fixture
def one_folder(tmp_path):
    write(tmp_path / "one", ["three", "two"])
    return tmp_path / "one"


@pytest.fixture
def two_folders(tmp_path):
    write(tmp_path / "a", ["three"], study="A")
    write(tmp_path / "b", ["two"], study="B")
    return tmp_path / "a", tmp_path / "b"


def everything(config):
    batches = list(evaluation_batches(open_reader(config), config, 4))
    return {name: torch.cat([batch[name] for batch in batches]) for name in ("eeg", "present", "index")}


def check_values(batch):
    """Three samples of the first cap, then three of the second, each scaled by its own statistics where it is given."""
    for i in range(3):
        assert batch["eeg"][i, :, 0].tolist() == [i / 2, (i + 10) / 2, (i + 20) / 2, 0]
        assert batch["present"][i].tolist() == [True, True, True, False]
        assert batch["eeg"][3 + i, [0, 1], 0].tolist() == [0, 0]
        assert batch["present"][3 + i].tolist() == [False, False, True, True]


def test_several_caps_of_one_index_share_the_channels_of_their_union(one_folder):
    config = DataConfig(shards=one_folder, montage="union")
    assert open_index(config).ch_names == UNION
    batch = everything(config)
    check_values(batch)
    assert torch.allclose(batch["eeg"][3:, 2:, 0], torch.tensor([[0, 10], [1, 11], [2, 12]]) / 3)


def test_several_studies_are_seen_in_one_run_each_scaled_by_its_own_statistics(two_folders):
    config = DataConfig(shards=two_folders[0], also=[two_folders[1]], montage="union")
    reader = open_reader(config)
    assert reader.index.facts.study == "A + B"
    assert reader.index.facts.caps == {"0-three": CAPS["three"], "1-two": CAPS["two"]}
    assert [reader.meta(i)["study"] for i in range(6)] == ["A"] * 3 + ["B"] * 3
    assert reader.eeg(4).shape == (1, 2, T)
    batch = everything(config)
    check_values(batch)
    assert torch.allclose(batch["eeg"][3:, 2:, 0], torch.tensor([[0, 10], [1, 11], [2, 12]]) / 2)


def test_named_electrodes_alone_and_in_their_order(one_folder):
    batch = everything(DataConfig(shards=one_folder, montage=["Oz", "Pz"]))
    assert batch["present"].tolist() == [[False, True]] * 3 + [[True, True]] * 3
    assert batch["eeg"][1, :, 0].tolist() == [0, 10.5]


def test_training_batches_mix_caps_and_noise_does_not_fill_absent_electrodes(two_folders):
    config = DataConfig(shards=two_folders[0], also=[two_folders[1]], montage="union", noise=1.0)
    stream = Stream(open_reader(config), config, seed=0, global_batch_size=6)
    batch = next(stream.batches())
    assert sorted(batch["index"].tolist()) == list(range(6))
    assert batch["present"].sum(1).sort().values.tolist() == [2, 2, 2, 3, 3, 3]
    absent = ~batch["present"]
    assert bool((batch["eeg"][absent] == 0).all())
    assert bool((batch["eeg"][~absent].std(1) > 0.5).all())


def test_the_fingerprint_follows_the_montage_and_every_study(two_folders):
    def fingerprint(*also, montage="union"):
        config = DataConfig(shards=two_folders[0], also=list(also), montage=montage)
        return Stream(open_reader(config), config, seed=0, global_batch_size=2).fingerprint

    prints = [fingerprint(), fingerprint(montage=None), fingerprint(two_folders[1])]
    prints.append(fingerprint(two_folders[1], montage=["Pz"]))
    assert len(set(prints)) == 4


def test_a_held_out_part_that_only_one_study_has_keeps_the_montage_of_training(two_folders):
    write(two_folders[1], ["two"], study="B", part="validation")
    config = DataConfig(shards=two_folders[0], also=[two_folders[1]], montage="union")
    reader = open_reader(config, part="validation")
    assert (reader.index.ch_names, len(reader)) == (UNION, 3)
    assert list(reader.index.facts.caps) == ["1-two"]  # numbered as in training
    batch = next(evaluation_batches(reader, config, 3))
    assert batch["present"].tolist() == [[False, False, True, True]] * 3
    with pytest.raises(UserError, match="none of .* holds a part test"):
        open_reader(config, part="test")


def test_damage_is_reported_and_put_in_quarantine_where_it_lies(two_folders):
    a, b = two_folders
    shard = b / "train" / "000000.tar"
    content = bytearray(shard.read_bytes())
    place = open_index(DataConfig(shards=b)).places(np.array([0]), "eeg.npy")[0]
    content[place[3] + place[4] - 1] ^= 1
    shard.write_bytes(content)
    config = DataConfig(shards=a, also=[b], montage="union")
    with pytest.raises(DamageError, match="sample 'two-0'"), on_damage("quarantine"):
        everything(config)
    assert json.loads((b / "train" / "quarantine.json").read_text())["samples"][0]["key"] == "two-0"
    assert len(open_reader(config)) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"montage": None}, "holds caps \\['three', 'two'\\]; one is needed.*data.montage=union"),
        ({"montage": ["Pz", "Pz"]}, "Pz occurs twice"),
        ({"montage": ["Fz"]}, "cap two has no electrode of data.montage"),
    ],
)
def test_a_montage_that_cannot_be_is_refused(one_folder, options, words):
    config = DataConfig(shards=one_folder, **options)
    with pytest.raises(UserError, match=words):
        list(evaluation_batches(open_reader(config), config, 2))


def test_studies_that_do_not_fit_together_are_named(two_folders, tmp_path):
    write(tmp_path / "c", ["two"], sfreq=128.0)
    with pytest.raises(UserError, match=r"c/train: sfreq is 128.0, of .*a/train it is 100.0"):
        open_reader(DataConfig(shards=two_folders[0], also=[tmp_path / "c"], montage="union"))
    with pytest.raises(UserError, match="several studies need common channels; set data.montage=union"):
        open_reader(DataConfig(shards=two_folders[0], also=[two_folders[1]]))
