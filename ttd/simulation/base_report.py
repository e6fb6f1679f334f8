"""Saving the tiny base models as a diffusers folder, and the figures of their model card."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, ModelMixin, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ttd.experiments.train_base import TrainBaseConfig
from ttd.seeding import torch_rng
from ttd.simulation.base_data import VOCABULARY, Pictures, pictures
from ttd.simulation.judge import load_judge, name_pictures
from ttd.simulation.scenes import Scene, Solid, caption
from ttd.simulation.tiny_clip import ClipWithHeads, load_clip, tokenize
from ttd.simulation.tiny_unet import TextToLatents, make_scheduler
from ttd.simulation.tiny_vae import foreground_psnr, reconstruct

GUIDANCE, STEPS = (
    4.0,
    25,
)  # what the card's figures are stated for; other values have not been measured on these weights


def save_half(model: ModelMixin, folder: Path) -> None:
    """Half precision on disk; every reader loads float32."""
    copy.deepcopy(model).half().save_pretrained(folder)


def load_vae(folder: Path) -> AutoencoderKL:
    """The VAE in float32, frozen."""
    return (
        AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
        .eval()
        .requires_grad_(False)
    )


def load_text_encoder_2(folder: Path) -> CLIPTextModelWithProjection:
    """The text tower of the tiny CLIP, frozen."""
    model = CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, part: Pictures) -> Tensor:
    """Scaled latents [N, 4, 16, 16] of a part, from the posterior's mean."""
    parts = [
        vae.encode(part.images(range(i, min(i + 200, len(part)))) * 2 - 1).latent_dist.mean
        for i in range(0, len(part), 200)
    ]
    return torch.cat(parts) * vae.config.scaling_factor


