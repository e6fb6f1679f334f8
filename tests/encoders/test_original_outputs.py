"""TTD-net's checkpoints, imported by the entry, against outputs of the original code; and copies that carry a payload."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ttd.bridge.conditioner import load_bridge
from ttd.config import UserError
from ttd.diffusion.lora import LoRAConfig, add_lora, load_lora
from ttd.encoders import load_encoder
from ttd.encoders.decoder import DecoderConfig, ReconstructionDecoder
from ttd.experiments.import_original import ImportOriginalConfig
from ttd.import_original import check, main
from ttd.objectives.contrastive import load_aligned, symmetric_info_nce
from ttd.objectives.masked_reconstruction import masked_mse
from ttd.untrusted import read_torch

FOLDER = Path(os.environ.get("TTD_REAL_DATA", "../shared/data")) / "ttdnet"
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is absent; set TTD_REAL_DATA"),
]
NAMES = [f"E{i}" for i in range(16)]


def config(folder: Path, checkpoint: str | Path, **more) -> ImportOriginalConfig:
    given = {"ch_names": NAMES, "sfreq": 160, "decoder_heads": 4, **more}
    return ImportOriginalConfig(output_dir=folder, checkpoint=FOLDER / checkpoint, **given)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "expected.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    main(config(folder, "checkpoint_best.pth"))
    return folder / "export"


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    main(config(folder, "latest.pth", n_times=128, n_heads=4))
    return folder / "export"


def decoder_of(export: Path) -> ReconstructionDecoder:
    settings = DecoderConfig.model_validate(json.loads((export / "decoder" / "config.json").read_text()))
    decoder = ReconstructionDecoder(settings, embed_dim=32, n_tokens=8, n_chans=16, n_times=128)
    decoder.load_state_dict(load_file(export / "decoder" / "model.safetensors"))
    return decoder.eval()


@torch.no_grad()
def test_tokens_equal_the_originals(pretrained, finetuned, expected):
    for export in (pretrained, finetuned):
        encoder = load_encoder(export / "encoder").eval()
        assert (encoder.n_times, encoder.sfreq, encoder.ch_names) == (128, 160, NAMES)
        assert torch.allclose(encoder(expected["eeg"]), expected["tokens"], atol=1e-5)


@torch.no_grad()
def test_the_decoder_equals_the_originals(pretrained, expected):
    prediction = decoder_of(pretrained)(expected["tokens"])  # [B, C, T]; the original leaves it as [B, N, C · stretch]
    as_tokens = prediction.unflatten(2, (8, 16)).permute(0, 2, 1, 3).flatten(2)
    assert torch.allclose(as_tokens, expected["decoder_pred"], atol=1e-5)


@torch.no_grad()
def test_the_decoders_fixed_positions_are_those_of_the_checkpoint(pretrained):
    positions = read_torch(FOLDER / "checkpoint_best.pth", unknown="inert")["full_model"]["decoder_pos"][0]
    assert np.allclose(decoder_of(pretrained).positions.numpy(), positions, atol=1e-6)


@torch.no_grad()
def test_the_masked_error_equals_the_originals(pretrained, expected):
    error = masked_mse(decoder_of(pretrained)(expected["tokens"]), expected["eeg"], expected["mask"].bool())
    assert error.item() == pytest.approx(expected["masked_mse"].item(), abs=1e-5)


@torch.no_grad()
def test_context_and_pooled_condition_equal_the_originals(finetuned, expected):
    aligned, bridge = load_aligned(finetuned), load_bridge(finetuned / "bridge").eval()
    tokens = aligned.encoder(expected["eeg"])
    context, pooled = bridge(tokens, aligned.head(tokens))
    assert torch.allclose(context, expected["condition"], atol=1e-5)
    assert torch.allclose(pooled, expected["pooled"], atol=1e-5)


@torch.no_grad()
def test_the_clip_loss_equals_the_originals(finetuned, expected):
    aligned = load_aligned(finetuned)
    own, target = aligned(expected["eeg"]), aligned.prepare_targets(expected["image_embeds"])
    assert torch.allclose(target, F.normalize(expected["image_embeds"], dim=1), atol=1e-6)
    loss, _ = symmetric_info_nce(own, target, torch.arange(3), aligned.head.scale())
    assert loss.item() == pytest.approx(expected["clip_loss"].item(), abs=1e-5)


class Payload:
    """In place of the configuration object: a pickle of it runs a command when read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def copy_with(path: Path, **replaced) -> Path:
    """A copy of the pretraining checkpoint, as ``torch.save`` writes it, with other objects under some keys."""

    def to_tensors(content):
        if isinstance(content, np.ndarray):
            return torch.from_numpy(np.array(content))
        return {n: to_tensors(v) for n, v in content.items()} if isinstance(content, dict) else content

    content = read_torch(FOLDER / "checkpoint_best.pth", unknown="inert")
    kept = {name: to_tensors(content[name]) for name in ("model", "full_model", "epoch")}
    torch.save({**kept, **replaced}, path)
    return path


