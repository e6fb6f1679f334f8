"""Finetune the conditioning bridge and SDXL's LoRA adapters on paired EEG–image shards.

    accelerate launch --config_file launch/zero2.yaml ttd/finetune.py \\
        --config configs/finetune/sdxl_lora_gifford2022.yaml

Run the same command again to resume. The state with the lowest diffusion loss on the validation part is exported to
export/: encoder, clip_head, bridge, unet_lora (as diffusers reads it), pipeline.json (what ``ttd.EEGToImagePipeline``
needs to know of EEG and base) and a model card.
"""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import torch

from ttd.bridge.conditioner import EEGConditioner, save_bridge
from ttd.bridge.heads import ClipHead
from ttd.config import Plan, UserError, run
from ttd.data.covariance import noise_covariance
from ttd.data.index import ShardIndex
from ttd.data.quarantine import guards_data
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, Stream, evaluation_batches, kept_rows, open_reader
from ttd.data.targets import TargetTable
from ttd.diffusion.attention import attention_problem, compile_blocks, compiler_problem, set_attention
from ttd.diffusion.lora import add_lora, save_lora
from ttd.diffusion.memory import BESIDE, Fitted, count
from ttd.diffusion.sdxl import (
    Base,
    find_folder,
    find_missing,
    load_base,
    load_unet_config,
    measured_hashes,
    weight_files,
)
from ttd.diffusion.text_targets import split_states
from ttd.encoders import build_encoder, load_encoder, read_encoder_facts
from ttd.engine.accelerator import check_launch, fixed_micro_batch, make_accelerator, memory_of_rank, world_size
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.loop import TrainResult, mean_losses, train
from ttd.engine.run_folder import check_resumable
from ttd.engine.tracking import check_tracking, talk
from ttd.experiments.finetune import FinetuneConfig, FromAlignment
from ttd.experiments.model_card import model_card
from ttd.experiments.pipeline import describe_export
from ttd.experiments.targets import SIZE_IDS
from ttd.objectives.conditional_diffusion import ConditionalDiffusion
from ttd.objectives.contrastive import Aligned, Contrastive, ContrastiveConfig, TargetSpace, load_aligned, save_aligned
from ttd.objectives.sample_grid import SampleGrid
from ttd.pages.card import intended_use_markdown
from ttd.seeding import key

log = logging.getLogger("ttd.finetune")


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
    for name in ("text_only_steps", "words_share"):
        if getattr(config.objective, name) and not config.objective.text_weight:
            plan.problems.append(f"objective.{name}: needs the base's words; give objective.text_weight")
    place = None if plan.problems else find_folder(base)
    if place is not None:
        size = sum((place / name).stat().st_size for name in weight_files(base)) / 1e9
        updates = f"{config.train.max_steps} updates of {config.global_batch_size} samples"
        plan.notes.append(f"base: {place} ({size:.2f} GB of weights, frozen); {updates}")
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
        n_tokens=config.conditioner.resampler.n_queries,
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


