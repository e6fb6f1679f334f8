"""Score EEG → image retrieval and generated pictures on the test part, with intervals and controls.

    python ttd/eval.py --config configs/eval/demo.yaml
    accelerate launch ttd/eval.py --config configs/eval/demo.yaml     # networks look at pictures on all ranks

Opens the test part; the ledger beside the split manifest counts it. Writes metrics.json and table.md. Run the same command
again to resume: what a network saw in a picture is kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ttd.baselines.bins import time_bins
from ttd.baselines.ridge import Part, pooled_half_whitened_ridge
from ttd.config import FailedItemsError, Plan, fingerprint, run
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.splits import open_test
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.data.targets import TargetTable
from ttd.diffusion.targets import ClipTargets, find_missing
from ttd.engine.accelerator import TTDAccelerator, make_accelerator
from ttd.engine.items import Item, ItemsConfig, run_items
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.engine.tracking import progress
from ttd.experiments.eval import EvalConfig
from ttd.metrics.decoding import retrieval_rows
from ttd.metrics.features import content_hash
from ttd.metrics.networks import FeatureExtractor, PerceptualDistance, load_extractor, load_lpips
from ttd.metrics.networks import find_missing as find_weights_missing
from ttd.metrics.pixel import resize
from ttd.metrics.reconstruction import (
    Described,
    ScoredRun,
    difference_rows,
    read_manifest,
    read_pictures,
    reconstruction_rows,
    scored_run,
)
from ttd.metrics.table import Row, table_markdown, write_results
from ttd.objectives.contrastive import load_aligned
from ttd.simulation.judge import Judge, load_judge
from ttd.simulation.scenes import COLOURS, KINDS
from ttd.simulation.study import read_scenes

PARTS = ("train", "validation", "test")
JUDGE_SIZE = 64
"""Side of the pictures the judge was trained on."""


def check(config: EvalConfig) -> Plan:
    """Everything that is to be scored must be there."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    for name in PARTS:
        if not (config.shards / name / "index.json").is_file():
            plan.problems.append(f"shards: {config.shards / name} holds no shards; build them first")
    if config.retrieval.run and not (config.retrieval.run / "export" / "encoder").is_dir():
        plan.problems.append(
            f"retrieval.run: {config.retrieval.run} holds no export/encoder; run ttd/align.py to its end"
        )
    for name, folder in config.pictures.runs.items():
        if not (folder / "manifest.jsonl").is_file():
            plan.problems.append(f"pictures.runs.{name}: {folder} holds no manifest.jsonl; run ttd/generate.py first")
    if config.pictures.runs:
        missing = find_missing(str(config.pictures.clip))
        plan.problems += [f"pictures.clip: {missing}"] if missing else []
        judge = config.pictures.judge
        if judge is not None and not (judge / "config.json").is_file():
            plan.problems.append(
                f"pictures.judge: {judge} holds no judge; train one with ttd/train_base.py, or give null"
            )
        if not (config.shards / "targets" / "clip" / "index.json").is_file():
            plan.problems.append(
                f"shards: {config.shards} lacks targets/clip; make them with shards/precompute_targets.py"
            )
    if not plan.problems:
        plan.problems += unlike_runs(config)
    for name in config.pictures.networks if config.pictures.runs else ():
        missing_weights = find_weights_missing(
            "alexnet_2" if name == "lpips" else name, config.pictures.network_weights
        )
        plan.problems += [f"pictures.networks: {missing_weights}"] if missing_weights else []
    if not config.retrieval.run and not config.pictures.runs:
        plan.problems.append("retrieval.run or pictures.runs: nothing to score; name an alignment or a generation run")
    plan.notes.append("evaluation: opens the test part once; about a minute on two cores for the demo, 1 GB of memory")
    return plan


