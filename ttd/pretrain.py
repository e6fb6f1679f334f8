"""Pretrain an EEG encoder on unlabelled windows: hide stretches of time and predict them.

    accelerate launch ttd/pretrain.py --config configs/pretrain/eegmmidb.yaml

Run the same command again to resume. At the end export/ holds encoder and decoder, and pretrain_report.json the error
on held-out runs beside the trivial predictors.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ttd.baselines.interpolation import autocovariance, predict_linear, predict_mean, predict_wiener, predict_zero
from ttd.config import Plan, UserError, fingerprint, run, write_json
from ttd.data.covariance import noise_covariance
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.splits import open_test
from ttd.data.stream import Stream, evaluation_batches, open_reader
from ttd.encoders import build_encoder, save_encoder
from ttd.encoders.masking import temporal_mask
from ttd.engine.accelerator import check_launch, make_accelerator
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.loop import TrainResult, evaluating, mean_losses, train
from ttd.engine.run_folder import check_resumable
from ttd.engine.tracking import talk
from ttd.experiments.pretrain import PretrainConfig
from ttd.objectives.masked_reconstruction import MaskedReconstruction, masked_mse
from ttd.seeding import key


def check(config: PretrainConfig) -> Plan:
    """Shards must be there and long enough for a token and for the hidden spans; says what the work will read."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    plan.problems += check_launch(config.engine, config.global_batch_size, config.micro_batch_size)
    if not (config.data.shards / config.report.part / "index.json").is_file():
        plan.problems.append(
            f"report.part: {config.data.shards} holds no part {config.report.part}; "
            "hold runs out when building the shards"
        )
    try:
        index = ShardIndex.read(config.data.shards / config.data.part)
        encoder_facts: dict[str, Any] = {"n_times": index.n_times, "sfreq": index.sfreq, "ch_names": index.ch_names}
    except UserError as error:
        plan.problems.append(f"data.shards: {error}")
        return plan
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
    plan.notes.append(
        f"pretraining: {index.n_samples} windows of {index.n_times} time points at {index.sfreq:g} Hz, "
        f"{index.n_chans} channels; encoder of {sum(p.numel() for p in encoder.parameters()):,} parameters, "
        f"{encoder.n_tokens} tokens; {config.train.max_steps} updates of {config.global_batch_size}"
    )
    return plan


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
    if (config.data.shards / "validation" / "index.json").is_file():
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
        print(table(content))


def build(config: PretrainConfig, reader: ShardReader) -> MaskedReconstruction:
    """Encoder, its whitening fitted on the training windows, and the objective around it."""
    torch.manual_seed(key(config.seed, "pretrain start"))
    index = reader.index
    encoder = build_encoder(config.encoder, n_times=index.n_times, sfreq=index.sfreq, ch_names=index.ch_names)
    if config.encoder.whiten:
        encoder.set_noise_covariance(torch.from_numpy(noise_covariance(reader)))
    return MaskedReconstruction(config.objective, encoder=encoder, seed=config.seed)


def report(
    config: PretrainConfig, objective: MaskedReconstruction, train_reader: ShardReader, device: torch.device
) -> dict[str, Any]:
    """Masked error on the held-out part of the model and of the trivial predictors; the Wiener one on fewer windows."""
    part = config.report.part
    if part == "test":
        open_test(config.data.shards, who="pretrain", config_hash=fingerprint(config))
    reader = open_reader(config.data, part=part, open_test=part == "test")
    batches = list(evaluation_batches(reader, config.data, 16))
    eeg = torch.cat([batch["eeg"] for batch in batches])
    mask = objective.mask(torch.cat([batch["position"] for batch in batches]))
    pairs = zip(eeg.split(16), mask.split(16), strict=True)
    own = [objective.reconstruct(e.to(device), m.to(device)).cpu() for e, m in pairs]
    predicted = {
        "model": torch.cat(own).float(),
        "zero": predict_zero(eeg, mask),
        "channel mean": predict_mean(eeg, mask),
        "linear": predict_linear(eeg, mask),
    }
    some = torch.from_numpy(np.unique(np.linspace(0, len(eeg) - 1, config.report.n_wiener).astype(int)))
    on_some = {name: float(masked_mse(p[some], eeg[some], mask[some])) for name, p in predicted.items()}
    covariance = autocovariance(training_windows(config, train_reader))
    wiener = predict_wiener(eeg[some], mask[some], covariance)
    return {
        "part": part,
        "runs": sorted({run for i in range(len(reader)) for run in reader.meta(i)["runs"]}),
        "n_windows": len(eeg),
        "hidden_fraction": float(mask.float().mean()),
        "masked_mse": {name: float(masked_mse(p, eeg, mask)) for name, p in predicted.items()},
        "n_wiener": len(some),
        "masked_mse_on_wiener_windows": {**on_some, "wiener": float(masked_mse(wiener, eeg[some], mask[some]))},
    }


def training_windows(config: PretrainConfig, reader: ShardReader, at_most: int = 400) -> Tensor:
    """Scaled training windows [B, C, T], evenly spaced over the index."""
    rows = np.unique(np.linspace(0, len(reader) - 1, min(at_most, len(reader))).astype(int))
    return torch.cat([batch["eeg"] for batch in evaluation_batches(reader, config.data, 64, indices=rows)])


def table(content: dict) -> str:
    """The report as Markdown; the Wiener predictor stands on fewer windows, so the others do a second time."""
    every, some = content["masked_mse"], content["masked_mse_on_wiener_windows"]
    lines = [
        f"Masked error on the {content['part']} part, runs {', '.join(content['runs'])}:",
        "",
        f"| predictor | {content['n_windows']} windows | {content['n_wiener']} of them |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {f'{every[n]:.3f}' if n in every else ''} | {value:.3f} |" for n, value in some.items()]
    return "\n".join(lines)


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
    (aside / "README.md").write_text(
        f"# EEG encoder, pretrained by masked reconstruction\n\n"
        f"Study {index.facts.study}{' (simulated)' if index.facts.simulated else ''}, {index.n_samples} windows of "
        f"{index.n_times} samples at {index.sfreq:g} Hz, {index.n_chans} channels; step {result.best_step}.\n\n"
        f"{table(content)}\n"
    )
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


if __name__ == "__main__":
    run(main, PretrainConfig, doc=__doc__, check=check)
