"""Pretrain an EEG encoder on unlabelled windows: hide stretches of time and predict them.

    accelerate launch ttd/pretrain.py --config configs/pretrain/eegmmidb.yaml

Run the same command again to resume. At the end export/ holds encoder and decoder, and pretrain_report.json the error
on held-out runs beside the trivial predictors, as a whole and by frequency.

Shapes: B windows, C channels, T samples.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ttd.baselines.component_filter import fit_component_filter
from ttd.baselines.interpolation import predict_linear, predict_mean, predict_wiener, predict_zero
from ttd.config import Plan, UserError, fingerprint, run, write_json
from ttd.data.covariance import noise_covariance
from ttd.data.index import ShardIndex
from ttd.data.quarantine import guards_data
from ttd.data.reader import ShardReader
from ttd.data.schema import Part
from ttd.data.splits import open_test
from ttd.data.stream import DataConfig, Stream, evaluation_batches, kept_rows, open_index, open_reader
from ttd.encoders import build_encoder, save_encoder
from ttd.encoders.masking import temporal_mask
from ttd.engine.accelerator import check_launch, make_accelerator
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.loop import TrainResult, evaluating, mean_losses, train
from ttd.engine.run_folder import check_resumable
from ttd.engine.tracking import check_tracking, talk
from ttd.experiments.pretrain import PretrainConfig
from ttd.objectives.masked_reconstruction import MaskedReconstruction, leaves_out_patches
from ttd.objectives.reconstruction_scores import autocovariance_of_present, errors, errors_by_cap, markdown, spectra
from ttd.pages.card import intended_use_markdown
from ttd.seeding import key


def check(config: PretrainConfig) -> Plan:
    """Shards must be there and long enough for a token and for the hidden spans; says what the work will read."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    plan.problems += check_launch(
        config.engine, config.global_batch_size, config.micro_batch_size, averages=config.optim.ema_decay is not None
    )
    plan.problems += check_tracking(config.train.tracking)
    if not held_out_in(config.data, config.report.part):
        plan.problems.append(
            f"report.part: {config.data.shards} holds no part {config.report.part}; "
            "hold runs out when building the shards"
        )
    try:
        index = open_index(config.data)
        encoder_facts: dict[str, Any] = {"n_times": index.n_times, "sfreq": index.sfreq, "ch_names": index.ch_names}
    except UserError as error:
        plan.problems.append(f"data.shards: {error}")
        return plan
    try:
        n_windows = len(kept_rows(index, config.data.leave_out))
    except UserError as error:
        plan.problems.append(str(error))
        return plan
    if index.montage is not None and config.encoder.whiten:
        plan.problems.append("encoder.whiten: one matrix cannot whiten several caps (data.montage); set it to false")
    try:
        temporal_mask(config.objective.masking, index.n_times, torch.zeros(1, dtype=torch.long), seed=0)
    except ValueError as error:
        plan.problems.append(f"objective.masking: {error}")
    try:
        with torch.device("meta"):
            encoder = build_encoder(config.encoder, **encoder_facts)
    except ValueError as error:
        plan.problems.append(f"encoder: {error}")
        return plan
    try:
        leaves_out_patches(config.objective, encoder)
    except UserError as error:
        plan.problems.append(str(error))
    plan.notes.append(
        f"pretraining: {n_windows} windows of {index.n_times} time points at {index.sfreq:g} Hz, "
        f"{index.n_chans} channels; encoder of {sum(p.numel() for p in encoder.parameters()):,} parameters, "
        f"{encoder.n_tokens} tokens; {config.train.max_steps} updates of {config.global_batch_size}"
    )
    if index.montage is not None:
        caps = ", ".join(f"{cap} ({len(set(names) & set(index.montage))})" for cap, names in index.facts.caps.items())
        plan.notes.append(f"montage of {index.n_chans} electrodes; of these, caps have: {caps}")
    return plan


def held_out_in(data: DataConfig, part: Part) -> list[Path]:
    """The folders that have such a part."""
    return [folder for folder in data.folders if (folder / part / "index.json").is_file()]


@guards_data
def main(config: PretrainConfig) -> None:
    talk()
    accelerator = make_accelerator(
        config.engine, global_batch_size=config.global_batch_size, micro_batch_size=config.micro_batch_size
    )
    reader = open_reader(config.data)
    objective = build(config, reader)
    stream = Stream(
        reader,
        config.data,
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        micro_batch_size=accelerator.ttd.micro,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    held_out = None
    if held_out_in(config.data, "validation"):
        held_out = open_reader(config.data, part="validation")

    def validate(module: nn.Module) -> dict[str, float]:
        """The same spans are hidden each time."""
        assert held_out is not None
        return mean_losses(module, evaluation_batches(held_out, config.data, accelerator.ttd.micro), accelerator.device)

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
        validate=validate if held_out else None,
    )
    if accelerator.is_main_process:
        load_weights(step_folder(config.output_dir, result.best_step), objective)
        with evaluating(objective):
            content = report(config, objective, reader, accelerator.device)
        write_json(config.output_dir / "pretrain_report.json", content)
        export(config, objective, reader.index, result, content)
        print(markdown(content))


