"""EEG → image retrieval on the test part: aligned encoders, the linear baseline, and what must fail.

Letters: R test epochs, M pictures of the gallery, D numbers of an embedding, C channels, T time points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ttd.baselines.bins import time_bins
from ttd.baselines.ridge import Part, pooled_half_whitened_ridge
from ttd.config import UserError
from ttd.data.controls import noise_like, pre_stimulus
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.data.targets import TargetTable
from ttd.engine.tracking import progress
from ttd.experiments.eval import EvalConfig
from ttd.metrics.decoding import prototype_rows, retrieval_rows
from ttd.metrics.retrieval import cosine_similarity
from ttd.metrics.row import Row
from ttd.objectives.contrastive import Aligned, load_aligned
from ttd.seeding import key

PARTS = ("train", "validation", "test")
N_NEAREST = 5
"""Pictures kept of what stands nearest each prediction, for people to look at."""


@dataclass(frozen=True)
class Decoder:
    """An aligned encoder with the gallery [M, D] in its space."""

    aligned: Aligned
    gallery: np.ndarray
    places: Tensor | None
    """Of each subject among its layers per subject."""

    def predict(self, eeg: Tensor, subject: Tensor, batch_size: int) -> np.ndarray:
        """Embeddings [R, D] of scaled epochs [R, C, T] of subjects [R]."""
        out = []
        with torch.inference_mode():
            for rows in torch.arange(len(eeg)).split(batch_size):
                out.append(self.aligned(eeg[rows], None if self.places is None else self.places[subject[rows]]))
        return torch.cat(out).numpy()


class TestPart:
    """What is decoded: the epochs of the test part, whose pictures they show, and who saw them."""

    __test__ = False  # no test of pytest

    def __init__(self, config: EvalConfig):
        self.config = config
        self.reader = ShardReader.open(config.shards / "test", open_test=True)
        index = self.reader.index
        self.index, self.subject = index, index.column("subject")
        self.pictures, first, self.own = np.unique(index.column("image_sha256"), return_index=True, return_inverse=True)
        self.image_ids = index.column("image_id")[first].astype(str)
        self.concepts = index.column("concept")[first].astype(str)
        """Of each picture [M]; empty where the study names none."""
        self.most = int(index.n_repetitions.max())

    @cached_property
    def many_concepts(self) -> bool:
        """Whether concepts have several pictures: then they are another gallery, and another unit to draw."""
        return 1 < len(np.unique(self.concepts)) < len(self.concepts)

    @property
    def concept_of_epoch(self) -> np.ndarray | None:
        return self.concepts[self.own] if self.many_concepts else None

    def epochs(self, n_repetitions: int) -> tuple[Tensor, Tensor]:
        """Scaled epochs [R, C, T], the first repetitions averaged, and the number of each one's subject [R]."""
        data = DataConfig(shards=self.config.shards, part="test")
        batches = list(
            progress(
                evaluation_batches(self.reader, data, self.config.batch_size, n_repetitions=n_repetitions),
                desc=f"read, {n_repetitions} repetitions",
            )
        )
        return torch.cat([b["eeg"] for b in batches]), torch.cat([b["subject"] for b in batches])

    def decoder(self, run: Path) -> Decoder:
        """The aligned encoder of a run folder."""
        aligned = load_aligned(run / "export", subject_layers=True)
        places = None if aligned.layers is None else aligned.layers.places(self.index.subjects)
        targets = TargetTable.read(self.config.shards / "targets" / aligned.target).array(self.pictures)
        return Decoder(aligned, aligned.prepare_targets(torch.from_numpy(targets)).numpy(), places)


@dataclass(frozen=True)
class Retrieved:
    """Rows of the table, and for people what stands nearest each prediction."""

    rows: list[Row]
    nearest: list[dict[str, Any]]


def training_seed(run: Path) -> int | None:
    """The seed in a run folder's configuration."""
    path = run / "config.yaml"
    return (yaml.safe_load(path.read_text()) or {}).get("seed") if path.is_file() else None