def unlike_runs(config: EvalConfig) -> list[str]:
    """Runs that are to be compared must have drawn the same pictures for the same subjects, as many of each."""
    drawn = {
        name: Counter(
            (item["subject"], item["image_sha256"])
            for item in read_manifest(config.pictures.runs[name], all_samples=config.pictures.samples == "all")
            if item["control"] is None
        )
        for name in {name for pair in config.pictures.compare for name in pair}
    }
    return [
        f"pictures.compare: {first} and {second} drew other pictures, or not as many; generate both with the same seed, "
        "subjects, n_items and keep"
        for first, second in config.pictures.compare
        if drawn[first] != drawn[second]
    ]


def main(config: EvalConfig) -> None:
    accelerator = make_accelerator()
    open_run_folder(config.output_dir, config, main=accelerator.is_main_process, world_size=accelerator.num_processes)
    manifests = {
        name: read_manifest(folder, all_samples=config.pictures.samples == "all")
        for name, folder in config.pictures.runs.items()
    }
    features = Features(config, accelerator)
    features.make([item[name] for items in manifests.values() for item in items for name in ("path", "shown_path")])
    if accelerator.is_main_process:  # all else takes seconds
        write_table(config, manifests, features)


def write_table(config: EvalConfig, manifests: dict[str, list[dict[str, Any]]], features: Features) -> None:
    """Open the test part, score everything, and leave ``metrics.json`` and ``table.md``."""
    opened = open_test(config.shards, who="eval", config_hash=fingerprint(config))
    facts = ShardIndex.read(config.shards / "train").facts
    labels = {"study": facts.study, "channels": len(next(iter(facts.caps.values()))), "inductive": True}
    rows, notes = [], []
    if config.retrieval.run:
        rows += decode(config, config.retrieval.run, labels)
    else:
        notes.append("retrieval: not run (retrieval.run is not given)")
    scored = {name: score_pictures(config, name, items, features, labels) for name, items in manifests.items()}
    draws = {"seed": config.seed, "n_resamples": config.n_resamples, "n_draws": config.n_draws}
    for run_ in scored.values():
        rows += reconstruction_rows(run_, **draws)
    for first, second in config.pictures.compare:
        rows += difference_rows(scored[first], scored[second], **draws)
    if not config.pictures.runs:
        notes.append("generated pictures: not run (pictures.runs is empty)")
    heading = f"{facts.study}: test part" + (" (simulated study)" if facts.simulated else "")
    more = {"simulated": facts.simulated, "test_part_opened": opened, "not_run": notes, "study": facts.study}
    write_results(config.output_dir, rows, heading=heading, facts=more)
    print(table_markdown(rows, heading))


# --- EEG → image retrieval ------------------------------------------------------------------------------------------


def decode(config: EvalConfig, folder: Path, labels: dict[str, Any]) -> list[Row]:
    """Retrieval by the encoder and by the ridge, for every number of repetitions."""
    aligned = load_aligned(folder / "export", subject_layers=True)
    reader = ShardReader.open(config.shards / "test", open_test=True)
    index = reader.index
    subject, shas = index.column("subject"), index.column("image_sha256")
    places = None if aligned.layers is None else aligned.layers.places(index.subjects)
    pictures, own = np.unique(shas, return_inverse=True)
    targets = TargetTable.read(config.shards / "targets" / aligned.target)
    gallery = aligned.prepare_targets(torch.from_numpy(targets.array(pictures))).numpy()
    data = DataConfig(shards=config.shards, part="test")
    common: dict[str, Any] = {
        "ways": config.retrieval.ways, "seed": config.seed,
        "n_resamples": config.n_resamples, "n_draws": config.n_draws,
    }  # fmt: skip
    readers = {name: ShardReader.open(config.shards / name, open_test=name == "test") for name in PARTS}
    parts = {name: binned(config, r, targets) for name, r in readers.items()} if config.retrieval.ridge else {}
    most = int(index.n_repetitions.max())
    rows = []
    for n in sorted({min(n, most) for n in config.retrieval.repetitions}, reverse=True):
        batches = evaluation_batches(reader, data, config.batch_size, n_repetitions=n)
        with torch.inference_mode():
            predicted = torch.cat(
                [
                    aligned(batch["eeg"], None if places is None else places[batch["subject"]])
                    for batch in progress(batches, desc=f"decode, {n} repetitions")
                ]
            )
        described = {**labels, "repetitions": n, "selection": "validation part"}
        rows += retrieval_rows("encoder", predicted.numpy(), gallery, subject, own, labels=described, **common)
        if parts:
            rows += ridge_rows(parts, n, labels=described, common=common)
    return rows


