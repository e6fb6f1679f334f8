"""Stable Diffusion 1.5 on the rails of SDXL: eLDM's bridge, the UNet's cross-attention or adapters, DDIM and PLMS."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from test_finetune import CHANNELS, ROOT, SFREQ, align, arguments, build_shards, entry, hashes, weights

import ttd
import ttd.align
import ttd.eval
import ttd.finetune
import ttd.generate
from ttd.bridge.conditioner import EEGConditioner
from ttd.bridge.heads import ClipHead
from ttd.config import UserError, load_config
from ttd.diffusion.base import Base
from ttd.diffusion.cross_attention import train_cross_attention
from ttd.diffusion.lora import add_lora
from ttd.encoders import build_encoder
from ttd.engine.tracking import read_log
from ttd.experiments.align import AlignConfig
from ttd.experiments.eval import EvalConfig
from ttd.experiments.finetune import FinetuneConfig, FromScratch
from ttd.experiments.generate import GenerateConfig
from ttd.experiments.targets import TargetsConfig
from ttd.objectives.conditional_diffusion import ConditionalDiffusion
from ttd.objectives.contrastive import TargetSpace

SD15 = [
    "conditioner={name: eldm, n_queries: 4}", "lora.rank=0", "cross_attention=true",
    "objective={clip_loss: cosine, condition_dropout: 0, min_snr_gamma: null}",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_base) -> Path:
    """A folder with shards/, align/, base/ of random Stable Diffusion 1.5 parts, and run/, trained on them."""
    folder = tmp_path_factory.mktemp("sd15")
    write_base(folder / "base", "sd15")
    build_shards(folder / "shards")
    align(folder / "align")
    assert finetune(folder, "run") == 0
    return folder


def finetune(place: Path, name: str, *more: str) -> int:
    given = [a for a in arguments(place, name) if not a.startswith(("conditioner.", "lora."))]
    return entry(ttd.finetune, FinetuneConfig, "base.name=sd15", *given, *SD15, *more)


def generate(place: Path, name: str, sampler: str, *more: str) -> int:
    return entry(
        ttd.generate, GenerateConfig, f"output_dir={place / name}", f"finetune={place / 'run'}", f"shards={place / 'shards'}",
        "base.name=sd15", f"base.path={place / 'base'}", f"sampler={{name: {sampler}, steps: 3, guidance: 1}}", "n_items=3",
        "controls=[shuffled]", *more,
    )  # fmt: skip


def test_the_export_holds_cross_attention_in_place_of_adapters_and_it_was_trained(place):
    export = place / "run" / "export"
    assert not (export / "unet_lora").exists()
    trained = load_file(export / "cross_attention" / "model.safetensors")
    before = load_file(place / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(".attn2." in name or ".norm2." in name for name in trained)
    assert any(not torch.equal(x, before[name].float()) for name, x in trained.items())
    facts = json.loads((export / "pipeline.json").read_text())
    assert (facts["base"]["name"], facts["adapters"], facts["cross_attention"]) == ("sd15", False, True)
    card = (export / "README.md").read_text()
    assert "conditioning bridge and the base's cross-attention" in card
    assert "lora" not in card


def test_a_resumed_run_exports_the_same_bits(place):
    assert finetune(place, "halved", "train.max_steps=2") == 0
    assert finetune(place, "halved") == 0
    whole, halved = weights(place / "run" / "export"), weights(place / "halved" / "export")
    assert whole.keys() == halved.keys()
    assert all(torch.equal(whole[name], halved[name]) for name in whole)


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_generation_and_the_pipeline_draw_the_same_pictures(place, sampler):
    assert generate(place, sampler, sampler) == 0
    items = [json.loads(line) for line in (place / sampler / "manifest.jsonl").read_text().splitlines()]
    assert len(items) == 2 * 3 * 2
    drawn = hashes(place / sampler)
    assert generate(place, sampler, sampler) == 0
    assert hashes(place / sampler) == drawn

    pipe = ttd.EEGToImagePipeline.from_pretrained(place / "run" / "export")
    pipe.save_pretrained(place / f"saved-{sampler}")
    again = ttd.EEGToImagePipeline.from_pretrained(place / f"saved-{sampler}")
    item = items[0]
    reader = ttd.generate.ShardReader.open(place / "shards" / "test", open_test=True)
    rows = [r for r in range(reader.index.n_samples) if reader.index.column("image_id")[r] == item["image_id"]]
    (row,) = [r for r in rows if reader.index.column("subject")[r] == item["subject"]]
    eeg = np.asarray(reader.eeg(row)).mean(0)
    for one in (pipe, again):
        picture = one(
            eeg,
            ch_names=CHANNELS,
            sfreq=SFREQ,
            num_inference_steps=3,
            guidance_scale=1,
            sampler=sampler,
            generator=item["seed"],
        ).images[0]
        shown = np.asarray(Image.open(place / sampler / item["path"])).astype(int)
        assert np.abs(np.asarray(picture).astype(int) - shown).max() <= 1  # alone, not in the batch of generation
    with pytest.raises(UserError, match="sampler='pndm': give one of dpmpp_2m_karras, ddim, plms, euler, unipc"):
        pipe(eeg, ch_names=CHANNELS, sfreq=SFREQ, sampler="pndm")


def test_adapters_work_as_well_and_ddim_is_not_plms(place):
    more = ("cross_attention=false", "lora.rank=2", "objective.clip_loss=infonce", "objective.condition_dropout=0.1")
    assert finetune(place, "adapters", *more) == 0
    assert (place / "adapters" / "export" / "unet_lora").is_dir()
    assert "StableDiffusionPipeline.load_lora_weights" in (place / "adapters" / "export" / "README.md").read_text()
    folders = {name: place / f"adapters-{name}" for name in ("ddim", "plms")}
    for name, folder in folders.items():
        assert generate(place, folder.name, name, f"finetune={place / 'adapters'}") == 0
    one, other = (hashes(folder / "items") for folder in folders.values())
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_what_does_not_belong_together_is_said_before_anything_starts(place, tmp_path, capsys, write_base):
    wrong = ("lora.rank=2", "output_dir=" + str(tmp_path / "no"))
    assert finetune(place, "no", *wrong) == 2
    assert "cross_attention: is trained instead of adapters; give lora.rank=0 as well" in capsys.readouterr().err
    assert finetune(place, "no", "base.dtype=bfloat16") == 2
    assert (
        "cross_attention: trains the base's own weights, which base.dtype=bfloat16 would round"
        in capsys.readouterr().err
    )
    assert finetune(place, "no", "objective.text_weight=1") == 2
    assert "objective.text_weight: the base's words are made for SDXL" in capsys.readouterr().err
    assert finetune(place, "no", f"base={{name: sdxl, path: {place / 'base'}}}") == 2
    assert "has the interface of sd15; give base={name: sd15, path: …} whole" in capsys.readouterr().err
    assert finetune(place, "no", "conditioner={name: eldm, depth: 2}") == 2
    assert "conditioner.depth: unknown key" in capsys.readouterr().err
    assert finetune(place, "no", "conditioner.name=resampler") == 2
    assert "no bridge 'resampler'; there are perceiver and eldm" in capsys.readouterr().err
    assert finetune(place, "no", "conditioner=eldm") == 2
    assert "conditioner: give a section: {name: perceiver, …} or {name: eldm, …}" in capsys.readouterr().err
    other = shutil.copytree(place / "base", tmp_path / "base")
    config = other / "vae" / "config.json"
    config.write_text(config.read_text().replace('"scaling_factor": 0.5', '"scaling_factor": 0.25'))
    assert finetune(place, "no", f"base.path={other}") == 2
    told = capsys.readouterr().err
    assert f"{place / 'shards' / 'targets' / 'vae'} was made by another VAE than that of base={other}" in told
    assert f"shards/precompute_targets.py shards={place / 'shards'} base={other} targets=[vae] image_size=32" in told
    here = ("--dry-run", f"base.path={place / 'base'}", "base.revision=" + "a" * 40)  # a folder has no revision
    assert finetune(place, "no", *here) == 0
    assert not (place / "no").exists()


def test_a_lost_or_exchanged_part_of_the_unet_is_refused(place, tmp_path):
    export = shutil.copytree(place / "run" / "export", tmp_path / "export")
    (export / "cross_attention" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cross_attention/model.safetensors"):
        ttd.EEGToImagePipeline.from_pretrained(export)
    shutil.rmtree(export / "cross_attention")
    with pytest.raises(UserError, match="cross_attention: is missing; copy the whole export"):
        ttd.EEGToImagePipeline.from_pretrained(export)


ORIGINAL = [
    "start={name: scratch, encoder: {name: mae, embed_dim: 16, depth: 1, n_heads: 2}, clip_head: {mode: weighted, dropout: 0}}",
    "conditioner.freeze=[]",
]  # fmt: skip
"""Nothing frozen but the rest of the UNet, and nothing random in the encoder: every rank and engine must see the same losses."""


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder) if line["event"] == "train"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_ranks_train_all_of_the_original_as_one_does_and_go_on_from_its_state(place, engine):
    one = f"one-for-{engine}"
    assert finetune(place, one, *ORIGINAL) == 0
    assert finetune(place, f"begun-{engine}", *ORIGINAL, "train.max_steps=2") == 0
    given = [a for a in arguments(place, "") if not a.startswith(("conditioner.", "lora.", "output_dir=", "micro"))]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", f"launch/{engine}.yaml", "--num_processes", "2", "--main_process_port", "0"]
    command += ["ttd/finetune.py", "base.name=sd15", *given, *SD15, *ORIGINAL, "micro_batch_size=4"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TTD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in (f"two-{engine}", f"begun-{engine}"):
        ended = subprocess.run(
            [*command, f"output_dir={place / name}"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert json.loads((place / name / "environment.json").read_text())["world_size"] == 2
        assert losses(place / name) == pytest.approx(losses(place / one), rel=1e-4)
        assert len(losses(place / one)) == 4


def test_the_original_experiment_builds_whole_on_the_meta_device():
    """At the original's 512 samples, of which 128 tokens come: encoder and bridge, head, cross-attention in training."""
    config = load_config(FinetuneConfig, [ROOT / "configs/finetune/dreamdiffusion.yaml"])
    assert isinstance(config.start, FromScratch)
    space, bank = TargetSpace(torch.zeros(768), torch.eye(768)), torch.randn(2000, 768)
    with torch.device("meta"):
        encoder = build_encoder(
            config.start.encoder, n_times=512, sfreq=1000, ch_names=[f"E{i:03}" for i in range(1, 129)]
        )
        head = ClipHead(config.start.clip_head, embed_dim=1024, n_tokens=encoder.n_tokens, clip_dim=768)
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, class_embed_type="identity"
        )
        base = Base(
            unet.requires_grad_(False), DDPMScheduler(prediction_type="epsilon"), {"block_out_channels": (1,) * 4}
        )
        conditioner = EEGConditioner.build(
            config.conditioner,
            encoder=encoder,
            clip_head=head,
            context_dim=base.context_dim,
            pooled_dim=base.pooled_dim,
        )
        assert add_lora(unet, config.lora) + train_cross_attention(unet) == 43_987_520
        objective = ConditionalDiffusion(
            config.objective, conditioner=conditioner, base=base, space=space, bank=bank,
            global_batch_size=config.global_batch_size, seed=config.seed,
        )  # fmt: skip
    assert (encoder.n_tokens, base.context_dim, base.pooled_dim) == (128, 768, 1280)
    maps = (128 * 64 + 64) + (64 * 77 + 77) + (1024 * 768 + 768)
    time = (77 * 38 + 38) + (38 + 1) + (768 * 1280 + 1280)
    assert conditioner.count_trainable() == {
        "encoder": 151_769_088, "clip_head": 129 + 787_200 + 1, "bridge": maps + time,
    }  # fmt: skip
    assert maps + time == 1_787_784
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert trained == 151_769_088 + 787_330 + 1_787_784 + 43_987_520