@guards_data
def main(config: FinetuneConfig) -> None:
    talk()
    fitted = cut(config)
    accelerator = make_accelerator(
        config.engine, global_batch_size=config.global_batch_size, micro_batch_size=fitted.micro
    )
    data = config.data.model_copy(update={"targets": targets(config)})
    reader, held_out = open_reader(data, part="train"), open_reader(data, part="validation")
    objective = build(config, reader.index, device=accelerator.device, checkpointing=fitted.checkpointing)
    stream = Stream(
        reader,
        data,
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        micro_batch_size=accelerator.ttd.micro,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    result = train(
        accelerator,
        objective,
        config.optim,
        stream,
        config.train,
        config.output_dir,
        resolved=config,
        seed=config.seed,
        fingerprint=stream.fingerprint,
        validate=lambda module: mean_losses(
            module, evaluation_batches(held_out, data, accelerator.ttd.micro), accelerator.device
        ),
        draw=sample_grid(config, held_out, data, objective.base),
    )
    if accelerator.is_main_process:
        load_weights(step_folder(config.output_dir, result.best_step), objective)
        export(config, objective, reader.index, result)
        print(f"{config.output_dir / 'export'}: step {result.best_step}, {result.metrics}")


def build(
    config: FinetuneConfig, index: ShardIndex, *, device: torch.device, checkpointing: bool
) -> ConditionalDiffusion:
    """The module to train: conditioner, UNet with adapters, losses; its counts are asserted and logged."""
    torch.manual_seed(key(config.seed, "finetune start"))
    base: Base = load_base(config.base, device=device, with_vae=config.samples.n > 0)
    n_lora = add_lora(base.unet, config.lora)
    live = set_attention(base.unet, config.base.attention)
    if config.base.compile:
        live += f", {compile_blocks(base.unet)} blocks compiled at their first use"
    table = TargetTable.read(config.data.shards / "targets" / "clip")
    seen = np.unique(index.column("image_sha256"))
    bank = torch.from_numpy(table.array(seen))  # [K, F]
    text_bank = text_states(config, seen, base) if config.objective.text_weight else None
    aligned = starting_point(config, index, bank)
    conditioner = EEGConditioner.build(
        config.conditioner,
        encoder=aligned.encoder,
        clip_head=aligned.head,
        context_dim=base.context_dim,
        pooled_dim=base.pooled_dim,
    )
    counts = conditioner.count_trainable() | {"unet_lora": n_lora}
    log.info("trainable: %s; attention: %s", ", ".join(f"{name} {n:,}" for name, n in counts.items()), live)
    objective = ConditionalDiffusion(
        config.objective.model_copy(update={"gradient_checkpointing": checkpointing}),
        conditioner=conditioner,
        base=base,
        space=aligned.space,
        bank=bank,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        text_bank=text_bank,
    )
    assert sum(p.numel() for p in objective.parameters() if p.requires_grad) == sum(counts.values())
    return objective


def picture_size(config: FinetuneConfig, base: Base) -> int:
    """Pixels along a side of the pictures whose latents are trained on."""
    return TargetTable.read(config.data.shards / "targets" / "vae").shape[-1] * base.vae_factor


def sample_grid(config: FinetuneConfig, held_out: ShardReader, data: DataConfig, base: Base) -> SampleGrid | None:
    """What is drawn at every validation: samples from all over the validation part, at the size that is trained."""
    if not config.samples.n:
        return None
    rows = kept_rows(held_out.index, data.leave_out)
    rows = rows[np.linspace(0, len(rows) - 1, min(config.samples.n, len(rows))).astype(int)]
    shown = data.model_copy(update={"targets": [], "picture_size": picture_size(config, base)})
    (batch,) = evaluation_batches(held_out, shown, len(rows), indices=rows)
    seeds = [key(config.seed, "sample grid", int(row)) for row in rows]
    return SampleGrid(config.samples.sampler, eeg=batch["eeg"], shown=batch["picture"], seeds=seeds)


def text_states(config: FinetuneConfig, shas: np.ndarray, base: Base) -> torch.Tensor:
    """The base's words [K, L·D + P] for the training pictures.

    Raises:
        UserError: they are another base's, or the bridge has another number of tokens.
    """
    states = torch.from_numpy(TargetTable.read(config.data.shards / "targets" / "text").array(shas))
    try:
        context, _ = split_states(states[:1], context_dim=base.context_dim, pooled_dim=base.pooled_dim)
    except ValueError as error:
        raise UserError(f"data.shards: target text: {error}; make it again with this base") from error
    n_queries = config.conditioner.resampler.n_queries
    if context.shape[1] != n_queries:
        raise UserError(
            f"conditioner.resampler.n_queries={n_queries}: the base's captions have {context.shape[1]} tokens, and "
            f"objective.text_weight compares them one by one; give {context.shape[1]}"
        )
    return states


def starting_point(config: FinetuneConfig, index: ShardIndex, bank: torch.Tensor) -> Aligned:
    """Encoder, CLIP head and the space of the targets: alignment's, or new ones."""
    start = config.start
    if isinstance(start, FromAlignment):
        aligned = load_aligned(start.run / "export")
        if aligned.head.clip_dim != bank.shape[1]:
            raise UserError(
                f"start.run: the CLIP head gives {aligned.head.clip_dim} numbers, the target clip has {bank.shape[1]}; "
                "align with the same CLIP"
            )
        return aligned
    names, sfreq, n_times = index.ch_names, index.sfreq, index.n_times
    if start.pretrained is not None:
        folder = start.pretrained / "export" / "encoder"
        encoder = load_encoder(folder, ch_names=names, sfreq=sfreq, n_times=n_times)
    else:
        encoder = build_encoder(start.encoder, ch_names=names, sfreq=sfreq, n_times=n_times)
        if start.encoder.whiten:
            encoder.set_noise_covariance(torch.from_numpy(noise_covariance(ShardReader(index))))
    clip_dim = bank.shape[1]
    head = ClipHead(start.clip_head, embed_dim=encoder.embed_dim, n_tokens=encoder.n_tokens, clip_dim=clip_dim)
    return Aligned(encoder, head, TargetSpace.fit(bank, "centred"), "clip", "centred")


def export(config: FinetuneConfig, objective: ConditionalDiffusion, index: ShardIndex, result: TrainResult) -> None:
    """Write export/, whole or absent: what ``ttd/generate.py`` and ``ttd.EEGToImagePipeline`` read."""
    aside, folder = config.output_dir / ".export", config.output_dir / "export"
    shutil.rmtree(aside, ignore_errors=True)
    conditioner = objective.conditioner
    facts = {"target_space": "centred"}
    if isinstance(config.start, FromAlignment):
        facts = json.loads((config.start.run / "export" / "clip_head" / "config.json").read_text())
    aligned = ContrastiveConfig.model_validate(
        {"head": conditioner.clip_head.config, "target_space": facts["target_space"]}
    )
    head = conditioner.clip_head
    save_aligned(aside, Contrastive(aligned, encoder=conditioner.encoder, head=head, space=objective.space))
    save_bridge(aside / "bridge", conditioner.bridge)
    if config.lora.rank:
        save_lora(objective.unet, aside / "unet_lora")
    if index.montage is None:
        base = config.base.model_copy(update={"sha256": measured_hashes(config.base)})
        describe_export(
            aside, base=base, adapters=bool(config.lora.rank), index=index,
            picture_size=picture_size(config, objective.base),
        )  # fmt: skip
    else:
        log.warning("export: no pipeline.json, for several caps have no one set of channel statistics")
    (aside / "README.md").write_text(f"{model_card(config, index, result)}\n{intended_use_markdown()}\n")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


if __name__ == "__main__":
    run(main, FinetuneConfig, doc=__doc__, check=check)