def save_pipeline(folder: Path, model: TextToLatents, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
    """All parts as one folder that ``StableDiffusionXLPipeline.from_pretrained`` opens."""
    scheduler = DPMSolverMultistepScheduler.from_config(make_scheduler().config, use_karras_sigmas=True)
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=CLIPTextModel(copy.deepcopy(model.text_encoder.config)),
        text_encoder_2=CLIPTextModelWithProjection(copy.deepcopy(model.text_encoder_2.config)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=copy.deepcopy(model.unet).half(),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.text_encoder.load_state_dict(model.text_encoder.state_dict())
    pipeline.text_encoder_2.load_state_dict(model.text_encoder_2.state_dict())
    pipeline.text_encoder.half()
    pipeline.text_encoder_2.half()
    pipeline.save_pretrained(folder)


def load_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """The tiny SDXL in float32."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, add_watermarker=False, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: StableDiffusionXLPipeline, captions: list[str], seed: int, guidance: float = GUIDANCE) -> Tensor:
    """Pictures [N, 3, 64, 64] in [0, 1] of captions, 25 steps of DPM++ 2M Karras; picture i depends on (seed, i) alone."""
    out = []
    for start in range(0, len(captions), 50):
        some = captions[start : start + 50]
        generators = [torch_rng(seed, "base-sample", start + i) for i in range(len(some))]
        pixels = pipeline(
            some, height=64, width=64, num_inference_steps=STEPS, guidance_scale=guidance, generator=generators,
            output_type="pt",
        ).images  # fmt: skip
        out.append(pixels)
    return torch.cat(out)


@torch.no_grad()
def zero_shot(clip: ClipWithHeads, tokenizer: CLIPTokenizer, images: Tensor) -> dict[str, np.ndarray]:
    """The words of the caption, out of all 288 for one solid, that is nearest to each picture."""
    solids = [
        Solid(kind, colour, size, 0.4, 0.0, x, 0.0)
        for kind in VOCABULARY["kind"]
        for colour in VOCABULARY["colour"]
        for size in VOCABULARY["size"]
        for x in (-0.45, 0.0, 0.45)
    ]
    text = clip.embed_text(tokenize(tokenizer, [caption(Scene((s,), 0)) for s in solids]))
    best = [solids[i] for i in (clip.embed_images(images) @ text.T).argmax(1)]
    return {k: np.array([getattr(s, k) for s in best]) for k in VOCABULARY}


def shares(named: dict[str, np.ndarray], part: Pictures) -> dict[str, float]:
    """Fraction of pictures whose kind, colour, size and place are named as they are."""
    truth = {k: np.array(words)[part.labels[k].numpy()] for k, words in VOCABULARY.items()}
    return {k: round(float((named[k] == truth[k]).mean()), 4) for k in VOCABULARY}


def contact_sheet(rows: list[Tensor], path: Path, scale: int = 2) -> None:
    """Rows of pictures as one image file."""
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    picture = Image.fromarray((sheet.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS).save(path, optimize=True)


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean over runs, key by key."""
    return {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]}


@torch.no_grad()
def report(config: TrainBaseConfig, folder: Path, *, log: Callable[[dict], None]) -> None:
    """Measure the shipped files on unseen scenes; write figures.json, two contact sheets and the model card."""
    n, seeds = config.n_evaluation, range(1, config.sampling_seeds + 1)
    single = {look: pictures("unseen", look, n, 1.0) for look in ("base", "study")}
    double = pictures("unseen-pairs", "base", n, 0.0)
    vae, judge, (clip, tokenizer) = load_vae(folder / "vae"), load_judge(folder / "judge"), load_clip(folder / "clip")
    figures: dict = {"scenes": n, "sampling_seeds": list(seeds), "guidance": GUIDANCE, "steps": STEPS}
    for look, part in single.items():
        images = part.images(range(n))
        decoded = reconstruct(vae, images)
        figures[look] = {
            "vae_foreground_psnr_db": round(foreground_psnr(images, decoded, part.mask), 2),
            "clip_heads": shares(name_by_heads(clip, images), part),
            "clip_zero_shot": shares(zero_shot(clip, tokenizer, images), part),
            "judge": shares(name_pictures(judge, images), part),
            "judge_on_vae": shares(name_pictures(judge, decoded), part),
        }
    pipeline, base = load_pipeline(folder), single["base"]
    drawn = [generate(pipeline, base.captions, seed) for seed in seeds]
    figures["generated_one_solid"] = mean_of([shares(name_pictures(judge, x), base) for x in drawn])
    pairs = [generate(pipeline, double.captions, seed) for seed in seeds]
    figures["generated_two_solids"] = mean_of([shares(name_pictures(judge, x), double) for x in pairs])
    shuffled = np.random.default_rng(0).permutation(n)
    figures["control_captions_shuffled"] = shares(name_pictures(judge, drawn[0][shuffled]), base)
    by_kind = [[i for i in range(n) if base.labels["kind"][i] == k][:10] for k in range(6)]
    contact_sheet([drawn[0][rows] for rows in by_kind], folder / "contact_sheet.png")
    contact_sheet([pairs[0][i : i + 10] for i in range(0, 30, 10)], folder / "contact_sheet_pairs.png")
    figures["megabytes"] = round(sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6, 2)
    figures["parameters"] = {
        "vae": sum(p.numel() for p in vae.parameters()),
        "clip": sum(p.numel() for p in clip.parameters()),
        "judge": sum(p.numel() for p in judge.parameters()),
        "unet": sum(p.numel() for p in pipeline.unet.parameters()),
    }
    figures["seconds_by_model"] = training_seconds(config.output_dir / "log.jsonl")
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "README.md").write_text(model_card(figures))
    log({"model": "report", **figures})


@torch.no_grad()
def name_by_heads(clip: ClipWithHeads, images: Tensor) -> dict[str, np.ndarray]:
    """The words the CLIP's heads read from its image embeddings."""
    logits = clip.name(clip.embed_images(images))
    return {k: np.array(words)[logits[k].argmax(1).numpy()] for k, words in VOCABULARY.items()}