def precompute():
    spec = importlib.util.spec_from_file_location("precompute_targets", ROOT / "shards" / "precompute_targets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tiny_base_goes_from_alignment_to_a_table_with_ddim_and_plms(tmp_path, monkeypatch):
    """Real weights, real entries, few steps: that the chain holds together, not that it sees anything."""
    monkeypatch.chdir(ROOT)
    place, base = tmp_path, ["base.name=sd15", "base.path=weights/tiny_sd15"]
    (place / "base").symlink_to(ROOT / "weights/tiny_sd15")
    build_shards(place / "shards", {"train": range(6), "validation": range(6, 12), "test": range(12, 16)})
    shutil.rmtree(place / "shards" / "targets")
    assert entry(precompute(), TargetsConfig, f"shards={place / 'shards'}", "image_size=64") == 0
    few = ["global_batch_size=8", "train.max_steps=2", "train.validate_every=2", "train.checkpoint_every=2"]
    assert entry(
        ttd.align, AlignConfig, f"output_dir={place / 'align'}", f"data.shards={place / 'shards'}",
        "encoder={embed_dim: 16, depth: 0}", *few,
    ) == 0  # fmt: skip
    assert entry(
        ttd.finetune, FinetuneConfig, f"output_dir={place / 'run'}", f"data.shards={place / 'shards'}", *base, *few,
        f"start={{name: alignment, run: {place / 'align'}}}", "conditioner={name: eldm, n_queries: 24}", "lora.rank=0",
        "cross_attention=true", "objective.clip_loss=cosine", "samples={n: 2, sampler: {name: plms, steps: 2}}",
    ) == 0  # fmt: skip
    for sampler in ("ddim", "plms"):
        assert entry(
            ttd.generate, GenerateConfig, f"output_dir={place / sampler}", f"finetune={place / 'run'}", *base,
            f"shards={place / 'shards'}", f"sampler={{name: {sampler}, steps: 4, guidance: 1}}", "controls=[shuffled]",
        ) == 0  # fmt: skip
        assert Image.open(next((place / sampler / "items").glob("*/picture.png"))).size == (64, 64)
    assert entry(
        ttd.eval, EvalConfig, f"output_dir={place / 'eval'}", f"shards={place / 'shards'}", "retrieval.ridge=false",
        f"pictures.runs={{DDIM: {place / 'ddim'}, PLMS: {place / 'plms'}}}", "pictures.judge=null", "pictures.pixel_size=64",
        "pictures.ways=3", "n_resamples=100", "pictures.compare=[[DDIM, PLMS]]",
    ) == 0  # fmt: skip
    table = (place / "eval" / "table.md").read_text()
    assert "| DDIM |" in table
    assert "| PLMS |" in table