@dataclass(frozen=True)
class Binned:
    """One part of the split as the ridge reads it: trials and targets per subject, the pictures [n] of each."""

    part: Part
    pictures: list[np.ndarray]
    subjects: list[str]


def ridge_rows(
    parts: dict[str, Binned], n_repetitions: int, *, labels: dict[str, Any], common: dict[str, Any]
) -> list[Row]:
    """The linear baseline on the same split, retrieving from the same pictures."""
    train, validation, test = (parts[name].part for name in PARTS)
    result = pooled_half_whitened_ridge(train, validation, test, n_repetitions=n_repetitions)
    pictures = parts["test"].pictures
    _, first, own = np.unique(np.concatenate(pictures), return_index=True, return_inverse=True)
    subject = np.repeat(parts["test"].subjects, [len(p) for p in pictures])
    gallery = np.concatenate(result.gallery)[first]
    return retrieval_rows("ridge", np.concatenate(result.predictions), gallery, subject, own, labels=labels, **common)


def binned(config: EvalConfig, reader: ShardReader, targets: TargetTable) -> Binned:
    """Single trials as means over time bins. Repetitions beyond the fewest of a subject's pictures are left out."""
    index, bins = reader.index, config.bins
    names, shas = index.column("subject"), index.column("image_sha256")
    eeg, pictures = [], []
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
        pictures.append(shas[rows])
    return Binned(Part(eeg, [targets.array(p) for p in pictures]), pictures, index.subjects)


# --- generated pictures ---------------------------------------------------------------------------------------------


