"""What a fine-tuning needs, found out before it starts: shards, targets, encoder and base, and whether they belong together."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ttd.config import Plan, UserError
from ttd.data.index import ShardIndex
from ttd.data.targets import TargetTable
from ttd.diffusion.attention import attention_problem, compiler_problem
from ttd.diffusion.base import find_folder, find_missing, load_unet_config, weight_files
from ttd.diffusion.memory import BESIDE, Fitted, count
from ttd.diffusion.targets import identity
from ttd.encoders import read_encoder_facts
from ttd.engine.accelerator import check_launch, fixed_micro_batch, memory_of_rank, world_size
from ttd.engine.run_folder import check_resumable
from ttd.engine.tracking import check_tracking
from ttd.experiments.finetune import FinetuneConfig, FromAlignment
from ttd.experiments.targets import SIZE_IDS


def targets(config: FinetuneConfig) -> list[str]:
    """What each picture needs beside its EEG."""
    return ["clip", "vae", SIZE_IDS, *(["text"] if config.objective.text_weight else [])]


def check(config: FinetuneConfig) -> Plan:
    """Shards, targets, encoder and base must be there and belong together; says what the work will read."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    plan.problems += check_launch(
        config.engine, config.global_batch_size, config.micro_batch_size, averages=config.optim.ema_decay is not None
    )
    plan.problems += check_tracking(config.train.tracking)
    base = config.base
    wrong = (find_missing(base), attention_problem(base.attention), compiler_problem(base.compile))
    plan.problems += [problem for problem in wrong if problem]
    if not config.data.shards.is_dir():
        plan.problems.append(f"data.shards: no folder {config.data.shards}; build it with shards/build_paired.py")
        return plan
    for part in ("train", "validation"):
        try:
            index = ShardIndex.read(config.data.shards / part)
        except UserError as error:
            plan.problems.append(f"data.shards: {error}")
            continue
        if part == "train":
            plan.problems += check_start(config, index)
            plan.notes.append(f"fine-tuning: {index.n_samples} samples of {len(index.subjects)} subjects")
        elif config.samples.n and index.facts.kind == "paired":
            plan.problems += check_pictures(config)
    for name in targets(config):
        folder = config.data.shards / "targets" / name
        if not (folder / "index.json").is_file():
            remedy = f"make them with shards/precompute_targets.py ({name.partition('.')[0]} among its targets)"
            plan.problems.append(f"data.shards: {folder} has no targets; {remedy}")
    plan.problems += [] if plan.problems else other_vae(config)
    for name in ("text_only_steps", "words_share"):
        if getattr(config.objective, name) and not config.objective.text_weight:
            plan.problems.append(f"objective.{name}: needs the base's words; give objective.text_weight")
    place = None if plan.problems else find_folder(base)
    if place is not None:
        size = sum((place / name).stat().st_size for name in weight_files(base)) / 1e9
        updates = f"{config.train.max_steps} updates of {config.global_batch_size} samples"
        part = ", frozen but for its cross-attention" if config.cross_attention else ", frozen"
        plan.notes.append(f"base: {place} ({size:.2f} GB of weights{part}); {updates}")
        try:
            plan.notes.append(cut(config).account)
        except UserError as error:
            plan.problems.append(str(error))
    return plan


def check_pictures(config: FinetuneConfig) -> list[str]:
    """Why there is nothing to stand beside the samples that are drawn while training goes on."""
    folder = config.data.shards / "images"
    if (folder / "index.json").is_file():
        return []
    return [f"samples.n={config.samples.n}: {folder} has no pictures to show beside them; build it, or set samples.n=0"]


def other_vae(config: FinetuneConfig) -> list[str]:
    """Latents of another VAE look alike and mean nothing to this base's UNet."""
    base, made = config.base, config.data.shards / "targets" / "vae"
    source = ShardIndex.read(made).facts.source
    if source.get("model") in (None, identity(str(find_folder(base)), "vae")):
        return []
    named = base.path if Path(base.path).is_dir() or base.revision is None else f"{base.path}@{base.revision}"
    return [
        f"data.shards: {made} was made by another VAE than that of base={base.path}; make it again (in its place): python "
        f"shards/precompute_targets.py shards={config.data.shards} base={named} targets=[vae] image_size={source['image_size']}"
    ]


def cut(config: FinetuneConfig) -> Fitted:
    """Samples per pass and gradient checkpointing: given, or chosen so that they fit into the memory of a rank.

    Raises:
        UserError: not one sample fits.
    """
    gpu = torch.cuda.is_available()
    model = count(
        load_unet_config(config.base),
        config.lora,
        dtype=getattr(torch, config.base.dtype) if gpu else torch.float32,
        beside=BESIDE if gpu else 0,
        size=TargetTable.read(config.data.shards / "targets" / "vae").shape[-1],
        n_tokens=config.conditioner.n_queries,
        cross_attention=config.cross_attention,
    )
    return model.fit(
        memory_of_rank(),
        share=max(1, config.global_batch_size // world_size()),
        micro=fixed_micro_batch(config.micro_batch_size),
        checkpointing=config.objective.gradient_checkpointing,
    )


def check_start(config: FinetuneConfig, index: ShardIndex) -> list[str]:
    """Why the encoder that training starts from cannot read these shards."""
    start = config.start
    source = start.run if isinstance(start, FromAlignment) else start.pretrained
    if source is None:
        return []
    where = "start.run" if isinstance(start, FromAlignment) else "start.pretrained"
    try:
        facts = read_encoder_facts(source / "export" / "encoder")
    except UserError as error:
        return [f"{where}: {error}"]
    problems = []
    if facts["sfreq"] != index.sfreq:
        problems.append(
            f"{where}: the encoder was trained at {facts['sfreq']:g} Hz, the shards are at {index.sfreq:g} Hz"
        )
    if isinstance(start, FromAlignment):
        target = json.loads((source / "export" / "clip_head" / "config.json").read_text())["target"]
        if target != "clip":
            problems.append(f"{where}: was aligned with the target {target}, fine-tuning compares with clip")
        if facts["n_times"] != index.n_times:
            problems.append(f"{where}: the encoder reads {facts['n_times']} samples, the shards hold {index.n_times}")
        if facts["ch_names"] != index.ch_names:
            odd = sorted(set(facts["ch_names"]) ^ set(index.ch_names))
            problems.append(
                f"{where}: encoder and shards differ in electrodes or their order ({', '.join(odd) or 'order'})"
            )
    return [f"{problem}; align on these shards first" for problem in problems]
