"""Generated pictures of the test part: every run and every control, scored beside what was shown.

Letters: R generated pictures, M shown pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.pictures import PictureDecoder
from ttd.data.reader import ShardReader
from ttd.data.targets import TargetTable
from ttd.engine.tracking import progress
from ttd.evaluation.features import Features
from ttd.experiments.eval import EvalConfig
from ttd.metrics.manifest import CONTROL_NAMES, read_manifest, read_pictures
from ttd.metrics.picture_scores import Seen
from ttd.metrics.reconstruction import (
    ScoredRun,
    difference_rows,
    distribution_rows,
    item_scores,
    joined_seeds,
    reconstruction_rows,
    scored_run,
)
from ttd.metrics.row import Row
from ttd.seeding import key
from ttd.simulation.scenes import COLOURS, KINDS
from ttd.simulation.study import read_scenes

N_WORDS = {"kind": len(KINDS), "colour": len(COLOURS)}
"""What the judge chooses among."""
MEAN_PICTURE = "always the mean picture"
N_MEAN = 1000
"""Training pictures in the mean; of more it hardly changes, and pictures of a large study take long to decode."""

Items = list[dict[str, Any]]


def read_items(config: EvalConfig) -> dict[str, list[Items]]:
    """The manifests of every run, one for each training seed, in one order: by control, subject, picture and sample."""
    every = config.pictures.samples == "all"
    out: dict[str, list[Items]] = {}
    for name, folders in config.pictures.folders.items():
        out[name] = [
            sorted(
                read_manifest(folder, all_samples=every),
                key=lambda i: (i["control"] or "", str(i["subject"]), i["image_sha256"], str(i["path"])),
            )
            for folder in folders
        ]
    return out


def unlike_runs(config: EvalConfig) -> list[str]:
    """Runs that are compared or averaged must have drawn the same pictures for the same subjects, as many of each."""

    def drawn(items: Items) -> Counter[tuple[str, str]]:
        return Counter((str(i["subject"]), i["image_sha256"]) for i in items if i["control"] is None)

    try:
        manifests = read_items(config)
    except UserError as error:
        return [f"pictures.runs: {error}"]
    problems = []
    for name, (first, *others) in manifests.items():
        folders = config.pictures.folders[name]
        problems += [
            f"pictures.runs.{name}: {folder} drew other pictures than {folders[0]}, or not as many; runs of one name differ "
            "in their training seed alone"
            for folder, items in zip(folders[1:], others, strict=True)
            if drawn(items) != drawn(first) or len(items) != len(first)
        ]
    return problems + [
        f"pictures.compare: {first} and {second} drew other pictures, or not as many; generate both with the same seed, "
        "subjects, n_items and keep"
        for first, second in config.pictures.compare
        if drawn(manifests[first][0]) != drawn(manifests[second][0])
    ]


def mean_picture(config: EvalConfig, size: int) -> Path:
    """The mean of training pictures, ``size`` pixels wide and high, as a file of the run folder."""
    shas = np.unique(ShardIndex.read(config.shards / "train").column("image_sha256"))
    chosen = sorted(shas, key=lambda sha: key(config.seed, "mean picture", str(sha)))[:N_MEAN]
    reader = ShardReader.open(config.shards / "images")
    decoder, total = PictureDecoder(size, threads=2), np.zeros((size, size, 3))
    for sha in progress(chosen, desc="mean picture"):
        one = np.empty((1, size, size, 3), np.uint8)
        decoder.batch([(str(sha), reader.image(reader.index.find(str(sha))))], one)
        total += one[0]
    path = config.output_dir / "mean_picture.png"
    aside = path.with_suffix(".aside.png")
    Image.fromarray((total / len(chosen)).round().astype(np.uint8)).save(aside)
    aside.replace(path)
    return path


def mean_items(items: Items, path: Path) -> Items:
    """One item for each shown picture, all of them drawn as the mean picture, whoever looked."""
    shown = {item["image_sha256"]: item for item in items if item["control"] is None}
    same = {"path": path, "subject": "anybody", "candidates": 1, "samples": 1, "control": None}
    return [{**item, **same, "key": f"mean_{sha[:16]}"} for sha, item in sorted(shown.items())]


class Scorer:
    """Scores items of one run as CLIP, the judge and the networks describe them."""

    def __init__(self, config: EvalConfig, features: Features, labels: dict[str, Any]):
        self.config, self.features, self.labels = config, features, labels
        shas = np.unique(ShardIndex.read(config.shards / "train").column("image_sha256"))
        self.centre = TargetTable.read(config.shards / "targets" / "clip").array(shas).mean(0)

    def seeds(self, name: str, seeds: Sequence[Items], *, control: str | None = None) -> ScoredRun:
        """One run, or the mean over the training seeds of several; ``control`` marks what must fail."""
        return joined_seeds([self.run(name, items, control=control) for items in seeds])

    def run(self, name: str, items: Items, *, control: str | None = None) -> ScoredRun:
        config, pictures = self.config, self.config.pictures
        paths = {item["image_sha256"]: item["shown_path"] for item in items}
        shas = sorted(paths)
        ids = {item["image_sha256"]: item["image_id"] for item in items}
        seen, truth = self.features.read([i["path"] for i in items]), self.features.read([paths[sha] for sha in shas])
        kind, colour = true_words(config, [ids[sha] for sha in shas])
        return scored_run(
            name, items, Seen(read_pictures([i["path"] for i in items]), seen), shas,
            Seen(read_pictures([paths[sha] for sha in shas]), replace(truth, kind=kind, colour=colour, n_words=N_WORDS)),
            clip_centre=self.centre, pixel_size=pictures.pixel_size, ways=pictures.ways, seed=config.seed,
            labels=self.labels if control is None else {**self.labels, "control": control},
            lpips=self.features.lpips, pairwise=pictures.pairwise,
        )  # fmt: skip


def score_pictures(
    config: EvalConfig, manifests: dict[str, list[Items]], mean: Items, features: Features, labels: dict[str, Any]
) -> tuple[list[Row], Items]:
    """Rows of all runs, their differences and controls; and the scores of every generated picture."""
    scorer = Scorer(config, features, labels)
    draws = {"seed": config.seed, "n_resamples": config.n_resamples, "n_draws": config.n_draws}
    rows: list[Row] = []
    records: Items = []
    scored = {}
    for name, seeds in manifests.items():
        own = [[item for item in items if item["control"] in (None, "shuffled")] for items in seeds]
        scored[name] = scorer.seeds(name, own)
        rows += reconstruction_rows(scored[name], **draws)
        rows += distribution_rows(scored[name], seed=config.seed)
        records += item_scores(scored[name], own[0], words)
        for control in sorted({item["control"] for item in seeds[0]} - {None}):
            blind = [[{**i, "control": None} for i in items if i["control"] == control] for items in seeds]
            run = scorer.seeds(name, blind, control=CONTROL_NAMES[control])
            rows += reconstruction_rows(run, **draws) + distribution_rows(run, seed=config.seed)
            if control != "shuffled":  # among the run's own already
                records += [{**record, "control": control} for record in item_scores(run, blind[0], words)]
    for first, second in config.pictures.compare:
        rows += difference_rows(scored[first], scored[second], **draws)
    if mean:
        constant = scorer.run("any model", mean, control=MEAN_PICTURE)
        rows += reconstruction_rows(constant, **draws) + distribution_rows(constant, seed=config.seed)
    return rows, records


def words(kind: int, colour: int) -> dict[str, str]:
    """The judge's numbers as words."""
    return {"kind": KINDS[kind], "colour": COLOURS[colour]}


def true_words(config: EvalConfig, image_ids: list[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Numbers of the true kind and colour of each picture, or None where no study says them."""
    if config.study is None or config.pictures.judge is None:
        return None, None
    scenes = read_scenes(config.study)
    unknown = [image_id for image_id in image_ids if image_id not in scenes]
    if unknown:
        raise UserError(f"study: {config.study} knows no scene {unknown[0]!r}; give the study of these shards, or null")
    labels = [scenes[image_id]["labels"] for image_id in image_ids]
    kind, colour = ([word["kind"] for word in labels], [word["colour"] for word in labels])
    return np.array([KINDS.index(k) for k in kind]), np.array([COLOURS.index(c) for c in colour])
