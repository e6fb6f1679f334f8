"""DreamDiffusion's pretraining checkpoint, as its code lays it out, imported by the entry: outputs are those of the original's
arithmetic, written out here once more by its tensors' names; a payload in it is not run."""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ttd.config import UserError
from ttd.encoders import load_encoder
from ttd.encoders.decoder import DecoderConfig, MaskTokenDecoder
from ttd.experiments.import_original import ImportOriginalConfig
from ttd.import_original import main

E, W, C, P, N, HEADS, DECODER_HEADS = 32, 16, 6, 4, 10, 4, 2
NAMES = [f"E{i + 1}" for i in range(C)]


def positions(width):
    """A zero for the class token, then sines and cosines in halves [1, 1 + N, width]."""
    omega = 1 / 10000 ** (np.arange(width // 2) / (width / 2))
    angle = np.outer(np.arange(N), omega)
    table = np.concatenate([np.zeros((1, width)), np.concatenate([np.sin(angle), np.cos(angle)], 1)])
    return torch.from_numpy(table).float()[None]


def model_weights(mlp=19):
    """Random weights under the names of ``MAEforEEG``; a GELU layer whose width is no multiple."""
    torch.manual_seed(0)
    out = {"cls_token": torch.randn(1, 1, E), "pos_embed": positions(E), "mask_token": torch.randn(1, 1, W),
           "decoder_pos_embed": positions(W), "patch_embed.proj.weight": torch.randn(E, C, P) / 5,
           "patch_embed.proj.bias": torch.randn(E)}  # fmt: skip

    def linear(name, into, of):
        out[f"{name}.weight"], out[f"{name}.bias"] = torch.randn(into, of) / of**0.5, torch.randn(into)

    def norm(name, width):
        out[f"{name}.weight"], out[f"{name}.bias"] = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)

    for prefix, width, depth in (("blocks", E, 3), ("decoder_blocks", W, 2)):
        for i in range(depth):
            norm(f"{prefix}.{i}.norm1", width), norm(f"{prefix}.{i}.norm2", width)
            linear(f"{prefix}.{i}.attn.qkv", 3 * width, width), linear(f"{prefix}.{i}.attn.proj", width, width)
            linear(f"{prefix}.{i}.mlp.fc1", mlp, width), linear(f"{prefix}.{i}.mlp.fc2", width, mlp)
    norm("norm", E), norm("decoder_norm", W)
    linear("decoder_embed", W, E), linear("decoder_pred", C * P, W)
    return out


def blocks(w, x, prefix, n_heads):
    i = 0
    while f"{prefix}.{i}.norm1.weight" in w:
        at = {n.removeprefix(f"{prefix}.{i}."): t for n, t in w.items() if n.startswith(f"{prefix}.{i}.")}
        h = F.layer_norm(x, x.shape[-1:], at["norm1.weight"], at["norm1.bias"])
        qkv = F.linear(h, at["attn.qkv.weight"], at["attn.qkv.bias"])
        q, k, v = qkv.reshape(*x.shape[:2], 3, n_heads, -1).permute(2, 0, 3, 1, 4)
        h = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + F.linear(h.transpose(1, 2).flatten(2), at["attn.proj.weight"], at["attn.proj.bias"])
        h = F.layer_norm(x, x.shape[-1:], at["norm2.weight"], at["norm2.bias"])
        h = F.gelu(F.linear(h, at["mlp.fc1.weight"], at["mlp.fc1.bias"]))
        x, i = x + F.linear(h, at["mlp.fc2.weight"], at["mlp.fc2.bias"]), i + 1
    return x


def patches(w, eeg):
    return F.conv1d(eeg, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=P).mT + w["pos_embed"][:, 1:]


def tokens(w, eeg):
    """What ``eeg_encoder`` gives: every patch, no class token."""
    return F.layer_norm(blocks(w, patches(w, eeg), "blocks", HEADS), (E,), w["norm.weight"], w["norm.bias"])


def reconstruction(w, eeg, kept):
    """What ``MAEforEEG`` predicts [B, N, P · C] when the patches ``kept`` [B, V] stay, samples before channels in a patch."""
    x = torch.stack([p[k] for p, k in zip(patches(w, eeg), kept, strict=True)])
    x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(len(eeg), -1, -1), x], 1)
    x = F.layer_norm(blocks(w, x, "blocks", HEADS), (E,), w["norm.weight"], w["norm.bias"])
    x = F.linear(x, w["decoder_embed.weight"], w["decoder_embed.bias"])
    full = w["mask_token"].repeat(len(eeg), N, 1)
    for row, places, values in zip(full, kept, x[:, 1:], strict=True):
        row[places] = values
    x = torch.cat([x[:, :1], full], 1) + w["decoder_pos_embed"]
    x = blocks(w, x, "decoder_blocks", DECODER_HEADS)
    x = F.layer_norm(x, (W,), w["decoder_norm.weight"], w["decoder_norm.bias"])
    return F.linear(x, w["decoder_pred.weight"], w["decoder_pred.bias"])[:, 1:]


