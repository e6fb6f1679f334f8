from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import ttd.experiments.finetune_plan
import ttd.finetune
import ttd.generate
from ttd.bridge.conditioner import EEGConditioner
from ttd.bridge.heads import ClipHead
from ttd.config import load_config, run
from ttd.data.reader import ShardReader
from ttd.data.splits import SplitManifest, read_ledger
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.data.writer import ShardWriter
from ttd.diffusion.base import Base, BaseConfig, load_base
from ttd.diffusion.lora import LoRAConfig, add_lora
from ttd.diffusion.sampler import SamplerConfig, sample
from ttd.diffusion.targets import OPENAI_MEAN, OPENAI_STD, identity
from ttd.encoders import InceptSADConfig, build_encoder
from ttd.experiments.align import AlignConfig
from ttd.experiments.finetune import FinetuneConfig, FromScratch
from ttd.experiments.generate import GenerateConfig
from ttd.objectives.conditional_diffusion import ConditionalDiffusion
from ttd.objectives.contrastive import Contrastive, ContrastiveConfig, TargetSpace, load_aligned, save_aligned
from ttd.objectives.finetuned import load_finetuned

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
CHANNELS, SFREQ, N_TIMES = ["Fz", "Cz", "Pz"], 128.0, 64
PARTS = {"train": range(8), "validation": range(8, 12), "test": range(12, 16)}


def picture(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 16 * i, np.uint8)).save(out, format="PNG")
    return out.getvalue()


SHAS = [hashlib.sha256(picture(i)).hexdigest() for i in range(16)]


def build_shards(root: Path, parts: dict[str, range] = PARTS, **more) -> Path:
    """Shards with targets of noise, the latents under the name of the VAE in the folder base/ beside them."""
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((16, len(CHANNELS), N_TIMES))
    for part, images in parts.items():
        with ShardWriter(root / part, kind="paired") as writer:
            for subject in ("01", "02"):
                for i in images:
                    eeg = 10 * (patterns[i] + rng.standard_normal((2, len(CHANNELS), N_TIMES)))
                    meta = {
                        "study": "Simulated", "subject": subject, "cap": "three", "sessions": ["1"] * 2,
                        "runs": ["1"] * 2, "onsets": [0.0, 1.0], "image_id": f"image-{i}", "concept": f"c{i}",
                        "image_sha256": SHAS[i],
                    }  # fmt: skip
                    writer.write(f"sub-{subject}_{i}", {"eeg.npy": eeg, "meta.json": meta})
            statistics = {"three": {"mean": [0.0] * 3, "std": [14.0] * 3}}
            facts = {"study": "Simulated", "part": part, "sfreq": SFREQ, "tmin": 0.0, "n_times": N_TIMES}
            writer.finish(facts | {"caps": {"three": CHANNELS}, "statistics": statistics, "simulated": True} | more)
    with ShardWriter(root / "images", kind="image") as writer:
        for i, sha in enumerate(SHAS):
            meta = {"image_id": f"image-{i}", "concept": f"c{i}", "sha256": sha}
            writer.write(sha, {"image.png": picture(i), "meta.json": meta})
        writer.finish({"study": "Simulated"})
    write_targets(root, "clip", (6,), made_by="a CLIP")
    write_targets(root, "vae", (8, 16, 16), made_by=identity(str(root.parent / "base"), "vae"))
    write_targets(root, "vae.size-ids", (6,), made_by="a VAE")
    SplitManifest(
        study="Simulated", by="given", assignments={p: [f"image-{i}" for i in r] for p, r in parts.items()}
    ).write(root)
    return root


def write_targets(root: Path, name: str, shape: tuple[int, ...], *, made_by: str) -> None:
    """Noise under the name of a model's targets."""
    rng, folder = np.random.default_rng(len(shape)), root / "targets" / name
    shutil.rmtree(folder, ignore_errors=True)
    with ShardWriter(folder, kind="target") as writer:
        for sha in SHAS:
            writer.write(sha, {"target.npy": rng.standard_normal(shape).astype(np.float32)})
        writer.finish({"study": "Simulated", "source": {"model": made_by, "image_size": 32}})


