"""Scores of every fit of a sweep on the test part, picture by picture, kept beside the fit under a hash of what they come from.

Letters: S subjects and M pictures of the test part, both sorted; r epochs of it; D numbers of an embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ttd.baselines.bins import time_bins
from ttd.baselines.ridge import Part, PooledRidge
from ttd.config import UserError, fingerprint
from ttd.data.reader import ShardReader
from ttd.data.splits import open_test
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.data.targets import TargetTable
from ttd.experiments.sweep import Fit, Ridge, SweepConfig
from ttd.metrics.decoding import TOPS
from ttd.metrics.features import cached, content_hash
from ttd.metrics.retrieval import cosine_similarity, top_k_in_random_galleries
from ttd.metrics.rows import mispaired_scores
from ttd.objectives.contrastive import load_aligned

PARTS = ("train", "validation", "test")


class Scorer:
    """Tables [S, M] by name: "repetitions/ways/top", and with "/control" the same paired with wrong pictures.

    Raises:
        UserError: the study has no test part.
    """

    def __init__(self, config: SweepConfig):
        self.config = config
        self.opened = open_test(config.shards, who="sweep", config_hash=fingerprint(config))
        self.reader = ShardReader.open(config.shards / "test", open_test=True)
        index = self.reader.index
        self.names, self.subject = np.unique(index.column("subject"), return_inverse=True)
        self.pictures, self.own = np.unique(index.column("image_sha256"), return_inverse=True)
        most = int(index.n_repetitions.max())
        self.repetitions = sorted({min(n, most) for n in config.repetitions}, reverse=True)
        self._parts: dict[tuple[Any, str], dict[str, Part]] = {}
        self.scoring = fingerprint([
            index.fingerprint, self.repetitions, config.ways, config.n_draws, config.bootstrap_seed
        ])  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What the table says about the test part."""
        facts = self.reader.index.facts
        about = {"study": facts.study, "simulated": facts.simulated, "normalise": facts.normalise}
        channels = self.reader.index.n_chans
        return {**about, "subjects": self.names.tolist(), "pictures": len(self.pictures), "channels": channels,
                "repetitions": self.repetitions, "test_part_opened": self.opened}  # fmt: skip

    def rows_of(self, left_out: str | None) -> np.ndarray:
        """The epochs [r] that a fit is scored on: all, or those of the subject it has not seen.

        Raises:
            UserError: that subject has no test part.
        """
        rows = np.flatnonzero((self.names[self.subject] == left_out) | (left_out is None))
        if not len(rows):
            raise UserError(f"subjects: {left_out!r} is not in the test part, which has {', '.join(self.names)}")
        return rows

    def of_fit(self, fit: Fit) -> dict[str, np.ndarray]:
        """Scores of an aligned encoder."""
        export, rows = fit.folder / "align" / "export", self.rows_of(fit.left_out)
        key = fingerprint([self.scoring, content_hash([export]), rows.tolist()], 32)

        def compute() -> dict[str, np.ndarray]:
            aligned = load_aligned(export, subject_layers=True)
            targets = TargetTable.read(self.config.shards / "targets" / aligned.target)
            gallery = aligned.prepare_targets(torch.from_numpy(targets.array(self.pictures))).numpy()
            subjects = self.reader.index.subjects
            places = None if aligned.layers is None else aligned.layers.places(subjects)
            data = DataConfig(shards=self.config.shards, part="test")
            out: dict[str, np.ndarray] = {}
            for n in self.repetitions:
                size = self.config.batch_size
                batches = evaluation_batches(self.reader, data, size, n_repetitions=n, indices=rows)
                with torch.inference_mode():
                    predicted = torch.cat([
                        aligned(b["eeg"], None if places is None else places[b["subject"]]) for b in batches
                    ])  # fmt: skip
                out |= self.scores(predicted.numpy(), gallery, rows, n)
            return out

        return cached(fit.folder / "scores", key, compute)

    def of_ridge(self, name: str, setting: Ridge, left_out: str | None) -> dict[str, np.ndarray]:
        """Scores of the linear baseline, fitted here."""
        rows = self.rows_of(left_out)
        trained_on = [ShardReader.open(self.config.shards / part).index.fingerprint for part in PARTS[:2]]
        table = TargetTable.read(self.config.shards / "targets" / setting.target)
        key = fingerprint([self.scoring, trained_on, setting.model_dump(), table.fingerprint, rows.tolist()], 32)

        def compute() -> dict[str, np.ndarray]:
            train, validation, test = (self.parts(setting, table)[part] for part in PARTS)
            place = None if left_out is None else self.names.tolist().index(left_out)
            fitted = PooledRidge(train, validation, half_whitened=setting.half_whitened, left_out=place)
            gallery, order = fitted.space(table.array(self.pictures)), np.argsort(self.subject, kind="stable")
            out: dict[str, np.ndarray] = {}
            for n in self.repetitions:
                predicted = np.empty((len(order), gallery.shape[1]))
                predicted[order] = np.concatenate(fitted.predict(test, n_repetitions=n).predictions)
                out |= self.scores(predicted[rows], gallery, rows, n)
            return out

        return cached(self.config.folder(name, left_out), key, compute)

    def parts(self, setting: Ridge, table: TargetTable) -> dict[str, Part]:
        """Every part as the ridge reads it: binned single trials per subject, as many as each of its pictures has."""
        if (setting.bins, table.name) not in self._parts:
            self._parts[setting.bins, table.name] = {
                part: self._part(self.reader if part == "test" else ShardReader.open(self.config.shards / part),
                                 setting, table)
                for part in PARTS
            }  # fmt: skip
        return self._parts[setting.bins, table.name]

    def _part(self, reader: ShardReader, setting: Ridge, table: TargetTable) -> Part:
        index, bins = reader.index, setting.bins.model_dump()
        eeg, targets = [], []
        for name in self.names:
            rows = np.flatnonzero(index.column("subject") == name)
            if not len(rows):
                raise UserError(
                    f"{index.folder}: subject {name} is not there; the ridge needs every subject in every part"
                )
            fewest = int(index.n_repetitions[rows].min())
            trials = (reader.eeg(int(i))[:fewest] for i in rows)
            eeg.append(np.stack([time_bins(t, sfreq=index.sfreq, tmin=index.tmin, **bins) for t in trials]))
            targets.append(table.array(index.column("image_sha256")[rows]))
        return Part(eeg, targets)

    def scores(self, predicted: np.ndarray, gallery: np.ndarray, rows: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Tables [S, M], NaN outside ``rows`` [r], of predictions [r, D] for those rows and a gallery [M, D]."""
        similarity, own = cosine_similarity(predicted, gallery), self.own[rows]
        subject, out = self.names[self.subject[rows]], dict[str, np.ndarray]()
        for ways in sorted({min(ways, len(gallery)) for ways in self.config.ways}):
            for k in (k for k in TOPS if k < ways):

                def score(r: np.ndarray, paired: np.ndarray, ways: int = ways, k: int = k) -> np.ndarray:
                    return top_k_in_random_galleries(similarity[r], paired, ways=ways, k=k)

                drawn = {"seed": self.config.bootstrap_seed, "n_draws": self.config.n_draws}
                values = {
                    "": score(np.arange(len(rows)), own),
                    "/control": mispaired_scores(score, subject, own, **drawn),
                }
                for kind, value in values.items():
                    table = np.full((len(self.names), len(self.pictures)), np.nan)
                    table[self.subject[rows], own] = value
                    out[f"{n}/{ways}/{k}{kind}"] = table
        return out
