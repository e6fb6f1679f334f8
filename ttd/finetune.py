"""Finetune the conditioning bridge and LoRA adapters of SDXL or Stable Diffusion 1.5 on paired EEG–image shards.

    accelerate launch --config_file launch/zero2.yaml ttd/finetune.py \\
        --config configs/finetune/sdxl_lora_gifford2022.yaml

Run the same command again to resume. The state with the lowest diffusion loss on the validation part is exported to
export/: encoder, clip_head, bridge, unet_lora (as diffusers reads it) or cross_attention, pipeline.json (what
``ttd.EEGToImagePipeline`` needs to know of EEG and base) and a model card.
"""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import torch

from ttd.bridge.conditioner import EEGConditioner, save_bridge
from ttd.bridge.heads import ClipHead
from ttd.config import UserError, run
from ttd.data.covariance import noise_covariance
from ttd.data.index import ShardIndex
from ttd.data.quarantine import guards_data
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, Stream, evaluation_batches, kept_rows, open_reader
from ttd.data.targets import TargetTable
from ttd.diffusion.attention import compile_blocks, set_attention
from ttd.diffusion.base import (
    Base,
    load_base,
    measured_hashes,
)
from ttd.diffusion.cross_attention import save_cross_attention, train_cross_attention
from ttd.diffusion.lora import add_lora, save_lora
from ttd.diffusion.text_targets import split_states
from ttd.encoders import build_encoder, load_encoder
from ttd.engine.accelerator import make_accelerator
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.loop import TrainResult, mean_losses, train
from ttd.engine.tracking import talk
from ttd.experiments.finetune import FinetuneConfig, FromAlignment
from ttd.experiments.finetune_plan import check, cut, targets
from ttd.experiments.model_card import model_card
from ttd.experiments.pipeline import describe_export
from ttd.objectives.conditional_diffusion import ConditionalDiffusion
from ttd.objectives.contrastive import Aligned, Contrastive, ContrastiveConfig, TargetSpace, load_aligned, save_aligned
from ttd.objectives.sample_grid import SampleGrid
from ttd.pages.card import intended_use_markdown
from ttd.seeding import key

log = logging.getLogger("ttd.finetune")


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
    trained = {"unet_lora": add_lora(base.unet, config.lora)}
    if config.cross_attention:
        trained["unet_cross_attention"] = train_cross_attention(base.unet)
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
    counts = conditioner.count_trainable() | trained
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
    n_queries = config.conditioner.n_queries
    if context.shape[1] != n_queries:
        raise UserError(
            f"conditioner: n_queries={n_queries}: the base's captions have {context.shape[1]} tokens, and "
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
    if config.cross_attention:
        save_cross_attention(objective.unet, aside / "cross_attention")
    if index.montage is None:
        base = config.base.model_copy(update={"sha256": measured_hashes(config.base)})
        describe_export(
            aside, base=base, adapters=bool(config.lora.rank), cross_attention=config.cross_attention, index=index,
            picture_size=picture_size(config, objective.base),
        )  # fmt: skip
    else:
        log.warning("export: no pipeline.json, for several caps have no one set of channel statistics")
    (aside / "README.md").write_text(f"{model_card(config, index, result)}\n{intended_use_markdown()}\n")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


if __name__ == "__main__":
    run(main, FinetuneConfig, doc=__doc__, check=check)