def training_seconds(log: Path) -> dict[str, float]:
    """Wall seconds of each model's last training session, from the log."""
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {r["model"]: r["seconds"] for r in rows if "seconds" in r}


def model_card(f: dict) -> str:
    """README.md of the weights: command, duration, data, figures, limits."""

    def row(name: str, s: dict[str, float]) -> str:
        return f"| {name} | {s['kind']:.3f} | {s['colour']:.3f} | {s['size']:.3f} | {s['place']:.3f} |"

    minutes = ", ".join(f"{k} {v / 60:.0f}" for k, v in f["seconds_by_model"].items())
    parameters = ", ".join(f"{k} {v:,}" for k, v in f["parameters"].items())
    return f"""---
license: mit
library_name: diffusers
---
# Tiny base models of the demo

A complete SDXL folder for 64-pixel pictures of coloured solids on a table, with a CLIP (`clip/`), a judge that names what a
picture shows (`judge/`) and, where it was trained, an SDF lifter (`lifter/`). Everything is procedural: **no photograph, no
person and no downloaded weight is in it**, and it knows nothing but these solids.

- **Commands**: `python ttd/train_base.py --config configs/base/tiny.yaml`,
  then `python ttd/train_lift.py --config configs/lift/train_tiny.yaml`, `… train_tiny_decoded.yaml` and
  `… train_describer.yaml`
- **Duration**, wall minutes of one thread on a shared machine, in the session that finished each: {minutes}
- **Data**: scenes of one or two solids, 6 kinds x 8 colours x 2 sizes x 3 places. VAE, CLIP, judge and lifter see two looks
  (`base`, `study`), the UNet the base look alone.
- **Parameters**: {parameters}; {f["megabytes"]} MB of half-precision safetensors
- **License**: MIT

```python
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("weights/tiny", add_watermarker=False)
pipeline("a large red cone left", height=64, width=64, guidance_scale=4.0).images[0]
```

![one solid, by kind](contact_sheet.png)

Captions of the contact sheet: rows sphere, box, cylinder, cone, torus, capsule; unseen scenes, first seed, not selected.

## Figures

{f["scenes"]} unseen scenes (their captions occur in training), the shipped half-precision files, mean of
{len(f["sampling_seeds"])} sampling seeds, guidance {f["guidance"]}, {f["steps"]} steps of DPM++ 2M Karras.
Foreground PSNR of the VAE: {f["base"]["vae_foreground_psnr_db"]} dB (base look),
{f["study"]["vae_foreground_psnr_db"]} dB (study look).

| named right | kind | colour | size | place |
|---|---|---|---|---|
{row("chance", {"kind": 1 / 6, "colour": 1 / 8, "size": 1 / 2, "place": 1 / 3})}
{row("CLIP, heads, base look", f["base"]["clip_heads"])}
{row("CLIP, heads, study look", f["study"]["clip_heads"])}
{row("CLIP, nearest of 288 captions, base look", f["base"]["clip_zero_shot"])}
{row("judge, renders, base look", f["base"]["judge"])}
{row("judge, renders, study look", f["study"]["judge"])}
{row("judge, VAE reconstructions, base look", f["base"]["judge_on_vae"])}
{row("judge, **generated, one solid**", f["generated_one_solid"])}
{row("judge, generated, two solids", f["generated_two_solids"])}
{row("control: generated, captions shuffled", f["control_captions_shuffled"])}

With two solids, kind, colour, size and place are those of the one with more visible pixels.

## Limits

The shipped CLIP ran its first 200 of 1,300 updates with the rates of a 2,000-step schedule and was then resumed with the shorter
one: the command gives a CLIP like it, not the same one. bfloat16 gives other bits on other processors.

The judge is a classifier and accepts distorted solids: look at the contact sheets. All captions occur in training, so nothing
here shows that new combinations work. Two solids are harder than one:

![two solids](contact_sheet_pairs.png)
"""