class Payload:
    """A pickle of it runs a command when read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def write(path: Path, model, *, monkeypatch=None, **more) -> Path:
    """As the original's ``save_model``: an object of a class in its module ``config`` lies beside the weights."""
    module = types.ModuleType("config")
    exec("class Config_MBM_EEG:\n    pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "config", module)
    told = module.Config_MBM_EEG()
    told.__dict__ |= {"num_heads": HEADS, "decoder_num_heads": DECODER_HEADS, "mask_ratio": 0.1, "patch_size": P}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    content = {"model": model, "optimizer": optimizer, "epoch": 499, "scaler": {"scale": 65536.0}, "config": told}
    torch.save(content | more, path)
    monkeypatch.delitem(sys.modules, "config")
    return path


def config(folder: Path, checkpoint: Path, **more) -> ImportOriginalConfig:
    given = {"ch_names": NAMES, "sfreq": 1000, **more}
    return ImportOriginalConfig(output_dir=folder, checkpoint=checkpoint, **given)


@torch.no_grad()
def test_tokens_and_reconstruction_equal_the_originals(tmp_path, monkeypatch):
    weights = model_weights()
    path = write(tmp_path / "checkpoint.pth", weights, monkeypatch=monkeypatch)
    main(config(tmp_path / "run", path))
    export = tmp_path / "run" / "export"
    encoder = load_encoder(export / "encoder").eval()
    assert (encoder.n_times, encoder.n_tokens, encoder.ch_names) == (N * P, N, NAMES)
    eeg = torch.randn(3, C, N * P)
    assert torch.allclose(encoder(eeg), tokens(weights, eeg), atol=1e-5)

    settings = DecoderConfig.model_validate(json.loads((export / "decoder" / "config.json").read_text()))
    decoder = MaskTokenDecoder(settings, embed_dim=E, n_tokens=N, n_chans=C, n_times=N * P, patch_samples=P).eval()
    decoder.load_state_dict(load_file(export / "decoder" / "model.safetensors"))
    kept = torch.stack([torch.randperm(N)[:6] for _ in range(3)])
    predicted = decoder(encoder.encode_visible(eeg, kept), kept)  # [B, C, T]
    as_patches = predicted.unflatten(2, (N, P)).permute(0, 2, 3, 1).flatten(2)
    assert torch.allclose(as_patches, reconstruction(weights, eeg, kept), atol=1e-4)
    assert "of DreamDiffusion" in (export / "README.md").read_text()


def test_every_number_of_the_model_but_the_fixed_positions_is_taken_over(tmp_path, monkeypatch):
    weights = model_weights()
    main(config(tmp_path / "run", write(tmp_path / "checkpoint.pth", weights, monkeypatch=monkeypatch)))
    found = [load_file(tmp_path / "run" / "export" / part / "model.safetensors") for part in ("encoder", "decoder")]
    fixed = weights["pos_embed"].numel() + weights["decoder_pos_embed"].numel()
    n = sum(t.numel() for part in found for t in part.values())
    assert n == sum(t.numel() for t in weights.values()) - fixed


def test_the_parts_of_the_loss_on_pictures_are_left_out(tmp_path, monkeypatch):
    more = model_weights() | {
        "nature_img_mask_token": torch.zeros(1, 1, W),
        "nature_img_decoder_embed.weight": torch.zeros(W, E),
    }
    main(config(tmp_path / "run", write(tmp_path / "checkpoint.pth", more, monkeypatch=monkeypatch)))
    assert (tmp_path / "run" / "export" / "encoder" / "model.safetensors").is_file()


def test_a_payload_in_the_file_is_not_run(tmp_path, monkeypatch):
    marker, weights = tmp_path / "was_run", model_weights()
    path = write(tmp_path / "checkpoint.pth", weights, monkeypatch=monkeypatch, config=Payload(marker))
    with pytest.raises(UserError, match="n_heads: the checkpoint does not tell the encoder's number of heads"):
        main(config(tmp_path / "a", path))
    with pytest.raises(UserError, match="decoder_heads: the checkpoint does not tell the decoder's number of heads"):
        main(config(tmp_path / "b", path, n_heads=HEADS))
    main(config(tmp_path / "c", path, n_heads=HEADS, decoder_heads=DECODER_HEADS))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload is a live one"


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        ({}, {"ch_names": NAMES[:-1]}, "5 electrodes are named, the checkpoint was trained on 6"),
        ({}, {"n_heads": 5}, "n_heads=5: the checkpoint's width is 32"),
        ({}, {"decoder_heads": 3}, "decoder_heads=3: the decoder's width is 16"),
        ({}, {"n_times": 512}, "n_times=512: the checkpoint was trained on epochs of 40 samples"),
        ({"pos_embed": torch.ones(1, N + 1, E)}, {}, "pos_embed does not hold the fixed positions"),
        ({"blocks.1.norm1.weight": None}, {}, "blocks.1.norm1.weight: missing"),
        ({"blocks.1.odd": torch.ones(2)}, {}, "blocks.1.odd: unknown"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, monkeypatch, change, more, words):
    weights = {n: t for n, t in (model_weights() | change).items() if t is not None}
    path = write(tmp_path / "checkpoint.pth", weights, monkeypatch=monkeypatch)
    with pytest.raises(UserError, match=words):
        main(config(tmp_path / "run", path, **more))
    assert not (tmp_path / "run" / "export").exists()
