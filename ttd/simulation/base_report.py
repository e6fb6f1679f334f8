"""The tiny base models measured on unseen scenes, and the model card of those in SDXL's format.

What a generated picture shows is named by the judge; the card of Stable Diffusion 1.5's format is in ``sd15_report``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ttd.experiments.train_base import TrainBaseConfig
from ttd.seeding import torch_rng
from ttd.simulation.base_data import VOCABULARY, Pictures, pictures
from ttd.simulation.judge import Judge, load_judge, name_pictures
from ttd.simulation.scenes import Scene, Solid, caption
from ttd.simulation.tiny_clip import ClipWithHeads, load_clip, tokenize
from ttd.simulation.tiny_unet import load_pipeline
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


@torch.no_grad()
def encode(vae: AutoencoderKL, part: Pictures) -> Tensor:
    """Scaled latents [N, 4, 16, 16] of a part, from the posterior's mean."""
    parts = [
        vae.encode(part.images(range(i, min(i + 200, len(part)))) * 2 - 1).latent_dist.mean
        for i in range(0, len(part), 200)
    ]
    return torch.cat(parts) * vae.config.scaling_factor


def generate(
    pipeline: DiffusionPipeline, captions: list[str], seed: int, guidance: float = GUIDANCE, steps: int = STEPS
) -> Tensor:
    """Pictures [N, 3, 64, 64] in [0, 1] of captions with the pipeline's scheduler; picture i depends on (seed, i) alone."""
    out = []
    for start in range(0, len(captions), 50):
        some = captions[start : start + 50]
        generators = [torch_rng(seed, "base-sample", start + i) for i in range(len(some))]
        pixels = pipeline(
            some, height=64, width=64, num_inference_steps=steps, guidance_scale=guidance, generator=generators,
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


def contact_sheet(rows: list[Tensor], path: Path, resample: Image.Resampling = Image.Resampling.LANCZOS) -> None:
    """Rows of pictures [N, 3, H, W] at twice their size as one image file; a shorter row ends in white."""
    longest = max(len(row) for row in rows)
    full = [torch.cat([row, row.new_ones(longest - len(row), *row.shape[1:])]) for row in rows]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in full], dim=1)
    picture = Image.fromarray((sheet.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    picture.resize((picture.width * 2, picture.height * 2), resample).save(path, optimize=True)


def by_kind(part: Pictures, n: int) -> list[list[int]]:
    """The first ``n`` rows of a part for each kind of solid."""
    return [[i for i in range(len(part)) if part.labels["kind"][i] == k][:n] for k in range(len(VOCABULARY["kind"]))]


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean over runs, key by key."""
    return {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]}


def unseen(config: TrainBaseConfig) -> tuple[Pictures, Pictures]:
    """The scenes of the base look that every card is about: one solid, and two."""
    n = config.n_evaluation
    return pictures("unseen", "base", n, 1.0), pictures("unseen-pairs", "base", n, 0.0)


@torch.no_grad()
def draw_and_name(
    draw: Callable[[list[str], int], Tensor], judge: Judge, single: Pictures, double: Pictures, seeds: Sequence[int]
) -> tuple[dict[str, dict[str, float]], Tensor, Tensor]:
    """What the judge names right in ``draw(captions, seed)``, mean of the seeds, and the first seed's pictures of both parts.

    The control names pictures that were drawn for other captions: chance, unless the judge says what is asked of it.
    """
    drawn = [draw(single.captions, seed) for seed in seeds]
    pairs = [draw(double.captions, seed) for seed in seeds]
    shuffled = np.random.default_rng(0).permutation(len(single))
    figures = {
        "generated_one_solid": mean_of([shares(name_pictures(judge, x), single) for x in drawn]),
        "generated_two_solids": mean_of([shares(name_pictures(judge, x), double) for x in pairs]),
        "control_captions_shuffled": shares(name_pictures(judge, drawn[0][shuffled]), single),
    }
    return figures, drawn[0], pairs[0]


@torch.no_grad()
def report(config: TrainBaseConfig, folder: Path, *, log: Callable[[dict], None]) -> None:
    """Measure the shipped files on unseen scenes; write figures.json, two contact sheets and the model card."""
    n, seeds = config.n_evaluation, range(1, config.sampling_seeds + 1)
    base, double = unseen(config)
    parts = config.parts_dir or folder
    vae, judge, (clip, tokenizer) = load_vae(folder / "vae"), load_judge(parts / "judge"), load_clip(parts / "clip")
    figures: dict = {"scenes": n, "sampling_seeds": list(seeds), "guidance": GUIDANCE, "steps": STEPS}
    for look, part in {"base": base, "study": pictures("unseen", "study", n, 1.0)}.items():
        images = part.images(range(n))
        decoded = reconstruct(vae, images)
        figures[look] = {
            "vae_foreground_psnr_db": round(foreground_psnr(images, decoded, part.mask), 2),
            "clip_heads": shares(name_by_heads(clip, images), part),
            "clip_zero_shot": shares(zero_shot(clip, tokenizer, images), part),
            "judge": shares(name_pictures(judge, images), part),
            "judge_on_vae": shares(name_pictures(judge, decoded), part),
        }
    pipeline = load_pipeline(folder)
    generated, drawn, pairs = draw_and_name(partial(generate, pipeline), judge, base, double, seeds)
    figures |= generated
    contact_sheet([drawn[rows] for rows in by_kind(base, 10)], folder / "contact_sheet.png")
    contact_sheet([pairs[i : i + 10] for i in range(0, 30, 10)], folder / "contact_sheet_pairs.png")
    models = {"vae": vae, "clip": clip, "judge": judge, "unet": pipeline.unet}
    write_report(figures | facts(models, folder, config.output_dir), model_card, folder, log)


def facts(models: dict[str, nn.Module], folder: Path, run_folder: Path) -> dict:
    """Size of the weights below ``folder``, parameters by model, and how long each model's training took."""
    return {
        "megabytes": round(sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6, 2),
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "seconds_by_model": training_seconds(run_folder / "log.jsonl"),
    }


def write_report(figures: dict, card: Callable[[dict], str], folder: Path, log: Callable[[dict], None]) -> None:
    """The figures as figures.json and as the model card README.md."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "README.md").write_text(card(figures))
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


CHANCE = {name: 1 / len(words) for name, words in VOCABULARY.items()}


def row(name: str, shares: dict[str, float]) -> str:
    """One line of a card's table."""
    return f"| {name} | {' | '.join(f'{shares[k]:.3f}' for k in VOCABULARY)} |"


def model_card(f: dict) -> str:
    """README.md of the weights: command, duration, data, figures, limits."""

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
import torch
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("weights/tiny", add_watermarker=False, dtype=torch.float32)
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
{row("chance", CHANCE)}
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