def build(config: PretrainConfig, reader: ShardReader) -> MaskedReconstruction:
    """Encoder, its whitening fitted on the training windows, and the objective around it."""
    torch.manual_seed(key(config.seed, "pretrain start"))
    index = reader.index
    encoder = build_encoder(config.encoder, n_times=index.n_times, sfreq=index.sfreq, ch_names=index.ch_names)
    if config.encoder.whiten:
        kept = kept_rows(index, config.data.leave_out)
        encoder.set_noise_covariance(torch.from_numpy(noise_covariance(reader, kept)))
    start = None
    if config.objective.start == "wiener":
        start = fit_component_filter(training_windows(config, reader)[0])
    return MaskedReconstruction(config.objective, encoder=encoder, seed=config.seed, component_filter=start)


def report(
    config: PretrainConfig, objective: MaskedReconstruction, train_reader: ShardReader, device: torch.device
) -> dict[str, Any]:
    """Masked error on the held-out part of the model and of the trivial predictors, and both by frequency.

    The Wiener predictor, and so the frequencies, stand on fewer windows.
    """
    part = config.report.part
    for folder in held_out_in(config.data, part) if part == "test" else []:
        open_test(folder, who="pretrain", config_hash=fingerprint(config))
    reader = open_reader(config.data, part=part, open_test=part == "test")
    eeg, present, rows = windows(config, reader, at_most=config.report.max_windows)
    mask = objective.mask(rows)
    pairs = list(zip(eeg.split(16), mask.split(16), strict=True))
    own = [objective.reconstruct(e.to(device), m.to(device)).float().cpu() for e, m in pairs]
    predicted = {
        "model": torch.cat(own),
        "zero": predict_zero(eeg, mask),
        "channel mean": predict_mean(eeg, mask),
        "linear": predict_linear(eeg, mask),
    }
    if config.objective.start == "wiener":
        predicted["start"] = torch.cat([objective.start(e.masked_fill(m[:, None], 0.0), m) for e, m in pairs])
    some = torch.from_numpy(np.unique(np.linspace(0, len(eeg) - 1, config.report.n_wiener).astype(int)))
    covariance = autocovariance_of_present(*training_windows(config, train_reader))
    on_some = {name: p[some] for name, p in predicted.items()}
    on_some["wiener"] = predict_wiener(eeg[some], mask[some], covariance)
    there = None if present is None else present[some]
    shown = {name: on_some[name] for name in ("model", "linear", "wiener")}
    span = min(config.objective.masking.span, int(mask[0].sum()))
    content: dict[str, Any] = {
        "part": part,
        "runs": sorted({run for i in rows.tolist() for run in reader.meta(i)["runs"]}),
        "n_windows": len(eeg),
        "hidden_fraction": float(mask.float().mean()),
        "masked_mse": errors(predicted, eeg, mask, present),
        "n_wiener": len(some),
        "masked_mse_on_wiener_windows": errors(on_some, eeg[some], mask[some], there),
        "spectrum": spectra(shown, eeg[some], mask[some], sfreq=reader.index.sfreq, span=span, present=there),
    }
    if present is not None:
        caps = reader.index.column("cap")[rows.numpy()].tolist()
        content["by_cap"] = errors_by_cap(predicted, eeg, mask, present, caps)
    return content


def windows(config: PretrainConfig, reader: ShardReader, *, at_most: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Scaled windows [B, C, T], which electrodes they have [B, C] (None where all have all), and their rows [B]: those of
    subjects that are not left out, evenly spaced over the index."""
    kept = kept_rows(reader.index, config.data.leave_out)
    rows = kept[np.unique(np.linspace(0, len(kept) - 1, min(at_most, len(kept))).astype(int))]
    batches = list(evaluation_batches(reader, config.data, 64, indices=rows))
    present = torch.cat([batch["present"] for batch in batches]) if "present" in batches[0] else None
    return torch.cat([batch["eeg"] for batch in batches]), present, torch.from_numpy(rows)


def training_windows(config: PretrainConfig, reader: ShardReader) -> tuple[Tensor, Tensor | None]:
    """The training windows [B, C, T] that filters are fitted on, and which electrodes they have [B, C]."""
    eeg, present, _ = windows(config, reader, at_most=400)
    return eeg, present


def export(
    config: PretrainConfig, objective: MaskedReconstruction, index: ShardIndex, result: TrainResult, content: dict
) -> None:
    """Write export/, whole or absent: what ``ttd/align.py`` starts from."""
    aside, folder = config.output_dir / ".export", config.output_dir / "export"
    shutil.rmtree(aside, ignore_errors=True)
    save_encoder(aside / "encoder", objective.encoder)
    (aside / "decoder").mkdir()
    weights = {name: t.detach().cpu().contiguous() for name, t in objective.decoder.state_dict().items()}
    save_file(weights, aside / "decoder" / "model.safetensors")
    write_json(aside / "decoder" / "config.json", config.objective.decoder.model_dump(mode="json"))
    if objective.component_filter is not None:  # what the decoder adds to
        added = {name: t.contiguous() for name, t in vars(objective.component_filter).items()}
        save_file(added, aside / "decoder" / "component_filter.safetensors")
    (aside / "README.md").write_text(
        f"# EEG encoder, pretrained by masked reconstruction\n\n"
        f"Study {index.facts.study}{' (simulated)' if index.facts.simulated else ''}, {index.n_samples} windows of "
        f"{index.n_times} samples at {index.sfreq:g} Hz, {index.n_chans} channels; step {result.best_step}.\n\n"
        f"{markdown(content)}\n\n{intended_use_markdown()}\n"
    )
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


if __name__ == "__main__":
    run(main, PretrainConfig, doc=__doc__, check=check)