class Features:
    """What CLIP and judge see in picture files, each looked at once: item by item, shared among ranks, kept under the hash
    of its content in the run folder."""

    def __init__(self, config: EvalConfig, accelerator: TTDAccelerator):
        self.config, self.accelerator = config, accelerator
        self.folder = config.output_dir / "features"
        self.sha256: dict[Path, str] = {}

    def make(self, paths: list[Path]) -> None:
        """Look at every file that has not been looked at. Every rank must call it.

        Raises:
            FailedItemsError: a file could not be described.
        """
        if not paths:
            return
        networks = [folder for folder in (self.config.pictures.clip, self.config.pictures.judge) if folder is not None]
        identities = [content_hash(networks), *(look.identity for look in self.extractors.values())]
        self.sha256 = {path: sha256(path.read_bytes()).hexdigest() for path in dict.fromkeys(paths)}
        files = {sha: path for path, sha in self.sha256.items()}
        items = [Item(sha, files[sha]) for sha in sorted(files)]
        result = run_items(
            items, self._look, self.folder, inputs=identities, config=ItemsConfig(batch_size=self.config.batch_size),
            accelerator=self.accelerator, desc="features",
        )  # fmt: skip
        if result.failed:
            raise FailedItemsError(result.summary())

    def _look(self, items: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        paths = [item.payload for item in items]
        clip = self.clip([path.read_bytes() for path in paths]).astype(np.float32)
        alike: dict[tuple[int, int], list[int]] = {}  # drawn and shown pictures may differ in size
        for i, path in enumerate(paths):
            with Image.open(path) as picture:
                alike.setdefault(picture.size, []).append(i)
        for group in alike.values():
            seen = self._networks_see(read_pictures([paths[i] for i in group]))
            for place, i in enumerate(group):
                values = {name: value[place] for name, value in seen.items()}
                np.savez(folders[i] / "features.npz", clip=clip[i], **values)
        return [{"path": str(path)} for path in paths]

    def _networks_see(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """What judge and networks see in pictures [N, H, W, 3] of one size."""
        seen = {f"network.{name}": look(pictures) for name, look in self.extractors.items()}
        if self.judge is not None:
            small = torch.from_numpy(resize(pictures, JUDGE_SIZE)).permute(0, 3, 1, 2)
            with torch.inference_mode():
                seen["judge"] = self.judge.features(small).numpy()
                words = self.judge(small)
            seen |= {word: words[word].argmax(1).numpy() for word in ("kind", "colour")}
        return seen

    @cached_property
    def clip(self) -> ClipTargets:
        return ClipTargets(str(self.config.pictures.clip), device=self.accelerator.device)

    @cached_property
    def judge(self) -> Judge | None:
        return None if self.config.pictures.judge is None else load_judge(self.config.pictures.judge)

    @cached_property
    def extractors(self) -> dict[str, FeatureExtractor]:
        folder, names = self.config.pictures.network_weights, self.config.pictures.networks
        device, batch = self.accelerator.device, self.config.batch_size
        return {n: load_extractor(n, folder, device=device, batch_size=batch) for n in names if n != "lpips"}

    @cached_property
    def lpips(self) -> PerceptualDistance | None:
        if "lpips" not in self.config.pictures.networks:
            return None
        return load_lpips(self.config.pictures.network_weights, device=self.accelerator.device)

    def read(self, paths: list[Path]) -> Described:
        """What ``make`` saw in these files, in their order."""
        rows = []
        for path in paths:
            with np.load(self.folder / self.sha256[path] / "features.npz", allow_pickle=False) as file:
                rows.append({name: file[name] for name in file.files})
        seen = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        own = {name: seen.pop(name) for name in [*seen] if name.startswith("network.")}
        return Described(**seen, networks={name.removeprefix("network."): values for name, values in own.items()})


def score_pictures(
    config: EvalConfig, name: str, items: list[dict[str, Any]], features: Features, labels: dict[str, Any]
) -> ScoredRun:
    """One generation run, as CLIP and judge describe it."""
    paths = {item["image_sha256"]: item["shown_path"] for item in items}
    shas = sorted(paths)
    generated, shown = read_pictures([item["path"] for item in items]), read_pictures([paths[sha] for sha in shas])
    seen, truth = features.read([item["path"] for item in items]), features.read([paths[sha] for sha in shas])
    ids = {item["image_sha256"]: item["image_id"] for item in items}
    kind, colour = true_words(config, [ids[sha] for sha in shas])
    return scored_run(
        name, items, generated, seen, shas, shown, replace(truth, kind=kind, colour=colour),
        clip_centre=training_centre(config), pixel_size=config.pictures.pixel_size, ways=config.pictures.ways,
        labels=labels, seed=config.seed, lpips=features.lpips,
    )  # fmt: skip


def true_words(config: EvalConfig, image_ids: list[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Numbers of the true kind and colour of each picture, or None where no study says them."""
    if config.study is None or config.pictures.judge is None:
        return None, None
    scenes = read_scenes(config.study)
    words = [scenes[image_id]["labels"] for image_id in image_ids]
    kind, colour = ([word["kind"] for word in words], [word["colour"] for word in words])
    return np.array([KINDS.index(k) for k in kind]), np.array([COLOURS.index(c) for c in colour])


def training_centre(config: EvalConfig) -> np.ndarray:
    """Mean CLIP embedding [F] of the training pictures."""
    shas = np.unique(ShardIndex.read(config.shards / "train").column("image_sha256"))
    return TargetTable.read(config.shards / "targets" / "clip").array(shas).mean(0)


if __name__ == "__main__":
    run(main, EvalConfig, doc=__doc__, check=check)