@torch.no_grad()
def test_a_payload_in_place_of_the_configuration_is_not_run(tmp_path, expected):
    marker = tmp_path / "was_run"
    poisoned = copy_with(tmp_path / "poisoned.pth", config=Payload(marker))
    with pytest.raises(UserError, match="n_heads: the checkpoint does not tell"):
        main(config(tmp_path / "a", poisoned))
    main(config(tmp_path / "b", poisoned, n_heads=4))
    assert not marker.exists()
    encoder = load_encoder(tmp_path / "b" / "export" / "encoder").eval()
    assert torch.allclose(encoder(expected["eeg"]), expected["tokens"], atol=1e-5)
    torch.load(poisoned, weights_only=False)
    assert marker.exists(), "the payload is a live one"


def test_a_payload_in_place_of_a_tensor_is_refused_by_name(tmp_path):
    marker = tmp_path / "was_run"
    poisoned = copy_with(tmp_path / "poisoned.pth", model={"norm.weight": Payload(marker)})
    with pytest.raises(UserError, match="model: 'norm.weight' is no tensor but Inert"):
        main(config(tmp_path / "a", poisoned, n_heads=4))
    assert not marker.exists()


def test_adapters_become_a_file_that_diffusers_reads(tmp_path, random_base):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=3, lora_alpha=16, init_lora_weights="gaussian",
                               target_modules=["to_k", "to_q", "to_v", "to_out.0"])  # fmt: skip
    wrapped = peft.get_peft_model(random_base().unet, settings)  # as the original does
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    content = torch.load(FOLDER / "latest.pth", weights_only=True)
    content["unet_lora"] = peft.get_peft_model_state_dict(wrapped)
    torch.save(content, tmp_path / "latest.pth")
    main(config(tmp_path / "run", tmp_path / "latest.pth", n_times=128, n_heads=4))

    plain = random_base().unet
    n = add_lora(random_base().unet, LoRAConfig(rank=3))
    load_lora(plain, tmp_path / "run" / "export" / "unet_lora")
    given = dict(encoder_hidden_states=torch.randn(1, 5, 16),
                 added_cond_kwargs={"text_embeds": torch.randn(1, 8), "time_ids": torch.ones(1, 6)})  # fmt: skip
    latents, t = torch.randn(1, 4, 16, 16), torch.tensor([10])
    with torch.no_grad():
        assert torch.allclose(plain(latents, t, **given).sample, wrapped(latents, t, **given).sample, atol=1e-5)
        assert not torch.allclose(random_base().unet(latents, t, **given).sample, wrapped(latents, t, **given).sample)
    assert f"unet_lora {n:,}" in (tmp_path / "run" / "export" / "README.md").read_text()


@pytest.mark.parametrize(
    ("checkpoint", "more", "words"),
    [
        ("checkpoint_best.pth", {"ch_names": NAMES[:-1]}, "15 electrodes are named, the checkpoint was trained on 16"),
        ("checkpoint_best.pth", {"n_times": 512}, "n_times=512: the checkpoint was trained on epochs of 128 samples"),
        ("checkpoint_best.pth", {"n_heads": 5}, "n_heads=5: the checkpoint's width is 32"),
        ("checkpoint_best.pth", {"decoder_heads": 7}, "decoder_heads=7: the decoder's width is 32"),
        ("latest.pth", {"n_heads": 4}, "n_times: a fine-tuning checkpoint does not tell"),
        ("latest.pth", {"n_times": 128}, "n_heads: the checkpoint does not tell"),
        ("latest.pth", {"n_times": 128, "n_heads": 4, "resampler_heads": 7}, "resampler_heads=7: the resampler's width is 64"),
        ("expected.npz", {}, "checkpoint: .*expected.npz"),
    ],
)  # fmt: skip
def test_what_the_tensors_do_not_tell_must_be_given_and_fit(tmp_path, checkpoint, more, words):
    with pytest.raises(UserError, match=words):
        main(config(tmp_path / "run", checkpoint, **more))
    assert not (tmp_path / "run" / "export").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    assert "no file" in check(config(tmp_path, "other.pth")).problems[0]
