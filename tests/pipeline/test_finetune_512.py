"""Fine-tuning at SDXL's real resolution and topology, with few channels: nothing in the path is tied to the demo's 64 pixels."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from bids_study import real_data
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import ttd.finetune
from ttd.config import run
from ttd.data.targets import TargetTable
from ttd.data.writer import ShardWriter
from ttd.experiments.finetune import FinetuneConfig
from ttd.experiments.pipeline import read_export_facts

__all__ = ["real_data"]

ROOT = Path(__file__).parents[2]
CHANNELS, SFREQ, N_TIMES = ["Fz", "Cz", "Pz", "Oz"], 128.0, 64


def narrow_sdxl(folder: Path) -> None:
    """SDXL base 1.0's topology (latents of 64 x 64 here) with a twentieth of its channels, at random."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(16, 32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).save_pretrained(folder / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    clip = CLIPVisionConfig(**vision, num_attention_heads=2, projection_dim=6)
    CLIPVisionModelWithProjection(clip).save_pretrained(folder / "clip")


def build_shards(root: Path, pictures: list[bytes]) -> None:
    """One epoch of noise per picture; every tenth picture is for validation."""
    rng, shas = np.random.default_rng(0), [hashlib.sha256(content).hexdigest() for content in pictures]
    facts = {"study": "Simulated", "sfreq": SFREQ, "tmin": 0.0, "n_times": N_TIMES, "simulated": True}
    facts |= {"caps": {"four": CHANNELS}, "statistics": {"four": {"mean": [0.0] * 4, "std": [10.0] * 4}}}
    parts = {"validation": range(0, len(shas), 10), "train": [i for i in range(len(shas)) if i % 10]}
    for part, numbers in parts.items():
        with ShardWriter(root / part, kind="paired") as writer:
            for i in numbers:
                eeg = (10 * rng.standard_normal((1, 4, N_TIMES))).astype(np.float16)
                meta = {
                    "study": "Simulated", "subject": "01", "cap": "four", "sessions": ["1"], "runs": ["1"],
                    "onsets": [float(i)], "image_id": f"{i}", "concept": f"c{i}", "image_sha256": shas[i],
                }  # fmt: skip
                writer.write(f"s{i}", {"eeg.npy": eeg, "meta.json": meta})
            writer.finish(facts | {"part": part})
    with ShardWriter(root / "images", kind="image") as writer:
        for sha, content in sorted(zip(shas, pictures, strict=True)):
            writer.write(sha, {"image.jpg": content, "meta.json": {"image_id": sha[:8], "sha256": sha}})
        writer.finish({"study": "Simulated"})


def command(monkeypatch, script: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return end.value.code


@pytest.mark.slow
@pytest.mark.realdata
def test_twenty_steps_at_512_pixels_on_165_photographs(tmp_path, real_data, monkeypatch):
    files = sorted(real_data("thingsplus-cc0-images").glob("*.jpg"))
    pictures = [path.read_bytes() for path in files]
    wide = np.ascontiguousarray(simplejpeg.decode_jpeg(pictures[1])[:225])  # one that is cropped: 225 x 300
    pictures[1] = simplejpeg.encode_jpeg(wide)
    assert len(pictures) == 165
    narrow_sdxl(tmp_path / "base")
    build_shards(tmp_path / "shards", pictures)
    models = [f"base={tmp_path / 'base'}", f"clip={tmp_path / 'base' / 'clip'}", "image_size=512", "batch_size=8"]
    assert command(monkeypatch, "shards/precompute_targets.py", f"shards={tmp_path / 'shards'}", *models) == 0
    vae, ids = (TargetTable.read(tmp_path / "shards" / "targets" / name) for name in ("vae", "vae.size-ids"))
    assert vae.shape == (8, 64, 64)
    shas = [hashlib.sha256(content).hexdigest() for content in pictures]
    assert ids.array(shas[:2]).tolist() == [[300, 300, 0, 0, 512, 512], [225, 300, 0, 85, 512, 512]]

    seen, forward = [], UNet2DConditionModel.forward

    def watched(self, noisy, *args, **kwargs):
        if noisy.device.type == "cpu":  # not the pass that counts memory
            seen.append((tuple(noisy.shape[1:]), kwargs["added_cond_kwargs"]["time_ids"].clone()))
        return forward(self, noisy, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watched)
    with pytest.raises(SystemExit) as end:
        run(
            ttd.finetune.main, FinetuneConfig, doc="", check=ttd.finetune.check,
            argv=[
                f"output_dir={tmp_path / 'run'}", f"data.shards={tmp_path / 'shards'}", f"base.path={tmp_path / 'base'}",
                "start={name: scratch, encoder: {embed_dim: 16, depth: 0}}", "global_batch_size=4", "micro_batch_size=2",
                "train={max_steps: 20, log_every: 1, validate_every: 20, checkpoint_every: 20}", "data.repetitions=random",
                "optim={lr: 0.01, schedule: constant}", "lora.rank=4", "samples.n=0",
                "conditioner.resampler={n_queries: 4, depth: 1, n_heads: 2}",
            ],
        )  # fmt: skip
    assert end.value.code == 0
    assert {shape for shape, _ in seen} == {(4, 64, 64)}
    told = torch.cat([own for _, own in seen]).unique(dim=0).tolist()
    assert told == [[225, 300, 0, 85, 512, 512], [300, 300, 0, 0, 512, 512]]
    assert read_export_facts(tmp_path / "run" / "export")[0].picture_size == 512
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["diffusion"] for line in lines if line["event"] == "train"]
    assert len(losses) == 20
    assert np.isfinite(losses).all()
    adapters = load_file(tmp_path / "run" / "export" / "unet_lora" / "pytorch_lora_weights.safetensors")
    up = {name: value for name, value in adapters.items() if ".lora_B." in name}
    assert len(up) == 560  # as many as in SDXL itself; they start at zero
    assert all(value.abs().sum() > 0 for value in up.values())