def align(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    facts = {"n_times": N_TIMES, "sfreq": SFREQ, "ch_names": CHANNELS} | changes
    encoder = build_encoder(InceptSADConfig(embed_dim=16, depth=1, n_heads=2), **facts)
    head = ClipHead(ContrastiveConfig().head, embed_dim=16, n_tokens=encoder.n_tokens, clip_dim=6)
    space = TargetSpace.fit(torch.randn(20, 6), "half_whitened")
    save_aligned(folder / "export", Contrastive(ContrastiveConfig(), encoder=encoder, head=head, space=space))
    return folder


@pytest.fixture
def place(tmp_path: Path, base_folder: Path) -> Path:
    """A folder with shards/, align/ and base/."""
    build_shards(tmp_path / "shards")
    align(tmp_path / "align")
    return tmp_path


def entry(module, schema, *arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run(module.main, schema, doc=module.__doc__, check=module.check, argv=arguments)
    return exit_.value.code


def arguments(place: Path, name: str) -> list[str]:
    return [
        f"output_dir={place / name}", f"data.shards={place / 'shards'}",
        "start.name=alignment", f"start.run={place / 'align'}", f"base.path={place / 'base'}",
        "global_batch_size=8", "micro_batch_size=4", "lora.rank=2", "train.max_steps=4",
        "train.checkpoint_every=2", "train.validate_every=2", "train.log_every=1", "data.repetitions=random",
        "conditioner.resampler={n_queries: 4, depth: 1, n_heads: 2}", "optim={lr: 0.003, schedule: constant}",
        "samples.n=0",
    ]  # fmt: skip


def finetune(place: Path, name: str, *more: str) -> int:
    return entry(ttd.finetune, FinetuneConfig, *arguments(place, name), *more)


def generate(place: Path, *more: str) -> int:
    return entry(
        ttd.generate, GenerateConfig, f"output_dir={place / 'pictures'}", f"finetune={place / 'run'}",
        f"shards={place / 'shards'}", f"base.path={place / 'base'}", "sampler.steps=3", "n_items=3",
        "controls=[shuffled]", "items.batch_size=5", *more,
    )  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.png")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All exported tensors; the files' bytes also hold metadata, in an order that safetensors draws at random."""
    files = folder.rglob("*.safetensors")
    return {f"{p.relative_to(folder)}/{name}": x for p in files for name, x in load_file(p).items()}


def test_from_shards_to_a_run_to_pictures_and_the_ledger(place):
    assert finetune(place, "run") == 0
    export = place / "run" / "export"
    names = {str(path.relative_to(export)) for path in export.rglob("*") if path.is_file()}
    assert names == {
        "README.md", "encoder/config.json", "encoder/model.safetensors", "clip_head/config.json",
        "clip_head/model.safetensors", "bridge/config.json", "bridge/model.safetensors",
        "unet_lora/pytorch_lora_weights.safetensors", "pipeline.json", "SHA256SUMS",
    }  # fmt: skip
    card = ModelCard((export / "README.md").read_text())
    assert (card.data.license, card.data.library_name) == ("other", "diffusers")
    assert "simulation" in card.content
    assert "Licence of the recordings: not stated by the study." in card.content
    log = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["event"] == "validation"] == [2, 4]

    assert generate(place) == 0
    items = [json.loads(line) for line in (place / "pictures" / "manifest.jsonl").read_text().splitlines()]
    assert len(items) == 2 * 3 * 2
    assert len({item["key"] for item in items}) == 12
    own = [item for item in items if item["control"] is None]
    assert all(item["eeg_of"] == item["image_id"] for item in own)
    assert {i["image_id"] for i in own if i["subject"] == "01"} == {i["image_id"] for i in own if i["subject"] == "02"}
    shuffled = [item for item in items if item["control"] == "shuffled"]
    assert all(item["eeg_of"] != item["image_id"] for item in shuffled)
    assert sorted(i["eeg_of"] for i in shuffled) == sorted(i["image_id"] for i in shuffled)
    for item in items:
        assert Image.open(place / "pictures" / item["path"]).size == (32, 32)
        shown = (place / "pictures" / item["shown_path"]).read_bytes()
        assert hashlib.sha256(shown).hexdigest() == item["image_sha256"]
    sheet = np.array(Image.open(place / "pictures" / "sheet.png"))
    assert sheet.shape == (32, 12 * 32, 3)  # six pairs in a row
    for i, item in enumerate(own):
        for side, name in enumerate(("shown_path", "path")):
            picture = np.array(Image.open(place / "pictures" / item[name]))
            assert np.array_equal(sheet[:, (2 * i + side) * 32 : (2 * i + side + 1) * 32], picture)
    assert [entry["who"] for entry in read_ledger(place / "shards")] == ["generate"]

    before = hashes(place / "pictures")
    (place / "pictures" / "items" / own[0]["key"] / "status.json").unlink()  # as if killed before it was finished
    assert generate(place) == 0
    assert hashes(place / "pictures") == before


def test_controls_are_drawn_from_what_cannot_know_the_picture(place):
    assert finetune(place, "run") == 0
    assert generate(place, "controls=[shuffled,pre_stimulus,noise,unconditional]") == 0
    items = [json.loads(line) for line in (place / "pictures" / "manifest.jsonl").read_text().splitlines()]
    assert Counter(item["control"] for item in items) == dict.fromkeys(
        (None, "shuffled", "pre_stimulus", "noise", "unconditional"), 2 * 3
    )
    base = load_base(BaseConfig(path=str(place / "base")), device=torch.device("cpu"), with_vae=True)
    load_finetuned(place / "run" / "export", base)  # its LoRA goes into the UNet
    free = [item for item in items if item["control"] == "unconditional"]
    nothing = torch.zeros(len(free), 4, base.unet.config.cross_attention_dim), torch.zeros(len(free), base.pooled_dim)
    expected = sample(base, *nothing, seeds=[item["seed"] for item in free], config=SamplerConfig(steps=3))
    for item, picture in zip(free, expected, strict=True):
        drawn = np.array(Image.open(place / "pictures" / item["path"]), int)
        assert np.abs(drawn - (picture * 255).round().permute(1, 2, 0).numpy()).max() <= 1

    eeg, index = torch.randn(5, 3, 20), SimpleNamespace(tmin=-0.1, sfreq=100.0)
    named = [None, "shuffled", "pre_stimulus", "noise", "unconditional"]
    blind = ttd.generate.blind(eeg, named, [1, 2, 3, 4, 5], index)
    assert torch.equal(blind[:2], eeg[:2])
    assert torch.equal(blind[2, :, :10], eeg[2, :, :10])
    assert not blind[2, :, 10:].any()
    assert not torch.equal(blind[3], blind[4])
    assert not (blind[3:] == eeg[3:]).any()


def test_bfloat16_arithmetic_gives_nearly_the_losses_of_float32(place, other_precision):
    found = {}
    for precision in ("no", "bf16"):
        other_precision()
        assert finetune(place, precision, f"engine.mixed_precision={precision}", "conditioner.freeze=[]") == 0
        lines = [json.loads(line) for line in (place / precision / "log.jsonl").read_text().splitlines()]
        found[precision] = {name: [x[name] for x in lines if x["event"] == "train"] for name in ("loss", "clip")}
    assert found["bf16"]["loss"] != found["no"]["loss"]
    for name in ("loss", "clip"):
        assert found["bf16"][name] == pytest.approx(found["no"][name], rel=0.05)


@pytest.mark.slow
def test_two_processes_with_other_hash_seeds_train_the_same_bits(place):
    """R10: the order of Python's sets and dictionaries of strings must not reach a weight."""
    for seed in ("1", "77"):
        command = [sys.executable, "ttd/finetune.py", *arguments(place, f"run-{seed}"), "train.max_steps=6"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-2000:]
    first, second = (weights(place / f"run-{seed}") for seed in ("1", "77"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [(place / f"run-{seed}" / "log.jsonl").read_text().splitlines() for seed in ("1", "77")]
    losses = [[json.loads(line)["loss"] for line in log if '"train"' in line] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_a_resumed_run_exports_the_same_bits_as_an_uninterrupted_one(place):
    assert finetune(place, "straight", "train.max_steps=4") == 0
    assert finetune(place, "resumed", "train.max_steps=2") == 0
    assert finetune(place, "resumed", "train.max_steps=4") == 0
    straight, resumed = weights(place / "straight" / "export"), weights(place / "resumed" / "export")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    before = weights(place / "align" / "export")
    assert not torch.equal(
        before["clip_head/model.safetensors/head.project.weight"],
        straight["clip_head/model.safetensors/head.project.weight"],
    )


def test_without_adapters_the_export_has_none_and_generation_works(place):
    assert finetune(place, "run", "lora.rank=0", "train.max_steps=1") == 0
    assert not (place / "run" / "export" / "unet_lora").exists()
    assert generate(place, "controls=[]", "subjects=['01']") == 0


def test_memory_decides_what_is_not_given_and_what_does_not_fit_is_refused(place, monkeypatch, capsys):
    assert finetune(place, "run", "train.max_steps=1", "--dry-run") == 0
    assert re.search(
        r"memory per rank, counted: .* 4 samples per pass × .*; gradient checkpointing off", capsys.readouterr().err
    )
    monkeypatch.setattr(ttd.experiments.finetune_plan, "memory_of_rank", lambda: 1 << 20)
    assert finetune(place, "run", "train.max_steps=1") == 2
    refusal = r"4 samples per pass need about 0\.0[0-9]+ GiB, this rank has 0\.00098; take a smaller base"
    assert re.search(refusal, capsys.readouterr().err)
    assert finetune(place, "run", "train.max_steps=1", "objective.gradient_checkpointing=true") == 0


def test_an_alignment_with_another_target_is_refused(place, capsys):
    path = place / "align" / "export" / "clip_head" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target": "dinov2.8-mean"}))
    assert finetune(place, "run") == 2
    assert "start.run: was aligned with the target dinov2.8-mean" in capsys.readouterr().err


def test_without_one_picture_of_its_own_there_is_no_sheet(tmp_path):
    ttd.generate.draw_sheet(tmp_path, [])
    ttd.generate.draw_sheet(tmp_path, [{"control": "shuffled"}])
    assert not any(tmp_path.iterdir())


def test_of_several_candidates_the_one_nearest_the_eegs_embedding_is_kept(place, capsys):
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32,
              "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    torch.manual_seed(1)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision, projection_dim=6)).eval()
    clip.save_pretrained(place / "clip")
    assert finetune(place, "run", "train.max_steps=1") == 0
    assert generate(place, "candidates=4") == 2
    assert "clip: needed to choose among candidates" in capsys.readouterr().err

    write_targets(place / "shards", "clip", (6,), made_by="another model")
    assert generate(place, "candidates=4", f"clip={place / 'clip'}") == 2
    assert "targets/clip, which another model made" in capsys.readouterr().err
    write_targets(place / "shards", "clip", (6,), made_by=identity(str(place / "clip")))

    assert generate(place, f"output_dir={place / 'one'}") == 0
    assert generate(place, "candidates=4", f"clip={place / 'clip'}") == 0
    aligned = load_aligned(place / "run" / "export")
    reader = ShardReader.open(place / "shards" / "test", open_test=True)
    names = reader.index.column("image_id").tolist()
    (epochs,) = evaluation_batches(reader, DataConfig(shards=place / "shards", part="test"), 100)
    with torch.no_grad():
        heard = aligned(epochs["eeg"])

    def similarity(folder: Path, item: dict) -> float:
        """Cosine of a picture, seen by transformers itself, and of what the EEG behind it says."""
        (row,) = (i for i, name in enumerate(names)
                  if name == item["eeg_of"] and reader.index.column("subject")[i] == item["subject"])  # fmt: skip
        x = torch.from_numpy(np.array(Image.open(folder / item["path"]))).permute(2, 0, 1)[None] / 255
        x = (x - torch.tensor(OPENAI_MEAN).view(3, 1, 1)) / torch.tensor(OPENAI_STD).view(3, 1, 1)
        with torch.no_grad():
            return float((aligned.space(clip(x).image_embeds) * heard[row]).sum())

    lines = (place / "pictures" / "manifest.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert {item["candidates"] for item in items} == {4}
    gains = [similarity(place / "pictures", item) - similarity(place / "one", item) for item in items]
    assert min(gains) >= -1e-5  # the only picture of the other run is one of the four
    assert max(gains) > 1e-3

    assert generate(place, "candidates=4", "keep=5") == 2
    assert "keep=5: only candidates=4 are drawn" in capsys.readouterr().err
    assert generate(place, f"output_dir={place / 'drawn'}", "candidates=4", "keep=4") == 0
    assert generate(place, f"output_dir={place / 'sorted'}", "candidates=4", "keep=4", f"clip={place / 'clip'}") == 0
    for line, item in zip((place / "sorted" / "manifest.jsonl").read_text().splitlines(), items, strict=True):
        paths = [(kept := json.loads(line))["path"], *kept["more_paths"]]
        assert [Path(path).name for path in paths] == ["picture.png", "picture-2.png", "picture-3.png", "picture-4.png"]
        cosines = [similarity(place / "sorted", item | {"path": path}) for path in paths]
        assert all(a >= b - 1e-6 for a, b in itertools.pairwise(cosines))
        bytes_of = {name: {(place / name / path).read_bytes() for path in paths} for name in ("sorted", "drawn")}
        assert bytes_of["sorted"] == bytes_of["drawn"]
        assert (place / "sorted" / paths[0]).read_bytes() == (place / "pictures" / paths[0]).read_bytes()
    with Image.open(place / "sorted" / "sheet.png") as sheet:  # the shown one and four drawn, twice side by side
        assert sheet.width == 10 * 32


def test_what_does_not_fit_is_said_before_anything_starts(place, capsys):
    align(place / "align", sfreq=64.0)
    assert finetune(place, "run", "base.path=stabilityai/stable-diffusion-xl-base-1.0") == 2
    said = capsys.readouterr().err
    assert "start.run: the encoder was trained at 64 Hz, the shards are at 128 Hz" in said
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0" in said
    assert "Traceback" not in said
    assert not (place / "run").exists()


def test_a_bridge_of_other_widths_is_refused_by_generation(place, capsys):
    assert finetune(place, "run", "train.max_steps=1") == 0
    path = place / "run" / "export" / "bridge" / "config.json"
    path.write_text(path.read_text().replace('"pooled_dim": 8', '"pooled_dim": 9'))
    assert generate(place) == 2
    assert "weights do not fit the configuration" in capsys.readouterr().err


def test_the_original_configuration_trains_as_many_parameters_as_its_logs_say():
    """TTD-net's W&B logs: trainable_params 432,915,241 (24 blocks, 63 channels)."""
    root = Path(ttd.finetune.__file__).parents[1]
    config = load_config(FinetuneConfig, [root / "configs/finetune/ttdnet_original.yaml"])
    assert isinstance(config.start, FromScratch)
    names = [f"E{i}" for i in range(63)]
    with torch.device("meta"):
        encoder = build_encoder(config.start.encoder, n_times=512, sfreq=512, ch_names=names)
        head = ClipHead(config.start.clip_head, embed_dim=1024, n_tokens=encoder.n_tokens, clip_dim=768)
        conditioner = EEGConditioner.build(
            config.conditioner, encoder=encoder, clip_head=head, context_dim=2048, pooled_dim=1280
        )
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
        )
        counts = conditioner.count_trainable()
        assert counts["clip_head"] == 1_836_801
        assert sum(counts.values()) + add_lora(unet, LoRAConfig()) == 432_915_241


def test_the_sdxl_experiment_builds_whole_on_the_meta_device():
    """Encoder as its alignment has it, frozen; CLIP head, bridge and adapters in training."""
    from sdxl_shapes import NOISE, UNET

    config = load_config(FinetuneConfig, [ROOT / "configs/finetune/sdxl_lora_gifford2022.yaml"])
    align = load_config(AlignConfig, [ROOT / "configs/align/inceptsad.yaml"])
    space, bank = TargetSpace(torch.zeros(768), torch.eye(768)), torch.randn(2000, 768)
    with torch.device("meta"):
        encoder = build_encoder(align.encoder, n_times=250, sfreq=250, ch_names=[f"E{i}" for i in range(63)])
        head = ClipHead(align.objective.head, embed_dim=1024, n_tokens=encoder.n_tokens, clip_dim=768)
        unet = UNet2DConditionModel(**UNET)
        base = Base(unet, DDPMScheduler(**NOISE), {"block_out_channels": (128, 256, 512, 512)})
        assert add_lora(unet, config.lora) == 23_224_320
        conditioner = EEGConditioner.build(
            config.conditioner,
            encoder=encoder,
            clip_head=head,
            context_dim=base.context_dim,
            pooled_dim=base.pooled_dim,
        )
        objective = ConditionalDiffusion(
            config.objective, conditioner=conditioner, base=base, space=space, bank=bank,
            global_batch_size=config.global_batch_size, seed=config.seed,
        )  # fmt: skip
    assert (base.context_dim, base.pooled_dim, base.vae_factor) == (2048, 1280, 8)
    assert sum(name.endswith("lora_A") for name, _ in unet.named_modules()) == 560
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684 + 23_224_320
    counts = conditioner.count_trainable()
    assert counts["encoder"] == 0
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert trained == 23_224_320 + counts["clip_head"] + counts["bridge"]
