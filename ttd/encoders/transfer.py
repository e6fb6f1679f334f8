"""An encoder on disk, and its move to another cap: weights go from electrode to electrode by name, never by position.

A folder holds ``model.safetensors`` and ``config.json`` (configuration, electrodes, rate, length, and what the last
move between caps did). One ``sfreq`` holds for a chain: an encoder does not load at another rate, because its filters
would see other frequencies.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ttd.config import UserError, explain, fingerprint, write_json
from ttd.encoders.base import Encoder, inverse_square_root, load_strictly
from ttd.encoders.build import config_class, construct

log = logging.getLogger(__name__)

FORMAT = 1
WHOLE = {"format", "encoder", "n_times", "sfreq", "ch_names", "transfer"}
"""What ``config.json`` holds beside its own hash, which older ones have not."""


def save_encoder(folder: Path, encoder: Encoder) -> None:
    """Write ``encoder`` to ``folder`` as safetensors and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in encoder.state_dict().items()}, folder / "model.safetensors"
    )
    facts = {
        "format": FORMAT,
        "encoder": encoder.config.model_dump(mode="json"),
        "n_times": encoder.n_times,
        "sfreq": encoder.sfreq,
        "ch_names": encoder.ch_names,
        "transfer": encoder.transfer,
    }
    write_json(folder / "config.json", facts | {"sha256": fingerprint(facts, 64)})


def read_encoder_facts(folder: Path) -> dict[str, Any]:
    """What ``config.json`` of an exported encoder says, without loading weights.

    Raises:
        UserError: no exported encoder there, a damaged one, or one of another format.
    """
    path = folder / "config.json"
    if not path.is_file() or not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: no exported encoder (config.json and model.safetensors); "
            "give the export/encoder folder of a run"
        )
    try:
        facts = json.loads(path.read_bytes())
        number, stated = facts.get("format"), facts.pop("sha256", None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); export the encoder again") from error
    if number != FORMAT:
        raise UserError(f"{path}: encoder format {number!r} is not {FORMAT}; export it again with this version")
    if facts.keys() != WHOLE or stated not in (None, fingerprint(facts, 64)):
        raise UserError(f"{path}: damaged (its content differs from its own sha256); export the encoder again")
    return facts


def load_encoder(
    folder: Path,
    *,
    ch_names: Sequence[str] | None = None,
    sfreq: float | None = None,
    n_times: int | None = None,
    allow_partial: bool = False,
) -> Encoder:
    """Read an encoder, for the cap, rate and length it was saved with or for the ones given.

    Electrodes of ``ch_names`` that the saved cap lacks start as the constructor starts them; what was mapped, dropped
    or initialised is logged and kept in ``encoder.transfer`` (and so in the next ``config.json``). ``allow_partial``
    also lets other tensors that do not fit start anew, named in the log.

    Raises:
        UserError: another rate, no common electrode, or tensors that do not fit (all of them named).
    """
    folder = Path(folder)
    facts = read_encoder_facts(folder)
    if sfreq is not None and abs(sfreq - facts["sfreq"]) > 1e-6:
        raise UserError(
            f"{folder}: the encoder was trained at {facts['sfreq']:g} Hz, the data are at {sfreq:g} Hz; "
            "build the shards at the encoder's rate (one sfreq for a chain)"
        )
    try:
        kind = config_class(facts["encoder"])
    except ValueError as error:
        raise UserError(f"{folder}/config.json: {error}") from error
    try:
        config = kind.model_validate(facts["encoder"])
    except ValidationError as error:
        raise UserError("\n".join(f"{folder}/config.json: {line}" for line in explain(error, kind))) from error
    try:
        encoder = construct(
            config,
            n_times=n_times or facts["n_times"],
            sfreq=facts["sfreq"],
            ch_names=list(ch_names or facts["ch_names"]),
        )
    except ValueError as error:
        raise UserError(f"{folder}: the encoder cannot read these data: {error}") from error
    try:
        weights = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise UserError(f"{folder}/model.safetensors: damaged ({error}); export the encoder again") from error
    weights, report = move_between_caps(weights, facts["ch_names"], encoder)
    load_strictly(encoder, weights, source=str(folder), allow_partial=allow_partial)
    encoder.transfer = {"source": str(folder), **report} if report else facts.get("transfer")
    return encoder


def move_between_caps(
    weights: dict[str, Tensor], old_names: Sequence[str], encoder: Encoder
) -> tuple[dict[str, Tensor], dict[str, list[str]] | None]:
    """Rewrite the tensors that have an electrode axis for ``encoder.ch_names``; returns them and what was done.

    Raises:
        UserError: the two caps share no electrode, or the encoder does not say where its electrodes are.
    """
    if list(old_names) == encoder.ch_names:
        return weights, None
    if encoder.channel_axis is None:
        raise UserError(
            f"{encoder.config.name} cannot move between caps (it does not say which of its weights belong to which "
            f"electrode): it was trained on {list(old_names)}, the data have {encoder.ch_names}"
        )
    place = {name: i for i, name in enumerate(old_names)}
    new_ones = "interpolated" if encoder.by_position else "initialised"
    report = {
        "mapped": [n for n in encoder.ch_names if n in place],
        new_ones: [n for n in encoder.ch_names if n not in place],
        "dropped": [n for n in old_names if n not in encoder.ch_names],
    }
    if not report["mapped"] and not encoder.by_position:
        raise UserError(f"no electrode in common: the encoder has {list(old_names)}, the data {encoder.ch_names}")
    new = [i for i, n in enumerate(encoder.ch_names) if n in place]
    old = [place[encoder.ch_names[i]] for i in new]
    out, own = dict(weights), encoder.state_dict()
    for name, axis in encoder.channel_axis.items():
        if name in weights and name in own:
            tensor = own[name].clone()
            tensor.index_copy_(axis, torch.tensor(new), weights[name].index_select(axis, torch.tensor(old)))
            out[name] = tensor
    if encoder.whitening is not None and "whitening" in weights:
        out["whitening"] = _move_whitening(weights["whitening"], old, new, len(encoder.ch_names))
    log.info(
        "encoder moved between caps by electrode name: %d mapped; %d %s (%s); %d dropped (%s)",
        len(report["mapped"]),
        len(report[new_ones]),
        new_ones,
        ", ".join(report[new_ones]) or "none",
        len(report["dropped"]),
        ", ".join(report["dropped"]) or "none",
    )
    return out, report


def _move_whitening(whitening: Tensor, old: list[int], new: list[int], n_chans: int) -> Tensor:
    """The whitening of the new cap: the covariance of the common electrodes, unit variances where there is none."""
    root = torch.linalg.inv(whitening.double())
    covariance = torch.eye(n_chans, dtype=torch.double)
    to, of = torch.tensor(new, dtype=torch.long), torch.tensor(old, dtype=torch.long)
    covariance[to[:, None], to] = (root @ root)[of[:, None], of]
    return inverse_square_root(covariance, shrinkage=0.0)
