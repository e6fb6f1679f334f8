"""A pickle in any place where training, generation or evaluation could meet one: never run, and refused with its name.

Foreign containers of EEG have their own tests (tests/untrusted); published weights theirs (test_weights.py).
"""

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ttd.bridge.conditioner import load_bridge
from ttd.config import UserError, load_config
from ttd.data.members import decode
from ttd.data.stream import DataConfig, open_reader
from ttd.data.writer import ShardWriter
from ttd.diffusion.base import BaseConfig, load_base
from ttd.diffusion.lora import load_lora
from ttd.encoders import build_encoder, load_encoder, save_encoder
from ttd.encoders.nice import NiceConfig
from ttd.engine.checkpoint import newest_checkpoint
from ttd.metrics.networks import read_weights

MEMBERS = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".eeg.pth", ".pkl.gz", ".bin", ".ten", ".cbor", ".npz")


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path):
    """What a canary that ran leaves behind; its pickle is alive, and at the end of the test nothing ran."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Canary(path)))
    assert path.exists(), "the canary is dead"
    path.unlink()
    yield path
    assert not path.exists()


def write_shard(folder: Path, **more: bytes) -> None:
    about = {"study": "S", "subject": "01", "cap": "cap", "sessions": ["1"], "runs": ["1"], "onsets": [0.0]}
    with ShardWriter(folder / "train", kind="window") as writer:
        writer.write("a", {"eeg.npy": np.ones((1, 2, 8), np.float16), "meta.json": about, **more})


@pytest.mark.parametrize("suffix", MEMBERS)
def test_a_member_that_other_loaders_unpickle_by_its_name_stays_bytes(tmp_path, mark, suffix):
    """WebDataset 1.0.2 runs six of these (measured): .pkl, .pickle, .pyd, .pth, .eeg.pth, .pkl.gz."""
    content = pickle.dumps(Canary(mark))
    if suffix.endswith("pth") or suffix == ".pt":
        stream = io.BytesIO()
        torch.save({"eeg": Canary(mark)}, stream)
        content = stream.getvalue()
    if suffix.endswith(".gz"):
        content = gzip.compress(content)
    assert decode(f"payload{suffix}", memoryview(content)) == content
    with pytest.raises(UserError, match=f"payload{suffix}"):  # nor does our own writer take it
        write_shard(tmp_path, **{f"payload{suffix}": content})


def test_an_array_of_objects_in_a_shard_is_refused(tmp_path, mark):
    stream = io.BytesIO()
    np.save(stream, np.array([Canary(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="only pickle could read; refused"):
        decode("eeg.npy", memoryview(stream.getvalue()))


FOREIGN = (
    "optimizer.bin", "pytorch_model.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "scheduler.bin", ".metadata",
    "mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "__0_0.distcp", "latest",
)  # fmt: skip
"""States of accelerate, DeepSpeed and torch.distributed.checkpoint."""


def test_states_of_other_programs_in_a_run_folder_are_passed_over_and_named(tmp_path, mark, caplog):
    folder = tmp_path / "run" / "step-0000002"
    folder.mkdir(parents=True)
    for name in FOREIGN:
        (folder / name).write_bytes(pickle.dumps(Canary(mark)))
    with pytest.raises(UserError, match="no state is intact"):
        newest_checkpoint(tmp_path / "run")
    assert "step-0000002: damaged" in caplog.text
    for name in ("state.json", "weights.safetensors", "moments.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Canary(mark)))
    with pytest.raises(UserError, match="no state is intact"):
        newest_checkpoint(tmp_path / "run")


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    made = build_encoder(NiceConfig(n_filters=2, embed_dim=4), n_times=100, sfreq=100.0, ch_names=["Fz", "Cz"])
    save_encoder(tmp_path / "encoder", made)
    return tmp_path / "encoder"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pickle_under_the_name_of_an_exported_file_is_refused(encoder, mark, name):
    (encoder / name).write_bytes(pickle.dumps(Canary(mark)))
    with pytest.raises(UserError, match=f"{name}: damaged"):
        load_encoder(encoder)


def test_pickled_adapters_are_not_read(base_folder, tmp_path, mark):
    unet = load_base(BaseConfig(path=str(base_folder))).unet
    folder = tmp_path / "unet_lora"
    folder.mkdir()
    torch.save({"unet.a": Canary(mark)}, folder / "pytorch_lora_weights.bin")
    with pytest.raises(UserError, match=r"no pytorch_lora_weights\.safetensors"):
        load_lora(unet, folder)
    shutil.move(folder / "pytorch_lora_weights.bin", folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match="unet_lora"):
        load_lora(unet, folder)


def test_pickled_weights_of_a_published_network_are_read_as_data_alone(tmp_path, mark):
    torch.save({"a": torch.ones(2), "b": Canary(mark)}, tmp_path / "network.pth")
    with pytest.raises(UserError, match=r"network\.pth: refused, nothing was run"):
        read_weights(tmp_path / "network.pth")
    (tmp_path / "network.pth").write_bytes(pickle.dumps(Canary(mark)))
    with pytest.raises(UserError, match=r"network\.pth: refused, nothing was run"):
        read_weights(tmp_path / "network.pth")


# ------------------------------------------------------------------------------------------ addresses, bombs, nesting


@pytest.mark.parametrize(
    "spec", ["pipe:touch {mark}", "{{000000..9999999}}", "$(touch {mark})", "-", "-o{mark}", "http://x/a", "~"]
)
def test_a_folder_of_shards_is_a_folder_and_nothing_else(tmp_path, mark, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    text, started, watching = spec.format(mark=mark), [], [True]
    watched = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "compile", "exec")
    sys.addaudithook(lambda event, args: started.append((event, args)) if watching[0] and event in watched else None)
    try:
        with pytest.raises(UserError, match="shards|index"):
            open_reader(load_config(DataConfig, [], [f"shards={json.dumps(text)}"]))
    finally:
        watching[0] = False  # a hook stays for the life of the process
    assert [event for event, _ in started if event not in ("compile", "exec")] == []


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("claimed", [1 << 60, 1 << 40, (1 << 63) - 1, 99_999_999])
def test_safetensors_that_announce_a_header_of_exabytes_are_refused_before_anything_is_allocated(encoder, claimed):
    path = encoder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + path.read_bytes()[8:])
    before = peak_mb()
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_encoder(encoder)
    assert peak_mb() - before < 64


def test_a_tensor_that_announces_more_than_the_file_holds_is_refused(encoder):
    path = encoder / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    before = peak_mb()
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_encoder(encoder)
    assert peak_mb() - before < 64


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_nested_a_hundred_thousand_deep_is_one_sentence(encoder, opening, tmp_path):
    (encoder / "config.json").write_text(opening * 100_000)
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        load_encoder(encoder)
    (tmp_path / "bridge").mkdir()
    (tmp_path / "bridge" / "config.json").write_text(opening * 100_000)
    save_file({"a": torch.ones(1)}, tmp_path / "bridge" / "model.safetensors")
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        load_bridge(tmp_path / "bridge")


def test_a_compressed_bomb_in_a_shard_is_never_unpacked():
    bomb = gzip.compress(bytes(200 << 20), 1)
    before = peak_mb()
    assert decode("text.txt.gz", memoryview(bomb)) == bomb
    assert peak_mb() - before < 64
