"""The original form against outputs of the original code; its checkpoint is read without running what is in it."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from ttd.encoders import EncoderConfig, build_encoder
from ttd.encoders.decoder import DecoderConfig, ReconstructionDecoder
from ttd.objectives.masked_reconstruction import masked_mse

FOLDER = Path(os.environ.get("TTD_REAL_DATA", "../shared/data")) / "ttdnet"
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is absent; set TTD_REAL_DATA"),
]

ENCODER_NAMES = {
    "conv_embed.se_block.fc": "stem.excite.gate",
    "conv_embed.projection": "stem.project",
    "conv_embed.spatial_conv": "stem.spatial",
    "conv_embed.branches": "stem.branches",
    "transformer.blocks": "blocks",
    "attention.fn.0": "norm1",
    "attention.fn.1.Q": "attention.query",
    "attention.fn.1.K": "attention.key",
    "attention.fn.1.V": "attention.value",
    "attention.fn.1.projection": "attention.out",
    "feedforward.fn.0": "norm2",
    "feedforward.fn.1.fc": "feedforward",
}
DECODER_NAMES = {
    "decoder_embed": "embed",
    "decoder_blocks": "blocks",
    "decoder_norm": "norm",
    "decoder_pred": "predict",
    "mlp": "feedforward",
    "attn.out_proj": "attention.out",
}


class Inert:
    """Stands for any class of the checkpoint."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read_tensors(path: Path) -> dict:
    """A torch zip checkpoint; unknown classes become inert."""
    archive = zipfile.ZipFile(path)
    root = next(n for n in archive.namelist() if n.endswith("data.pkl")).removesuffix("data.pkl")
    dtypes = {"FloatStorage": torch.float32, "LongStorage": torch.int64}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
            return name if module == "torch" and name.endswith("Storage") else Inert

        def persistent_load(self, pid: tuple) -> torch.Tensor:
            return torch.frombuffer(bytearray(archive.read(f"{root}data/{pid[2]}")), dtype=dtypes[pid[1]])

    with archive.open(f"{root}data.pkl") as file:
        return Unpickler(file).load()


def renamed(weights: dict, names: dict[str, str]) -> dict:
    out = {}
    for name, value in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "attn.in_proj_" in name:
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[name.replace("attn.in_proj_", f"attention.{part}.")] = chunk
        else:
            out[name] = value
    return out


@pytest.fixture(scope="module")
def reference():
    checkpoint = read_tensors(FOLDER / "checkpoint_best.pth")
    config = EncoderConfig(
        embed_dim=32,
        depth=2,
        n_heads=4,
        stem="original",
        whiten=False,
        kernels_samples=(7, 15, 31),
        pool_samples=16,
        positions="none",
        attention_scale="embed_dim",
        block_init="xavier",
    )
    encoder = build_encoder(config, n_times=128, sfreq=160, ch_names=[f"E{i}" for i in range(16)])
    encoder.load_state_dict(renamed(checkpoint["model"], ENCODER_NAMES))
    decoder = ReconstructionDecoder(
        DecoderConfig(width=32, depth=2, n_heads=4), embed_dim=32, n_tokens=8, n_chans=16, n_times=128
    )
    own = {n: t for n, t in checkpoint["full_model"].items() if n.startswith("decoder_") and n != "decoder_pos"}
    decoder.load_state_dict(renamed(own, DECODER_NAMES))
    assert torch.allclose(decoder.positions, checkpoint["full_model"]["decoder_pos"][0], atol=1e-6)
    with np.load(FOLDER / "expected.npz", allow_pickle=False) as file:
        return encoder.eval(), decoder.eval(), {name: torch.from_numpy(file[name]) for name in file.files}


@torch.no_grad()
def test_tokens_equal_the_originals(reference):
    encoder, _, expected = reference
    assert torch.allclose(encoder(expected["eeg"]), expected["tokens"], atol=1e-5)


@torch.no_grad()
def test_the_decoder_equals_the_originals(reference):
    _, decoder, expected = reference
    prediction = decoder(expected["tokens"])  # [B, C, T]; the original leaves it as [B, N, C · stretch]
    as_tokens = prediction.unflatten(2, (8, 16)).permute(0, 2, 1, 3).flatten(2)
    assert torch.allclose(as_tokens, expected["decoder_pred"], atol=1e-5)


@torch.no_grad()
def test_the_masked_error_equals_the_originals(reference):
    _, decoder, expected = reference
    mask = expected["mask"].bool()
    error = masked_mse(decoder(expected["tokens"]), expected["eeg"], mask)
    assert error.item() == pytest.approx(expected["masked_mse"].item(), abs=1e-5)
