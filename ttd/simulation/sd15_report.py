"""The model card of the tiny Stable Diffusion 1.5: its pictures of unseen scenes as ``base_report`` measures SDXL's.

Samplers are those of ``ttd/diffusion/sampler.py``, as Stable Diffusion 1.5 is published with: PLMS (Liu et al., 2022,
arXiv:2202.09778), which the folder holds, and DDIM (Song et al., 2021, arXiv:2010.02502).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch
from PIL import Image
from torch import Tensor

from ttd.diffusion.sampler import KINDS
from ttd.experiments.train_base import TrainBaseConfig
from ttd.simulation.base_data import pictures
from ttd.simulation.base_report import (
    CHANCE,
    by_kind,
    contact_sheet,
    draw_and_name,
    facts,
    generate,
    row,
    shares,
    unseen,
    write_report,
)
from ttd.simulation.judge import load_judge, name_pictures
from ttd.simulation.tiny_sd15 import load_pipeline
from ttd.simulation.tiny_vae import reconstruct

SAMPLERS = {"plms": "PLMS", "ddim": "DDIM"}
STEPS = 50  # the pipeline's own default, and PLMS and DDIM need more than DPM++
GUIDANCES = (2.0, 4.0, 7.5)  # 7.5 is the pipeline's default
GUIDANCE = 4.0  # that of the SDXL base; the card has the comparison it was confirmed by
N_GUIDANCE = 60  # scenes of that comparison, half with two solids; none of them is one of the figures'


@torch.no_grad()
def report(config: TrainBaseConfig, folder: Path, *, log: Callable[[dict], None]) -> None:
    """Measure the shipped files on unseen scenes; write figures.json, a contact sheet and the model card."""
    n, seeds = config.n_evaluation, range(1, config.sampling_seeds + 1)
    pipeline, judge = load_pipeline(folder), load_judge((config.parts_dir or folder) / "judge")

    def draw(sampler: str, captions: list[str], seed: int, guidance: float = GUIDANCE) -> Tensor:
        kind, options = KINDS[sampler]
        pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **options)
        return generate(pipeline, captions, seed, guidance, STEPS)

    figures: dict = {"scenes": n, "sampling_seeds": list(seeds), "guidance": GUIDANCE, "steps": STEPS}
    figures |= {"training_scenes": config.data.n_base, "guidance_scenes": N_GUIDANCE}
    trial = pictures("guidance", "base", N_GUIDANCE, 0.5)
    figures["by_guidance"] = {
        str(g): shares(name_pictures(judge, draw("plms", trial.captions, 0, g)), trial) for g in GUIDANCES
    }
    single, double = unseen(config)
    for name, part in {"one_solid": single, "two_solids": double}.items():
        decoded = reconstruct(pipeline.vae, part.images(range(n)))
        figures[f"judge_on_vae_{name}"] = shares(name_pictures(judge, decoded), part)
    for sampler in SAMPLERS:
        figures[sampler], drawn, pairs = draw_and_name(partial(draw, sampler), judge, single, double, seeds)
        if sampler == "plms":
            rows = [drawn[some] for some in by_kind(single, 6)] + [pairs[:6], pairs[6:12]]
            # Doubled pixels: a smooth enlargement takes a third more bytes.
            contact_sheet(rows, folder / "contact_sheet.png", Image.Resampling.NEAREST)
    models = {"unet": pipeline.unet, "text encoder": pipeline.text_encoder, "vae": pipeline.vae}
    write_report(figures | facts(models, folder, config.output_dir), model_card, folder, log)


def model_card(f: dict) -> str:
    """README.md of the weights: command, duration, data, figures, limits."""
    parameters = ", ".join(f"{k} {v:,}" for k, v in f["parameters"].items())
    guidances = "\n".join(row(f"guidance {g}", s) for g, s in f["by_guidance"].items())
    generated = "\n".join(
        row(f"judge, {words}, {label}", f[sampler][key])
        for key, words in {
            "generated_one_solid": "**generated, one solid**",
            "generated_two_solids": "generated, two solids",
            "control_captions_shuffled": "control: generated, captions shuffled",
        }.items()
        for sampler, label in SAMPLERS.items()
    )
    return f"""---
license: mit
library_name: diffusers
---
# Tiny Stable Diffusion 1.5 of the demo

A Stable Diffusion folder for 64-pixel pictures of coloured solids on a table, with the interface of version 1.5: one text
encoder, no pooled condition, cross-attention on every level of the UNet but the lowest, ε-prediction. VAE and text encoder are
those of `weights/tiny` (the text tower of its `clip/`), and so is the judge behind the figures. Everything is procedural: **no
photograph, no person and no downloaded weight is in it**, and it knows nothing but these solids.

- **Commands**: `python ttd/train_base.py --config configs/base/tiny_sd15.yaml`, after `configs/base/tiny.yaml` has made VAE, CLIP
  and judge
- **Duration**: {f["seconds_by_model"]["unet"] / 60:.0f} minutes of one thread on a shared machine for the UNet
- **Data**: {f["training_scenes"]:,} scenes of one or two solids in the base look, 6 kinds x 8 colours x 2 sizes x 3 places; VAE
  and text encoder have seen another look too
- **Parameters**: {parameters}; {f["megabytes"]} MB of half-precision safetensors
- **License**: MIT

```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("weights/tiny_sd15", dtype=torch.float32)
pipeline("a large red cone left", height=64, width=64, guidance_scale={f["guidance"]}).images[0]
```

As the base of a finetuning: `base: {{name: sd15, path: weights/tiny_sd15}}`.

![one solid by kind, two solids](contact_sheet.png)

Rows: sphere, box, cylinder, cone, torus, capsule, and two rows of two solids; unseen scenes, first seed, PLMS, not selected.

## Figures

{f["scenes"]} unseen scenes (their captions occur in training), the shipped half-precision files, mean of
{len(f["sampling_seeds"])} sampling seeds, guidance {f["guidance"]}, {f["steps"]} steps.

| named right | kind | colour | size | place |
|---|---|---|---|---|
{row("chance", CHANCE)}
{row("judge, VAE reconstructions, one solid", f["judge_on_vae_one_solid"])}
{row("judge, VAE reconstructions, two solids", f["judge_on_vae_two_solids"])}
{generated}

With two solids, kind, colour, size and place are those of the one with more visible pixels.

Guidance {f["guidance"]} is that of the SDXL base. It was kept after a comparison on {f["guidance_scenes"]} scenes that are not
those above, half of them with two solids (PLMS, one other seed):

| named right | kind | colour | size | place |
|---|---|---|---|---|
{guidances}

## Limits

Tiny, and procedural scenes only: what it shows of a method says nothing about photographs. The UNet has seen the base look alone.
All captions occur in training, so nothing here shows that new combinations work. The judge is a classifier and accepts distorted
solids: look at the contact sheet. bfloat16 in training gives other bits on other processors.
"""
