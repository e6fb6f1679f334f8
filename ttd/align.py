"""Align an EEG encoder with CLIP's image embeddings on paired shards.

    accelerate launch ttd/align.py --config configs/align/demo.yaml

Run the same command again to resume. The state with the best retrieval on the validation part is exported to export/:
encoder and clip_head, with the space in which cosines are to be taken.
"""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from ttd.bridge.heads import ClipHead
from ttd.bridge.linear_readout import LinearReadout
from ttd.config import Plan, UserError, run
from ttd.data.covariance import noise_covariance
from ttd.data.index import ShardIndex
from ttd.data.quarantine import guards_data
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, Stream, evaluation_batches, kept_rows, open_reader
from ttd.data.targets import TargetTable
from ttd.encoders import build_encoder, load_encoder, read_encoder_facts
from ttd.encoders.subjects import SubjectLayers
from ttd.engine.accelerator import check_launch, make_accelerator, micro_batch, world_size
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.loop import TrainResult, train
from ttd.engine.run_folder import check_resumable
from ttd.engine.tracking import check_tracking, talk
from ttd.experiments.align import AlignConfig
from ttd.metrics.retrieval import chance, top_k_in_random_galleries
from ttd.objectives.contrastive import Contrastive, TargetSpace, save_aligned
from ttd.pages.card import intended_use_markdown
from ttd.seeding import key

log = logging.getLogger("ttd.align")


