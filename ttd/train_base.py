"""Train the demo's base models on procedural scenes: VAE, CLIP, judge and UNet, saved in the formats of ``from_pretrained``.

    python ttd/train_base.py --config configs/base/tiny.yaml       # all four, the UNet with SDXL's interface
    python ttd/train_base.py --config configs/base/tiny_sd15.yaml  # a UNet with Stable Diffusion 1.5's, on the same VAE and CLIP

An hour or two of one CPU thread (``--dry-run`` says how long); run the same command again to resume. ``stages=[unet,report]``
repeats a part. The model card with the figures goes to README.md of ``export_dir``. The lifter is trained by ttd/train_lift.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

import torch

from ttd.config import Plan, run
from ttd.experiments.train_base import TrainBaseConfig
from ttd.simulation import base_report, sd15_report, tiny_clip, tiny_sd15, tiny_unet, tiny_vae
from ttd.simulation.base_data import Pictures, pictures
from ttd.simulation.fit import fit
from ttd.simulation.judge import Judge, JudgeLoss, save_judge
from ttd.untrusted.weights import find_tampered, write_sums

WEIGHTS = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "clip": "clip/model.safetensors",
    "judge": "judge/model.safetensors",
}
"""The parts that other stages build on, by the stage that trains them."""
NEEDS = {"judge": {"vae"}, "unet": {"vae", "clip"}, "report": {"vae", "clip", "judge"}}
STAGES = (*WEIGHTS, "unet", "report")
PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "sd15": "StableDiffusionPipeline"}

# Measured on one thread of a shared core, runs/base*/log.jsonl: seconds per update, and per picture of the report.
UPDATE_S = {"vae": 0.54, "clip": 0.98, "judge": 0.16, "unet sdxl": 0.27, "unet sd15": 0.41}
PICTURE_S = {"sdxl": 0.14, "sd15": 1.2}  # of Stable Diffusion 1.5 each is drawn by two samplers in 50 steps
RENDER_S = 0.005
STATE_MB = {"vae": 11, "clip": 19, "judge": 3, "unet sdxl": 72, "unet sd15": 32}
WEIGHTS_MB = {"vae": 1.4, "clip": 2.4, "judge": 0.3, "unet sdxl": 9.4, "unet sd15": 5.8}
PICTURE_MB = 64 * 64 * 4 / 1e6  # colours and mask, one byte each


def check(config: TrainBaseConfig) -> Plan:
    """What the stages lack or would overwrite, and what the run costs."""
    stages, folder = set(config.stages), config.parts_dir or config.export_dir
    problems = [f"stages: unknown stage {s!r}; known: {', '.join(STAGES)}" for s in config.stages if s not in STAGES]
    trained = [s for s in WEIGHTS if s in stages]
    if trained and config.base == "sd15":
        problems.append(
            f"stages: {', '.join(trained)}: base=sd15 takes them from parts_dir; train them with configs/base/tiny.yaml"
        )
    elif trained and config.parts_dir:
        problems.append(
            f"parts_dir={config.parts_dir}: stages {', '.join(trained)} train what it stands for; leave it out"
        )
    needed = set().union(*(NEEDS.get(stage, set()) for stage in stages)) - set(trained)
    files = [folder / path for part, path in WEIGHTS.items() if part in needed]
    absent = [str(path.relative_to(folder)) for path in files if not path.is_file()]
    if absent:
        remedy = "give the folder that has them as parts_dir, or train them with configs/base/tiny.yaml"
        problems.append(
            f"{'parts_dir' if config.parts_dir else 'export_dir'}={folder}: lacks {', '.join(absent)}; {remedy}"
        )
    tampered = find_tampered(folder, [path for path in files if path.is_file()])
    if tampered:
        problems.append(tampered)
    index, wanted = config.export_dir / "model_index.json", PIPELINES[config.base]
    found = json.loads(index.read_text())["_class_name"] if index.is_file() else None
    if found not in (None, wanted):
        problems.append(
            f"export_dir={config.export_dir}: holds a {found}, base={config.base} makes a {wanted}; give another"
        )
    elif found is None and "report" in stages and "unet" not in stages:
        problems.append(f"export_dir={config.export_dir}: no pipeline to report on; add the stage unet")
    return Plan(problems, [] if problems else [cost(config)])


def cost(config: TrainBaseConfig) -> str:
    """One sentence: disk and time of the stages from the start."""
    data, seconds, run_mb, weights_mb = config.data, 0.0, 0.0, 0.0
    looks = {"base": set(config.stages) - {"report"}, "study": set(config.stages) & set(WEIGHTS)}
    for n in (data.n_base if looks["base"] else 0, data.n_study if looks["study"] else 0):
        seconds, run_mb = seconds + n * RENDER_S, run_mb + n * PICTURE_MB
    for stage in set(config.stages) - {"report"}:
        name = f"unet {config.base}" if stage == "unet" else stage
        seconds += getattr(config, stage).steps * UPDATE_S[name]
        run_mb, weights_mb = run_mb + STATE_MB[name], weights_mb + WEIGHTS_MB[name]
    if "report" in config.stages:
        seconds += 2 * config.n_evaluation * config.sampling_seeds * PICTURE_S[config.base]
    disk = f"about {run_mb:.0f} MB in {config.output_dir}, {weights_mb:.1f} MB of weights in {config.export_dir}; "
    duration = f"about {seconds / 60:.0f} minutes of one CPU thread"
    return f"{disk}{duration}, less where an earlier run is gone on with" if run_mb else duration


def main(config: TrainBaseConfig) -> None:
    torch.manual_seed(config.seed)  # initial weights alone; batches and noise are keyed by step
    folder, data = config.output_dir, config.data
    folder.mkdir(parents=True, exist_ok=True)

    def log(row: dict) -> None:
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), **row}) + "\n")

    def render(look: str, n: int) -> Pictures:
        return pictures("train", look, n, data.single_fraction, folder / "pictures")

    if not set(WEIGHTS).isdisjoint(config.stages):
        train_parts(config, [render("base", data.n_base), render("study", data.n_study)], log=log)
    if "unet" in config.stages:
        train_unet(config, render("base", data.n_base), log=log)
    if "report" in config.stages:
        report = sd15_report.report if config.base == "sd15" else base_report.report
        report(config, config.export_dir, log=log)


def train_parts(config: TrainBaseConfig, looks: list[Pictures], *, log: Callable[[dict], None]) -> None:
    """VAE, CLIP and judge, on both looks."""
    folder, export, seed = config.output_dir, config.export_dir, config.seed
    if "vae" in config.stages:
        vae = tiny_vae.make_vae()
        loss = tiny_vae.VaeLoss(vae, looks, batch_size=config.vae.batch_size, steps=config.vae.steps, seed=seed)
        vae = fit("vae", vae, loss, config.vae, folder, log=log)
        scale = tiny_vae.latent_scale(vae, looks[0].images(range(1000)))
        vae.register_to_config(scaling_factor=round(scale, 4))
        tiny_vae.narrow_posterior(vae)
        base_report.save_half(vae, export / "vae")
        write_sums(export)
    if "clip" in config.stages:
        tokenizer = tiny_clip.make_tokenizer()
        clip = tiny_clip.ClipWithHeads(tiny_clip.make_clip(tokenizer))
        clip_loss = tiny_clip.ClipLoss(clip, tokenizer, looks, batch_size=config.clip.batch_size, seed=seed)
        fit("clip", clip, clip_loss, config.clip, folder, log=log)
        tiny_clip.save_clip(export / "clip", clip, tokenizer)
        write_sums(export)
    if "judge" in config.stages:
        decode, judge = partial(tiny_vae.reconstruct, base_report.load_vae(export / "vae")), Judge()
        judge_loss = JudgeLoss(judge, looks, decode=decode, batch_size=config.judge.batch_size, seed=seed)
        fit("judge", judge, judge_loss, config.judge, folder, log=log)
        save_judge(export / "judge", judge)
        write_sums(export)


def train_unet(config: TrainBaseConfig, base: Pictures, *, log: Callable[[dict], None]) -> None:
    """The UNet, on the latents of the base look; writes the whole pipeline."""
    parts = config.parts_dir or config.export_dir
    vae, tokenizer = base_report.load_vae(parts / "vae"), tiny_clip.load_clip(parts / "clip")[1]
    tiny = tiny_sd15 if config.base == "sd15" else tiny_unet
    model = tiny.make_model(tokenizer, parts / "clip")
    loss = tiny_unet.UnetLoss(
        model, tiny.make_scheduler(), tokenizer, base_report.encode(vae, base), base.captions,
        batch_size=config.unet.batch_size, seed=config.seed,
    )  # fmt: skip
    fit("unet", model, loss, config.unet, config.output_dir, log=log)
    tiny.save_pipeline(config.export_dir, model, vae, tokenizer)
    write_sums(config.export_dir)


if __name__ == "__main__":
    run(main, TrainBaseConfig, doc=__doc__, check=check)
