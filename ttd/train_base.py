"""Train the demo's base models on procedural scenes: VAE, CLIP, judge and UNet, saved in the formats of ``from_pretrained``.

    python ttd/train_base.py --config configs/base/tiny.yaml

One CPU thread, an hour or two; run the same command again to resume. ``stages=[unet,report]`` repeats a part. The model card
with the figures goes to README.md of ``export_dir``. The lifter is trained by ttd/train_lift.py.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import torch

from ttd.config import Plan, run
from ttd.experiments.train_base import TrainBaseConfig
from ttd.simulation import base_report, tiny_clip, tiny_unet, tiny_vae
from ttd.simulation.base_data import pictures
from ttd.simulation.fit import fit
from ttd.simulation.judge import Judge, JudgeLoss, save_judge
from ttd.untrusted.weights import write_sums

STAGES = ("vae", "clip", "judge", "unet", "report")


def check(config: TrainBaseConfig) -> Plan:
    """Unknown stages, and what the run costs."""
    problems = [f"stages: unknown stage {s!r}; known: {', '.join(STAGES)}" for s in config.stages if s not in STAGES]
    notes = ["about 0.5 GB in the run folder, 25 MB of weights; one to two hours of one CPU thread"]
    return Plan(problems, notes)


def main(config: TrainBaseConfig) -> None:
    torch.manual_seed(config.seed)  # initial weights alone; batches and noise are keyed by step
    folder, export, seed = config.output_dir, config.export_dir, config.seed
    folder.mkdir(parents=True, exist_ok=True)

    def log(row: dict) -> None:
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), **row}) + "\n")

    data = config.data
    base = pictures("train", "base", data.n_base, data.single_fraction, folder / "pictures")
    study = pictures("train", "study", data.n_study, data.single_fraction, folder / "pictures")

    if "vae" in config.stages:
        vae = tiny_vae.make_vae()
        loss = tiny_vae.VaeLoss(vae, [base, study], batch_size=config.vae.batch_size, steps=config.vae.steps, seed=seed)
        vae = fit("vae", vae, loss, config.vae, folder, log=log)
        vae.register_to_config(scaling_factor=round(tiny_vae.latent_scale(vae, base.images(range(1000))), 4))
        tiny_vae.narrow_posterior(vae)
        base_report.save_half(vae, export / "vae")
        write_sums(export)
    if "clip" in config.stages:
        tokenizer = tiny_clip.make_tokenizer()
        clip = tiny_clip.ClipWithHeads(tiny_clip.make_clip(tokenizer))
        clip_loss = tiny_clip.ClipLoss(clip, tokenizer, [base, study], batch_size=config.clip.batch_size, seed=seed)
        fit("clip", clip, clip_loss, config.clip, folder, log=log)
        tiny_clip.save_clip(export / "clip", clip, tokenizer)
        write_sums(export)
    if "judge" in config.stages:
        vae, judge = base_report.load_vae(export / "vae"), Judge()
        judge_loss = JudgeLoss(
            judge,
            [base, study],
            decode=partial(tiny_vae.reconstruct, vae),
            batch_size=config.judge.batch_size,
            seed=seed,
        )
        fit("judge", judge, judge_loss, config.judge, folder, log=log)
        save_judge(export / "judge", judge)
        write_sums(export)
    if "unet" in config.stages:
        vae, tokenizer = base_report.load_vae(export / "vae"), tiny_clip.load_clip(export / "clip")[1]
        latents = base_report.encode(vae, base)
        model = tiny_unet.TextToLatents(tokenizer, base_report.load_text_encoder_2(export / "clip"))
        unet_loss = tiny_unet.UnetLoss(
            model, tokenizer, latents, base.captions, batch_size=config.unet.batch_size, seed=seed
        )
        fit("unet", model, unet_loss, config.unet, folder, log=log)
        base_report.save_pipeline(export, model, vae, tokenizer)
        write_sums(export)
    if "report" in config.stages:
        base_report.report(config, Path(export), log=log)


if __name__ == "__main__":
    run(main, TrainBaseConfig, doc=__doc__, check=check)