def check(config: AlignConfig) -> Plan:
    """Shards, targets and the pretrained encoder must be there and belong together; accumulation is refused."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    launch = check_launch(
        config.engine, config.global_batch_size, config.micro_batch_size, averages=config.optim.ema_decay is not None
    )
    plan.problems += launch + check_tracking(config.train.tracking)
    world = world_size()
    at_once = 0 if launch else micro_batch(config.global_batch_size, config.micro_batch_size, world) * world
    if not launch and at_once != config.global_batch_size:
        plan.problems.append(
            f"global_batch_size={config.global_batch_size} on {world} ranks would be accumulated over passes of "
            f"{at_once}: alignment compares only the samples of one pass; give global_batch_size={at_once}, more "
            "processes, or a larger micro_batch_size"
        )
    if config.data.also or config.data.montage:
        plan.problems.append("data.also, data.montage: several caps in one run are for pretraining (ttd/pretrain.py)")
    targets = config.data.shards / "targets" / config.objective.target
    if not (targets / "index.json").is_file():
        plan.problems.append(f"data.shards: {targets} has no targets; make them with shards/precompute_targets.py")
    elif len(shape := TargetTable.read(targets).shape) != 1:
        plan.problems.append(
            f"objective.target={targets.name}: one embedding per picture is needed, this target is {list(shape)}; "
            "make a pooled or -mean one with shards/precompute_targets.py"
        )
    for part in (config.data.part, "validation"):
        try:
            index = ShardIndex.read(config.data.shards / part)
        except UserError as error:
            plan.problems.append(f"data.shards: {error}")
            continue
        try:
            kept = kept_rows(index, config.data.leave_out)
        except UserError as error:
            plan.problems.append(str(error))
            continue
        if part != config.data.part:
            continue
        plan.problems += check_encoder(config, index)
        epoch_ms = index.n_times / index.sfreq * 1000
        if (config.objective.linear_ms or 0) > epoch_ms:
            plan.problems.append(
                f"objective.linear_ms={config.objective.linear_ms:g}: longer than the epochs, {epoch_ms:g} ms"
            )
        plan.notes.append(
            f"alignment: {len(kept)} samples of {len(trained_on(config, index))} subjects, "
            f"{index.n_times} time points at {index.sfreq:g} Hz; "
            f"{config.train.max_steps} updates of {config.global_batch_size}"
        )
    return plan


def trained_on(config: AlignConfig, index: ShardIndex) -> list[str]:
    """The subjects of the training part that are not left out."""
    return [subject for subject in index.subjects if subject not in config.data.leave_out]


def check_encoder(config: AlignConfig, index: ShardIndex) -> list[str]:
    """Why the encoder, new or pretrained, cannot read these shards."""
    facts: dict[str, Any] = {"n_times": index.n_times, "sfreq": index.sfreq, "ch_names": index.ch_names}
    whitened = index.facts.normalise == "subject"
    if config.pretrained is None:
        if config.encoder.whiten and whitened:
            return ["encoder.whiten: the shards are whitened per subject already; set it to false"]
        try:
            with torch.device("meta"):
                build_encoder(config.encoder, **facts)
        except ValueError as error:
            return [f"encoder: {error}"]
        return []
    try:
        saved = read_encoder_facts(config.pretrained / "export" / "encoder")
    except UserError as error:
        return [f"pretrained: {error}"]
    problems = []
    if saved["sfreq"] != index.sfreq:
        problems.append(
            f"pretrained: the encoder was trained at {saved['sfreq']:g} Hz, the shards hold {index.sfreq:g} Hz; "
            "build the shards at the encoder's rate (one sfreq for a chain)"
        )
    if saved["encoder"]["whiten"] and whitened:
        problems.append(
            "pretrained: the encoder whitens and the shards are whitened per subject already; pretrain with "
            "encoder.whiten=false, or build the shards with normalise: channel"
        )
    by_position = saved["encoder"].get("electrodes") == "positions"
    if not by_position and not set(saved["ch_names"]) & set(index.ch_names):
        problems.append("pretrained: encoder and shards have no electrode in common")
    return problems


@guards_data
def main(config: AlignConfig) -> None:
    talk()
    accelerator = make_accelerator(
        config.engine, global_batch_size=config.global_batch_size, micro_batch_size=config.micro_batch_size
    )
    data = config.data.model_copy(update={"targets": [config.objective.target]})
    reader, held_out = open_reader(data), open_reader(data, part="validation")
    objective = build(config, reader)
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
        validate=lambda module: validate(module, held_out, config, data, accelerator.device),
    )
    if accelerator.is_main_process:
        load_weights(step_folder(config.output_dir, result.best_step), objective)
        export(config, objective, reader.index, result)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
        print(f"{config.output_dir / 'export'}: step {result.best_step}; validation part: {figures}")


def build(config: AlignConfig, reader: ShardReader) -> Contrastive:
    """Encoder (new or pretrained), CLIP head, and the space of the targets fitted on the training pictures."""
    torch.manual_seed(key(config.seed, "align start"))
    index = reader.index
    kept = kept_rows(index, config.data.leave_out)
    if config.pretrained is not None:
        folder = config.pretrained / "export" / "encoder"
        encoder = load_encoder(folder, ch_names=index.ch_names, sfreq=index.sfreq, n_times=index.n_times)
    else:
        encoder = build_encoder(config.encoder, ch_names=index.ch_names, sfreq=index.sfreq, n_times=index.n_times)
        if config.encoder.whiten:
            encoder.set_noise_covariance(torch.from_numpy(noise_covariance(reader, kept)))
    table = TargetTable.read(config.data.shards / "targets" / config.objective.target)
    seen = torch.from_numpy(table.array(np.unique(index.column("image_sha256")[kept])))  # [M, K]
    space = TargetSpace.fit(seen, config.objective.target_space)
    head = ClipHead(
        config.objective.head,
        embed_dim=encoder.embed_dim,
        n_tokens=encoder.n_tokens,
        clip_dim=seen.shape[1],
        linear=fit_linear(config, reader, space) if config.objective.linear_ms else None,
    )
    layers, parts = None, {"encoder": encoder, "head": head}
    if config.objective.subject_layers:
        parts["subject layers"] = layers = SubjectLayers(
            trained_on(config, index), index.n_chans, numbered=index.subjects
        )
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    log.info("trainable: %s", ", ".join(f"{name} {n:,}" for name, n in counts.items()))
    objective = Contrastive(config.objective, encoder=encoder, head=head, space=space, layers=layers)
    assert sum(p.numel() for p in objective.parameters() if p.requires_grad) == sum(counts.values())
    return objective


def fit_linear(config: AlignConfig, reader: ShardReader, space: TargetSpace) -> LinearReadout:
    """The ridge beside the network, on the mean of each training sample's repetitions."""
    data = config.data.model_copy(update={"targets": [config.objective.target]})
    parts = []
    for part in (reader, open_reader(config.data, part="validation")):
        rows = kept_rows(part.index, config.data.leave_out)
        batches = list(evaluation_batches(part, data, config.validation.batch_size, indices=rows))
        eeg = torch.cat([batch["eeg"] for batch in batches])
        parts.append((eeg, torch.cat([space(batch[config.objective.target]) for batch in batches])))
    assert config.objective.linear_ms is not None
    n_chans, n_times = parts[0][0].shape[1:]
    width = max(1, round(config.objective.linear_ms / 1000 * reader.index.sfreq))
    linear = LinearReadout(n_chans=n_chans, n_times=n_times, bin_samples=width, clip_dim=parts[0][1].shape[1])
    log.info("linear readout: penalty %.3g, chosen on the validation part", linear.fit(*parts[0], held_out=parts[1]))
    return linear


