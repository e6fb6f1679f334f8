"""Lift pictures to meshes (GLB): as they were shown (oracle) and as they were decoded from EEG.

    accelerate launch ttd/lift.py --config configs/lift/demo.yaml

Reads neither EEG nor the diffusion base. Run the same command again to resume. Scores each mesh by Chamfer distance and
F-score against the true solids, beside a control that pairs it with the solids of other pictures.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ttd.config import FailedItemsError, Plan, UserError, run, write_json
from ttd.engine.accelerator import make_accelerator
from ttd.engine.items import Item, read_items, run_items
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.experiments.lift import LiftConfig
from ttd.geometry.lift_job import INPUTS, item_files, read_item, summary_rows, summary_table
from ttd.geometry.lifter import LiftRequest
from ttd.geometry.meshes import sample_points
from ttd.geometry.sdf_lifter import SDFLifter
from ttd.metrics.manifest import read_manifest
from ttd.seeding import key
from ttd.simulation.scenes import draw_scene, mesh
from ttd.simulation.study import read_scenes


def check(config: LiftConfig) -> Plan:
    plan = Plan(problems=check_resumable(config.output_dir, config))
    if not (config.generate / "manifest.jsonl").is_file():
        plan.problems.append(f"generate: {config.generate} holds no manifest.jsonl; run ttd/generate.py first")
    if not (config.study / "stimuli" / "scenes.json").is_file():
        plan.problems.append(f"study: {config.study} holds no stimuli/scenes.json, so no true solids are known")
    if not (config.lifter.weights / "config.json").is_file():
        plan.problems.append(
            f"lifter.weights: {config.lifter.weights} holds no lifter; train it with ttd/train_lift.py"
        )
    n = len(INPUTS) * config.n_items
    plan.notes.append(f"lifting: {n} pictures, about {n} s on one core, {0.25 * n:.0f} MB of disk, 1 GB of memory")
    return plan


def main(config: LiftConfig) -> None:
    accelerator = make_accelerator()
    open_run_folder(config.output_dir, config, main=accelerator.is_main_process)
    lifter = SDFLifter.prepare(config.lifter)
    items = choose_items(config)

    def work(batch: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        images = [np.asarray(Image.open(item.payload["image"]).convert("RGB")) for item in batch]
        results = lifter.lift([LiftRequest(i.key, image) for i, image in zip(batch, images, strict=True)])
        records = []
        for item, image, result, folder in zip(batch, images, results, folders, strict=True):
            true, facts = true_points(config, item), item.payload["facts"]
            files, record = item_files(
                result, image, true, lifter.info(), lifter.network.config.camera, config.scoring,
                seed=config.seed, facts=facts,
            )  # fmt: skip
            for name, content in files.items():
                (folder / name).write_bytes(content)
            records.append(record)
        return records

    inputs = {"lifter": lifter.revision, "cells": config.lifter.cells, "scoring": config.scoring.model_dump()}
    result = run_items(
        items, work, config.output_dir / "items", inputs=[inputs, config.seed], config=config.items,
        accelerator=accelerator, desc="lift",
    )  # fmt: skip
    if accelerator.is_main_process:
        summarise(config, lifter, [item for item in items if item.key in set(result.done)])
    if result.failed:
        raise FailedItemsError(result.summary())


def choose_items(config: LiftConfig) -> list[Item]:
    """The first ``n_items`` pictures of the subject, each as shown and as decoded."""
    manifest = [line for line in read_manifest(config.generate) if line["control"] is None]
    subject = config.subject or min(line["subject"] for line in manifest)
    mine = [line for line in manifest if line["subject"] == subject][: config.n_items]
    if len(mine) < 2:
        known = ", ".join(sorted({line["subject"] for line in manifest}))
        raise UserError(f"subject: {subject!r} has {len(mine)} pictures in {config.generate}; known there: {known}")
    scenes = read_scenes(config.study)
    unknown = [line["image_id"] for line in mine if line["image_id"] not in scenes]
    if unknown:
        raise UserError(
            f"study: {config.study} does not know the pictures {', '.join(unknown[:5])} of {config.generate}"
        )
    items = []
    for line in mine:
        scene = {name: scenes[line["image_id"]][name] for name in ("seed", "n_solids")}
        for source, path in zip(INPUTS, (line["shown_path"], line["path"]), strict=True):
            facts = {"input": source, "subject": subject, "image_id": line["image_id"], "item": line["key"]}
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            payload = {"image": path, "facts": facts, "scene": scene}
            items.append(Item(f"{line['key']}_{source}", payload, inputs={"image": digest, "scene": scene}))
    return items


def true_points(config: LiftConfig, item: Item) -> np.ndarray:
    """Points [P, 3] on the true solids of an item."""
    scene = draw_scene(**item.payload["scene"])
    return sample_points(mesh(scene), config.scoring.n_points, seed=key(config.seed, "true", scene.seed))


def summarise(config: LiftConfig, lifter: SDFLifter, items: list[Item]) -> None:
    """Write lift.json from the finished items and print its table."""
    folder = config.output_dir / "items"
    scored = {
        source: [
            read_item(folder / item.key, true_points(config, item), config.scoring, seed=config.seed)
            for item in items
            if item.payload["facts"]["input"] == source
        ]
        for source in INPUTS
    }
    subjects = sorted({item.payload["facts"]["subject"] for item in items})
    rows = summary_rows(scored, config.scoring, seed=config.seed, labels={"subjects": subjects})
    records = read_items(folder, [item.key for item in items])
    provenance = records[0]["provenance"] if records else {}
    counts = {status: sum(r["status"] == status for r in records) for status in ("ok", "empty")}
    write_json(config.output_dir / "lift.json", {"rows": rows, "counts": counts, "provenance": provenance})
    print(summary_table(rows))


if __name__ == "__main__":
    run(main, LiftConfig, doc=__doc__, check=check)