def retrieve(config: EvalConfig, part: TestPart, labels: dict[str, Any]) -> Retrieved:
    """Retrieval by the encoders and by the ridge for every number of repetitions; controls and neighbours for the largest."""
    decoders = [part.decoder(run) for run in config.retrieval.runs]
    labels = {**labels, "selection": "validation part", "seeds": [training_seed(run) for run in config.retrieval.runs]}
    common: dict[str, Any] = {"seed": config.seed, "n_resamples": config.n_resamples, "n_draws": config.n_draws}
    of_pictures: dict[str, Any] = {**common, "ways": config.retrieval.ways, "concept": part.concept_of_epoch}
    linear = Linear(config, part, decoders[0].aligned.target) if config.retrieval.ridge else None
    rows: list[Row] = []
    nearest: list[dict[str, Any]] = []
    counts = sorted({min(n, part.most) for n in config.retrieval.repetitions}, reverse=True)
    for n in counts:
        described = {**labels, "repetitions": n, "gallery_of": "images"}
        eeg, subject = part.epochs(n)
        read = [decoder.predict(eeg, subject, config.batch_size) for decoder in decoders]
        alike = [cosine_similarity(p, d.gallery) for p, d in zip(read, decoders, strict=True)]
        rows += retrieval_rows("encoder", alike, part.subject, part.own, labels=described, **of_pictures)
        without_seed = {name: value for name, value in described.items() if name != "seeds"}
        if linear is not None:
            own_alike, own_read, own_gallery = linear.read(n)
            rows += retrieval_rows("ridge", [own_alike], part.subject, part.own, labels=without_seed, **of_pictures)
        if n < counts[0]:
            continue
        nearest += neighbours("encoder", np.mean(alike, axis=0), part, n)
        if part.many_concepts:
            galleries = [decoder.gallery for decoder in decoders]
            of_concepts = {"labels": {**described, "gallery_of": "prototypes"}, **common}
            rows += prototype_rows("encoder", read, galleries, part.subject, part.own, part.concepts, **of_concepts)
        if linear is not None:
            nearest += neighbours("ridge", own_alike, part, n)
            if part.many_concepts:
                of_concepts["labels"] = {**without_seed, "gallery_of": "prototypes"}
                rows += prototype_rows(
                    "ridge", [own_read], [own_gallery], part.subject, part.own, part.concepts, **of_concepts
                )
        for name, change in what_must_fail(config, part).items():
            blind = change(eeg)
            alike = [cosine_similarity(d.predict(blind, subject, config.batch_size), d.gallery) for d in decoders]
            marked = {**described, "control": name}
            rows += retrieval_rows("encoder", alike, part.subject, part.own, labels=marked, **of_pictures)
    return Retrieved(rows, nearest)


def what_must_fail(config: EvalConfig, part: TestPart) -> dict[str, Callable[[Tensor], Tensor]]:
    """EEG that cannot know the picture, by the name of the control."""
    index = part.index
    seeds = [key(config.seed, "noise EEG", row) for row in range(index.n_samples)]
    return {
        "pre-stimulus window": lambda eeg: pre_stimulus(eeg, tmin=index.tmin, sfreq=index.sfreq),
        "noise EEG": lambda eeg: noise_like(eeg, seeds),
    }


def neighbours(model: str, similarity: np.ndarray, part: TestPart, n_repetitions: int) -> list[dict[str, Any]]:
    """What stands nearest each prediction, and at which place the picture that was seen: from cosines [R, M]."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    place = np.argmax(order == part.own[:, None], axis=1)

    def named(m: int) -> dict[str, Any]:
        return {
            "image_id": part.image_ids[m], "image_sha256": str(part.pictures[m]), "concept": part.concepts[m] or None
        }  # fmt: skip

    return [
        {
            "model": model, "subject": str(part.subject[r]), **named(own), "repetitions": n_repetitions,
            "gallery": len(part.pictures), "rank": int(place[r]) + 1,
            "nearest": [{**named(m), "cosine": round(float(similarity[r, m]), 4)} for m in order[r, :N_NEAREST]],
        }
        for r, own in enumerate(part.own)
    ]  # fmt: skip


class Linear:
    """The pooled half-whitened ridge on the same split, retrieving from the same pictures."""

    def __init__(self, config: EvalConfig, part: TestPart, target: str):
        self.config, self.part = config, part
        targets = TargetTable.read(config.shards / "targets" / target)
        self.parts = [self._binned(ShardReader.open(config.shards / p, open_test=p == "test"), targets) for p in PARTS]

    def read(self, n_repetitions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cosines [R, M], predictions [R, D] and the gallery [M, D] in its space, in the order of the test part's epochs."""
        train, validation, test = self.parts
        result = pooled_half_whitened_ridge(train, validation, test, n_repetitions=n_repetitions)
        order = np.concatenate([np.flatnonzero(self.part.subject == name) for name in self.part.index.subjects])
        predicted, gallery = (np.concatenate(x) for x in (result.predictions, result.gallery))
        predictions = np.empty_like(predicted)
        predictions[order] = predicted
        _, first = np.unique(self.part.own[order], return_index=True)
        return cosine_similarity(predictions, gallery[first]), predictions, gallery[first]

    def _binned(self, reader: ShardReader, targets: TargetTable) -> Part:
        """Single trials as means over time bins. Repetitions beyond the fewest of a subject's pictures are left out."""
        index, bins = reader.index, self.config.bins
        names, shas = index.column("subject"), index.column("image_sha256")
        eeg, of_pictures = [], []
        for subject in index.subjects:
            rows = np.flatnonzero(names == subject)
            fewest = int(index.n_repetitions[rows].min())
            eeg.append(np.stack([
                time_bins(
                    reader.eeg(int(i))[:fewest], sfreq=index.sfreq, tmin=index.tmin,
                    start=bins.start, stop=bins.stop, width_s=bins.width_s,
                )
                for i in rows
            ]))  # fmt: skip
            of_pictures.append(targets.array(shas[rows]))
        return Part(eeg, of_pictures)


def unlike_targets(runs: tuple[Path, ...]) -> list[str]:
    """Encoders that are averaged must have been aligned with the same target."""
    if len(runs) < 2:
        return []
    try:
        targets = {run: load_aligned(run / "export", subject_layers=True).target for run in runs}
    except UserError as error:
        return [f"retrieval.run: {error}"]
    first, *others = targets
    return [
        f"retrieval.run: {run} was aligned with {targets[run]}, {first} with {targets[first]}; give runs that differ in "
        "their seed alone"
        for run in others
        if targets[run] != targets[first]
    ]