def validate(
    module: nn.Module, held_out: ShardReader, config: AlignConfig, data: DataConfig, device: torch.device
) -> dict[str, float]:
    """Retrieval of the validation part's own pictures, mean over subjects."""
    assert isinstance(module, Contrastive)
    own, target, image, subject = [], [], [], []
    places = None if module.layers is None else module.layers.places(held_out.index.subjects)
    for batch in evaluation_batches(
        held_out, data, config.validation.batch_size, n_repetitions=config.validation.n_repetitions
    ):
        place = None if places is None else places[batch["subject"]].to(device)
        own.append(module.embed(send_to_device(batch["eeg"], device), place).cpu())
        target.append(module.space(send_to_device(batch[config.objective.target], device)).cpu())
        image.append(batch["image"])
        subject.append(batch["subject"])
    _, first, column = np.unique(torch.cat(image).numpy(), return_index=True, return_inverse=True)
    cosine = (torch.cat(own) @ torch.cat(target)[first].T).double().numpy()  # [N, M]
    ways, who = min(config.validation.ways, len(first)), torch.cat(subject).numpy()
    scores = {"cosine": cosine[np.arange(len(cosine)), column]}
    for k in (1, 5):
        scores[f"top{k}"] = top_k_in_random_galleries(cosine, column, ways=ways, k=k)
    means = {name: float(np.mean([s[who == w].mean() for w in np.unique(who)])) for name, s in scores.items()}
    return {**means, "chance": chance(ways=ways)}


def export(config: AlignConfig, objective: Contrastive, index: ShardIndex, result: TrainResult) -> None:
    """Write export/, whole or absent: what fine-tuning and evaluation start from."""
    aside, folder = config.output_dir / ".export", config.output_dir / "export"
    shutil.rmtree(aside, ignore_errors=True)
    save_aligned(aside, objective)
    figures = "\n".join(f"| {name} | {value:.3f} |" for name, value in result.metrics.items())
    kept, names = len(kept_rows(index, config.data.leave_out)), ", ".join(config.data.leave_out)
    left_out = f" (left out: {names})" if names else ""
    (aside / "README.md").write_text(f"""# EEG encoder aligned with CLIP

Study {index.facts.study}{" (simulated)" if index.facts.simulated else ""}: {kept} training samples of
{len(trained_on(config, index))} subjects{left_out}, {index.n_chans} channels at {index.sfreq:g} Hz.
Step {result.best_step} of {config.train.max_steps}, selected by: {config.train.select or "the last"}.

Validation part, {config.validation.n_repetitions} repetitions averaged, mean over subjects, top-1 and top-5 in a
gallery of {config.validation.ways}:

| measure | value |
|---|---|
{figures}

{intended_use_markdown()}
""")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


if __name__ == "__main__":
    run(main, AlignConfig, doc=__doc__, check=check)
