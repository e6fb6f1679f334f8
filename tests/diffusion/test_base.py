from __future__ import annotations

import hashlib

import pytest
import torch

from ttd.config import UserError
from ttd.diffusion.base import BaseConfig, find_missing, load_base, time_ids

COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"


def test_the_signal_factor_of_training_noise_falls_with_t(random_base):
    scheduler = random_base().noise_scheduler
    t = torch.arange(0, 1000, 37)
    factor = scheduler.add_noise(torch.ones(len(t), 1), torch.zeros(len(t), 1), t)[:, 0]
    assert (factor.diff() < 0).all()
    assert factor[0] == pytest.approx(0.9996, abs=1e-3)
    assert factor[-1] < 0.08


def test_half_precision_files_load_as_float32_and_widths_come_from_the_unet(base_folder):
    base = load_base(BaseConfig(path=str(base_folder), dtype="bfloat16"), with_vae=True)
    assert {p.dtype for p in base.unet.parameters()} == {torch.float32} == {p.dtype for p in base.vae.parameters()}
    assert (base.context_dim, base.pooled_dim, base.latent_size, base.image_size) == (16, 8, 16, 32)
    assert base.noise_scheduler.config.prediction_type == "v_prediction"
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_vae_stays_out_unless_asked_for(base_folder):
    assert load_base(BaseConfig(path=str(base_folder))).vae is None


def test_a_base_that_is_not_here_is_answered_with_the_download_command(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = BaseConfig(path="stabilityai/stable-diffusion-xl-base-1.0", revision=COMMIT, variant="fp16")
    message = find_missing(config)
    assert "neither a folder here nor in the Hugging Face cache" in message
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0 " in message
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in message
    assert f"--revision {COMMIT}" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="hf download"):
        load_base(config)


def test_an_absolute_path_is_no_repository_to_download():
    told = find_missing(BaseConfig(path="/nope"))
    assert (
        "'/nope' is neither a folder here nor in the Hugging Face cache; give a folder in the format of diffusers"
        in told
    )
    assert "hf download" not in told


def test_an_incomplete_folder_is_named_with_its_missing_files(base_folder):
    (base_folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    message = find_missing(BaseConfig(path=str(base_folder)))
    assert f"{base_folder} lacks unet/diffusion_pytorch_model.safetensors" in message


def test_a_base_of_other_bytes_than_pinned_is_refused_by_file(base_folder):
    files = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    pins = {name: hashlib.sha256((base_folder / name).read_bytes()).hexdigest() for name in files}
    config = BaseConfig(path=str(base_folder), sha256=pins)
    assert find_missing(config) is None
    assert load_base(config).context_dim == 16
    assert f"base.sha256: has no hash of {files[1]}" in find_missing(
        config.model_copy(update={"sha256": {files[0]: "0"}})
    )
    content = bytearray((base_folder / files[0]).read_bytes())
    content[-1] ^= 1
    (base_folder / files[0]).write_bytes(content)
    with pytest.raises(UserError, match=r"other weights than the ones named: unet/\S+ is \w{64}, not \w{64}\. Take"):
        load_base(config)
    assert load_base(BaseConfig(path=str(base_folder))).context_dim == 16


def test_scaling_of_latents_is_undone_before_decoding(random_base):
    base = random_base()
    base.vae_config |= {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 1.0, 2.0, 3.0]}
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(base.unscale(base.scale(z)), z, atol=1e-6)
    assert torch.allclose(base.scale(z)[:, 1], (z[:, 1] - 2) * 0.5)


def test_time_ids_say_size_corner_and_target():
    assert time_ids(2, 512, 256).tolist() == [[512, 256, 0, 0, 512, 256]] * 2
