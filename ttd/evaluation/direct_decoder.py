"""The direct decoder as a baseline of ``ttd/generate.py``: fitted once on the training part, kept in the run folder.

``direct_decoder/`` holds ``model.safetensors`` and ``config.json``, which states the hash of the weights and a fingerprint of
what the fit depends on: its configuration, the seed and the shards. It appears when both are whole.

Letters: n epochs of C channels and T time points, pictures of S pixels along a side, B items.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ttd.baselines.direct_decoder import DirectDecoder, draw_pictures, fit_direct_decoder
from ttd.config import Plan, UserError, fingerprint, write_json
from ttd.data.covariance import noise_covariance
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, evaluation_batches, kept_rows
from ttd.encoders import Encoder, build_encoder
from ttd.encoders.base import load_strictly
from ttd.engine.items import Item
from ttd.engine.tracking import progress
from ttd.experiments.generate import DirectPicturesConfig, GenerateConfig
from ttd.seeding import key
from ttd.untrusted.weights import sha256_of

FOLDER = "direct_decoder"
READ_AT_ONCE = 256  # epochs with their pictures: tens of MB beside the whole


def check_direct_decoder(config: GenerateConfig) -> Plan:
    """What it can draw at all, that encoder and training part fit each other, and what lies in the run folder already."""
    direct, plan = own(config), Plan()
    for name in ("base", "sampler", "candidates", "keep", "clip"):
        value = getattr(config, name)
        if value != GenerateConfig.model_fields[name].default:
            said = f"{name}={value}" if isinstance(value, int | str) else name
            plan.problems.append(
                f"{said}: the direct decoder draws one picture of an EEG, without a base; leave {name} out"
            )
    if "unconditional" in config.controls:
        plan.problems.append(
            "controls: the direct decoder has no condition that unconditional could leave out; take shuffled or noise"
        )
    try:
        index = ShardIndex.read(config.shards / "train")
        tested = ShardIndex.read(config.shards / config.part, open_test=True)  # its facts; the samples stay closed
    except UserError as error:
        plan.problems.append(f"shards: {error}")
        return plan
    for name in ("sfreq", "n_times", "ch_names"):
        if getattr(index, name) != getattr(tested, name):
            plan.problems.append(f"shards: {name} of {index.folder} is not that of {tested.folder}; build them again")
    if direct.encoder.whiten and index.facts.normalise == "subject":
        plan.problems.append(
            "direct_decoder.encoder.whiten: the shards are whitened per subject already; set it to false"
        )
    try:
        with torch.device("meta"):
            build(direct, index)
    except ValueError as error:
        plan.problems.append(f"direct_decoder: {error}")
    folder = config.output_dir / FOLDER
    if folder.exists():
        problem = damage(folder, made_from(config, index))
        plan.problems += [problem] if problem else []
    else:
        n, side = len(index), direct.picture_size
        eeg_mb, pictures_mb = 4 * n * index.n_chans * index.n_times / 1e6, 3 * n * side**2 / 1e6
        plan.notes.append(
            f"direct decoder: {direct.steps} updates on the {n} epochs of {index.folder} (means over repetitions) and their "
            f"pictures of {side} pixels, all held in memory: {eeg_mb:.0f} MB and {pictures_mb:.0f} MB"
        )
    return plan


def with_direct_decoder(
    config: GenerateConfig, accelerator: Accelerator
) -> tuple[Callable[[Tensor, list[Item]], Tensor], dict[str, Any]]:
    """What draws pictures, uint8 [1, B, 3, S, S], from epochs [B, C, T], and what they depend on beside the EEG.

    Where the run folder holds no decoder rank 0 fits it; every rank must call this, and loads what was saved.

    Raises:
        UserError: what the run folder holds is damaged, or was fitted on something else.
    """
    folder = config.output_dir / FOLDER
    reader = ShardReader.open(config.shards / "train")
    made = made_from(config, reader.index)
    if accelerator.is_main_process and not folder.exists():
        save(folder, fit(config, reader, accelerator.device), config, made)
    accelerator.wait_for_everyone()
    model = load(folder, own(config), reader.index, made).to(accelerator.device)
    depends_on = {"direct_decoder": [made, sha256_of(folder / "model.safetensors")]}
    return lambda eeg, items: draw_pictures(model, eeg)[None], depends_on


def own(config: GenerateConfig) -> DirectPicturesConfig:
    """The section of a configuration that is known to have it."""
    assert config.direct_decoder is not None
    return config.direct_decoder


def made_from(config: GenerateConfig, index: ShardIndex) -> str:
    """A fingerprint of what the fit depends on."""
    direct = own(config).model_dump(mode="json")
    return fingerprint([direct, config.seed, index.fingerprint])


def new_encoder(config: DirectPicturesConfig, index: ShardIndex) -> Encoder:
    """An encoder for the shards as its constructor starts it."""
    return build_encoder(config.encoder, n_times=index.n_times, sfreq=index.sfreq, ch_names=index.ch_names)


def build(config: DirectPicturesConfig, index: ShardIndex) -> DirectDecoder:
    """The decoder for the shards, not fitted.

    Raises:
        ValueError: the encoder cannot read such epochs, or the size is not reached by doubling.
    """
    return DirectDecoder(new_encoder(config, index), picture_size=config.picture_size, hidden=config.hidden)


def fit(config: GenerateConfig, reader: ShardReader, device: torch.device) -> DirectDecoder:
    """Fit on all of the training part."""
    direct, index = own(config), reader.index
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "direct decoder's encoder"))
        encoder = new_encoder(direct, index)
    if direct.encoder.whiten:
        encoder.set_noise_covariance(torch.from_numpy(noise_covariance(reader, kept_rows(index, []))))
    eeg, pictures = read_pairs(config, reader)
    watch = partial(progress, desc="fit the direct decoder")
    return fit_direct_decoder(encoder, eeg.to(device), pictures.to(device), direct, seed=config.seed, watch=watch)


def read_pairs(config: GenerateConfig, reader: ShardReader) -> tuple[Tensor, Tensor]:
    """All epochs [n, C, T], scaled and averaged over repetitions, and their pictures uint8 [n, 3, S, S]."""
    index, side = reader.index, own(config).picture_size
    n = len(index)
    eeg, pictures = torch.empty(n, index.n_chans, index.n_times), torch.empty(n, 3, side, side, dtype=torch.uint8)
    batches = evaluation_batches(reader, DataConfig(shards=config.shards, picture_size=side), READ_AT_ONCE)
    for batch in progress(batches, total=-(-n // READ_AT_ONCE), desc="read the training part"):
        eeg[batch["position"]] = batch["eeg"]
        pictures[batch["position"]] = batch["picture"]
    return eeg, pictures


def save(folder: Path, model: DirectDecoder, config: GenerateConfig, made: str) -> None:
    """Write the fitted decoder aside, then rename: another job of an array may have been faster, and its fit stands."""
    aside = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, aside / "model.safetensors")
    facts: dict[str, Any] = {
        "direct_decoder": own(config).model_dump(mode="json"),
        "seed": config.seed,
        "fingerprint": made,
    }
    write_json(aside / "config.json", facts | {"sha256": sha256_of(aside / "model.safetensors")})
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not folder.is_dir():
            raise


def load(folder: Path, config: DirectPicturesConfig, index: ShardIndex, made: str) -> DirectDecoder:
    """Read a fitted decoder in evaluation mode, in which a picture does not depend on those beside it.

    Raises:
        UserError: it is damaged, or another one.
    """
    problem = damage(folder, made)
    if problem:
        raise UserError(problem)
    model = build(config, index)
    load_strictly(model, load_file(folder / "model.safetensors"), source=str(folder))
    return model.eval()


def damage(folder: Path, made: str) -> str | None:
    """Why what ``folder`` holds is not the decoder fitted from what ``made`` is the fingerprint of; None where it is."""
    remedy = f"remove {folder}, and the next start fits it again"
    model, path = folder / "model.safetensors", folder / "config.json"
    try:
        facts = json.loads(path.read_bytes())
        stated, digest = facts["fingerprint"], facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{path}: damaged ({type(error).__name__}: {error}); {remedy}"
    if stated != made:
        return f"{folder}: fitted with another configuration, seed or training part; {remedy}"
    if not model.is_file() or sha256_of(model) != digest:
        return f"{model}: damaged (its sha256 is not that in {path.name}); {remedy}"
    return None
