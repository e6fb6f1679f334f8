"""``pipeline.json`` of an export: what ``ttd.EEGToImagePipeline`` has to know beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from ttd.config import Config, UserError, explain, fingerprint, write_json
from ttd.data.eeg_reader import EEGFacts
from ttd.data.index import ShardIndex
from ttd.data.whitening import SubjectNormaliser, normaliser_of
from ttd.diffusion.base import BaseConfig
from ttd.untrusted.weights import write_sums

FORMAT = 1
FILE = "pipeline.json"
NORMALISER = "subjects.safetensors"
"""The whitening of each subject, where the shards ask for it."""


class ExportFacts(Config):
    """The content of ``pipeline.json``, beside ``format`` and the ``sha256`` of the rest."""

    base: BaseConfig
    """What the adapters were trained on: as the experiment named it, with the hashes of its weights."""
    adapters: bool
    """Whether there is a folder unet_lora."""
    cross_attention: bool = False
    """Whether there is a folder cross_attention."""
    eeg: EEGFacts
    picture_size: int | None = None
    """Pixels along a side of the pictures it was trained on, at which it draws; None: the base's own."""


def write_export_facts(folder: Path, facts: ExportFacts, normaliser: SubjectNormaliser | None) -> None:
    """Write ``pipeline.json``, the whitening of each subject where there is one, and the hashes of all weights in ``folder``."""
    if normaliser is not None:
        normaliser.save(folder / NORMALISER)
    content = {"format": FORMAT, **facts.model_dump(mode="json")}
    write_json(folder / FILE, content | {"sha256": fingerprint(content, 64)})
    write_sums(folder)


def describe_export(
    folder: Path, *, base: BaseConfig, adapters: bool, cross_attention: bool, index: ShardIndex, picture_size: int
) -> None:
    """Write the facts of a run that was trained on the shards of ``index`` with pictures of ``picture_size`` pixels."""
    normaliser = normaliser_of(index)
    eeg = EEGFacts.of(index, normaliser)
    facts = ExportFacts(
        base=base, adapters=adapters, cross_attention=cross_attention, eeg=eeg, picture_size=picture_size
    )
    write_export_facts(folder, facts, normaliser)


def read_export_facts(folder: Path) -> tuple[ExportFacts, SubjectNormaliser | None]:
    """Read what ``write_export_facts`` wrote.

    Raises:
        UserError: it is missing, damaged, changed since it was written, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{path}: missing; give the export folder of a run of ttd/finetune.py. A run that was exported before there was "
            "such a file writes it when the same command is run again, without training anew"
        )
    try:
        content = json.loads(path.read_bytes())
        number, stated = content.pop("format", None), content.pop("sha256", None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); export the run again") from error
    if number != FORMAT:
        raise UserError(
            f"{path}: format is {number!r}, this code reads {FORMAT}; export the run again with this version"
        )
    if fingerprint({"format": number, **content}, 64) != stated:
        raise UserError(
            f"{path}: its content differs from its own sha256; export the run again. (To use another base, pass base= "
            "instead of editing the file)"
        )
    try:
        facts = ExportFacts.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in explain(error, ExportFacts))) from error
    if not facts.eeg.subjects:
        return facts, None
    eeg = facts.eeg
    sizes = {"n_chans": len(eeg.ch_names), "n_times": eeg.n_times}
    return facts, SubjectNormaliser.load(folder / NORMALISER, eeg.subjects, **sizes)
