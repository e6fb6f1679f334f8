"""Lift pictures to meshes, phase by phase: describe → refine → lift → score.

    accelerate launch ttd/lift.py --config configs/lift/demo.yaml
    accelerate launch ttd/lift.py pictures=photos/ output_dir=runs/lift-photos lifter.name=depth \\
        lifter.model=depth-anything/Depth-Anything-V2-Small-hf

A vision-language model describes each picture; where the configuration asks for it the picture is drawn again under that
description, or its objects are lifted one by one; the meshes (GLB, PLY) are scored against the true solids where a study
knows them, and their relations against the description. One model is in memory at a time. Run the same command again to
resume.
"""

from __future__ import annotations

import gc
import hashlib
import json
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ttd.config import FailedItemsError, Plan, UserError, run, write_json
from ttd.engine.accelerator import TTDAccelerator, make_accelerator
from ttd.engine.items import WAIT, Item, ItemsResult, Work, read_items, run_items
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.experiments.lift import LiftConfig
from ttd.geometry.camera import DEFAULT_CAMERA, Camera
from ttd.geometry.compose import composed, requests_of
from ttd.geometry.describer import Describer
from ttd.geometry.describer import find_missing as describer_problems
from ttd.geometry.lift_job import Lifted, lifted_files, scores_of, summary_rows, summary_table, write_scores
from ttd.geometry.lifter import Lifter, LiftRequest, LiftResult
from ttd.geometry.lifters import prepare_lifter
from ttd.geometry.likeness import Beside, Likeness, control_of
from ttd.geometry.likeness import problems as clip_problems
from ttd.geometry.refine import Refiner, prompt_of
from ttd.seeding import key
from ttd.simulation.lift_truth import MEAN_SHAPE, Picture, Truths, own_pictures, pictures_of_generation


def check(config: LiftConfig) -> Plan:
    """The pictures and every model must be there."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    if config.generate is not None and not (config.generate / "manifest.jsonl").is_file():
        plan.problems.append(f"generate: {config.generate} holds no manifest.jsonl; run ttd/generate.py first")
    if config.study is not None and not (config.study / "stimuli" / "scenes.json").is_file():
        plan.problems.append(f"study: {config.study} holds no stimuli/scenes.json, so no true solids are known")
    plan.problems += describer_problems(config.describe.model, config.describe.revision) if config.describe else []
    plan.problems += config.refine.problems() if config.refine and "refined" in config.routes else []
    plan.problems += config.lifter.problems() + clip_problems(config.scoring.clip)
    if not plan.problems:
        try:
            n = len(choose(config))
            plan.notes.append(
                f"lifting: {n} pictures on {len(config.routes)} routes; the embedded chain takes about a second each"
            )
        except UserError as error:
            plan.problems.append(str(error))
    return plan


def choose(config: LiftConfig) -> list[Picture]:
    """What is lifted."""
    if config.pictures is not None:
        return own_pictures(config.pictures, config.n_items)
    assert config.generate is not None
    return pictures_of_generation(config.generate, config.study, subject=config.subject, n_items=config.n_items)


@dataclass
class Job:
    """The pictures, and what the phases left on disk so far."""

    config: LiftConfig
    accelerator: TTDAccelerator
    pictures: list[Picture]
    failed: dict[str, str] = field(default_factory=dict)

    def phase(self, name: str, items: list[Item], work: Work, inputs: Any) -> None:
        """One phase over all ranks; what fails is kept for the end, the rest goes on."""
        result: ItemsResult = run_items(
            items, work, self.folder(name), inputs=[inputs, self.config.seed], config=self.config.items,
            accelerator=self.accelerator, desc=name,
        )  # fmt: skip
        self.failed |= {f"{name}/{item}": reason for item, reason in result.failed.items()}

    def folder(self, phase: str) -> Path:
        return self.config.output_dir / phase

    def description(self, picture: Picture) -> dict[str, Any] | None:
        """What the describer said of a picture, None where it said nothing that can be used."""
        path = self.folder("describe") / picture.key / "description.json"
        return json.loads(path.read_text())["description"] if path.is_file() else None

    @cached_property
    def truths(self) -> Truths:
        return Truths(self.config.study, self.config.scoring.n_points, seed=self.config.seed)


def main(config: LiftConfig) -> None:
    accelerator = make_accelerator(timeout=WAIT)
    open_run_folder(config.output_dir, config, main=accelerator.is_main_process, world_size=accelerator.num_processes)
    job = Job(config, accelerator, choose(config))
    for phase in (describe, refine, lift, score):
        phase(job)
        gc.collect()  # its model is out of use, and the next one may be large
    if accelerator.is_main_process:
        summarise(job)
    if job.failed:
        reasons = "".join(f"\n  {item}: {reason}" for item, reason in list(job.failed.items())[:10])
        raise FailedItemsError(f"{len(job.failed)} items failed; the same command tries them again{reasons}")


def describe(job: Job) -> None:
    """Each picture → description.json: the description, or why there is none, and the text as it was written."""
    config = job.config.describe
    if config is None:
        return
    describer = Describer.prepare(config, job.accelerator.device)

    def work(items: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        seeds = [key(job.config.seed, "describe", item.key) for item in items]
        answers = describer.describe([read(item.payload.path) for item in items], seeds=seeds)
        for answer, folder in zip(answers, folders, strict=True):
            content = {name: getattr(answer, name) for name in ("description", "raw", "problems", "provenance")}
            (folder / "description.json").write_text(json.dumps(content, indent=1) + "\n")
        return [{"status": a.status, "reason": a.reason, "problems": a.problems} for a in answers]

    job.phase("describe", [Item(p.key, p, inputs=p.sha256) for p in job.pictures], work, describer.info())


def refine(job: Job) -> None:
    """Each described picture → picture.png, drawn again under its description."""
    config = job.config.refine
    if config is None or "refined" not in job.config.routes:
        return
    refiner = Refiner.prepare(config, device=job.accelerator.device)
    described = [(p, d) for p in job.pictures if (d := job.description(p)) is not None]

    def work(items: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        prompts = [item.payload[1] for item in items]
        seeds = [key(job.config.seed, "refine", item.key) for item in items]
        images = refiner([read(item.payload[0].path) for item in items], prompts, seeds)
        for image, folder in zip(images, folders, strict=True):
            Image.fromarray(image).save(folder / "picture.png")
        return [{"prompt": prompt} for prompt in prompts]

    items = [Item(p.key, (p, prompt_of(d, config)), inputs=[p.sha256, prompt_of(d, config)]) for p, d in described]
    job.phase("refine", items, work, [refiner.revision, config.model_dump(mode="json")])


def lift(job: Job) -> None:
    """Each picture on each route → mesh.glb, mesh.ply, poster.png, turntable.gif."""
    config = job.config
    lifter = prepare_lifter(config.lifter, job.accelerator.device)
    camera = lifter.camera or config.camera or DEFAULT_CAMERA
    done: dict[str, LiftResult] = {}  # of a batch in which another item failed, and which is tried item by item

    def work(items: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        for item in items:
            if item.key not in done:
                done[item.key] = one(job, lifter, camera, item)
        failures = [f"{item.key}: {done[item.key].reason}" for item in items if done[item.key].status == "failed"]
        if failures:
            raise RuntimeError("; ".join(failures))
        records = []
        for item, folder in zip(items, folders, strict=True):
            result = done.pop(item.key)
            facts = {**item.payload[0].facts, "route": item.payload[1], "item": item.payload[0].item}
            image = read(source(job, *item.payload))
            files, record = lifted_files(result, image, lifter.info(), camera, config.scoring, facts=facts)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            records.append(record)
        return records

    inputs = [lifter.revision, config.lifter.model_dump(mode="json"), camera.model_dump(mode="json")]
    views = {name: getattr(config.scoring, name) for name in ("n_frames", "view_size")}
    with closing(lifter):
        job.phase("lift", routes(job), work, [inputs, views])


def routes(job: Job) -> list[Item]:
    """A picture and a route are one item; what it depends on is the picture, drawn again or not, and what it is said to show."""
    items = []
    for picture in job.pictures:
        described = job.description(picture)
        for route in job.config.routes:
            path = source(job, picture, route)
            if (route != "plain" and described is None) or not path.is_file():
                continue  # not described, or not drawn again: n of the row says how many are left
            said = described if route == "composed" else None
            inputs = [hashlib.sha256(path.read_bytes()).hexdigest(), said]
            items.append(Item(f"{picture.key}_{route}", (picture, route), inputs=inputs))
    return items


def finished(job: Job, phase: str, items: list[Item]) -> list[Item]:
    """The items that a phase has done; of the others the reason is told at the end."""
    done = {record["key"] for record in read_items(job.folder(phase), [item.key for item in items])}
    return [item for item in items if item.key in done]


def source(job: Job, picture: Picture, route: str) -> Path:
    """The picture that is lifted on a route."""
    return job.folder("refine") / picture.key / "picture.png" if route == "refined" else picture.path


def one(job: Job, lifter: Lifter, camera: Camera, item: Item) -> LiftResult:
    """Lift one item on its route."""
    picture, route = item.payload
    image, seed = read(source(job, picture, route)), key(job.config.seed, "lift", picture.key)
    description = job.description(picture)
    if route == "composed":
        assert description is not None
        whole_scene = lifter.camera is not None  # trained for scenes seen by one camera, not for single objects
        requests = requests_of(item.key, image, description, camera, whole_scene=whole_scene, seed=seed)
        return composed(item.key, lifter.lift(requests), description, whole_scene=whole_scene)
    truth = job.truths.surface(picture) if picture.scene else None
    known = lifter.camera or job.config.camera
    request = LiftRequest(item.key, image, seed=seed, description=description, camera=known, truth=truth)
    (result,) = lifter.lift([request])
    return result


def score(job: Job) -> None:
    """Each lifted item → metrics.json: against the true solids where a study knows them, else against its picture."""
    config, lifted = job.config, job.folder("lift")
    gallery, places = gallery_of(job.pictures) if config.scoring.clip else ({}, {})
    likeness = Likeness(
        config.scoring.clip, device=job.accelerator.device, camera=config.camera or DEFAULT_CAMERA,
        gallery=map(read, gallery.values()), ways=config.scoring.ways,
    )  # fmt: skip
    items = []
    for item in finished(job, "lift", routes(job)):
        picture = item.payload[0]
        others = job.truths.others(picture, job.pictures, config.scoring.n_controls)
        surfaces = [lifted / name / "mesh.ply" for name in (item.key, partner(picture, item.payload[1]))]
        inputs = [
            [hashlib.sha256(ply.read_bytes()).hexdigest() if ply.is_file() else None for ply in surfaces],
            picture.sha256, picture.scene, [(other.scene, other.sha256) for other in others], job.description(picture),
        ]  # fmt: skip
        items.append(Item(item.key, (*item.payload, others), inputs=inputs))

    def surface(name: str) -> Lifted:
        return Lifted.read(lifted / name, config.scoring.n_points, seed=config.seed)

    def beside(picture: Picture, route: str) -> Beside:
        """What an item without truth is held against: its picture, and of decoded ones the surface of the picture shown."""
        decoded = picture.facts["input"] == "decoded"
        points = surface(partner(picture, route)).points if decoded else None
        return Beside(read(picture.path), points, places.get(picture.item))

    def work(batch: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        for item, folder in zip(batch, folders, strict=True):
            picture, route, others = item.payload
            own, truth = surface(item.key), job.truths.of(picture) if picture.scene else None
            content = scores_of(
                own, truth, [job.truths.of(other) for other in others] if truth else [], job.description(picture),
                described=config.describe is not None and route == "plain", camera=job.truths.camera,
            )  # fmt: skip
            if truth is None or config.scoring.clip is not None:
                twins = [beside(other, route) for other in others]
                seed = key(config.seed, "n-way", item.key)
                scores, wrong = likeness.scores(own.mesh, own.points, beside(picture, route), twins, seed=seed)
                content["metrics"], content["control"] = (
                    scores | content["metrics"],
                    control_of(wrong) | content["control"],
                )
                content["ways"] = likeness.ways
            write_scores(folder, content, {"scoring": config.scoring.model_dump(mode="json")})
        return [{} for _ in batch]

    job.phase("score", items, work, [config.scoring.model_dump(mode="json"), list(gallery)])


def gallery_of(pictures: list[Picture]) -> tuple[dict[str, Path], dict[str, int]]:
    """The gallery of the n-way score, what was shown (or is the user's own), each picture once, by hash; each item's place in it.

    What cannot be read is left out; its items have failed before.
    """
    gallery: dict[str, Path] = {}
    place, places = {}, {}
    for picture in pictures:
        if picture.facts["input"] == "decoded":
            continue
        if picture.sha256 not in gallery:
            try:
                read(picture.path)
            except UserError:
                continue
            place[picture.sha256] = len(gallery)
            gallery[picture.sha256] = picture.path
        places[picture.item] = place[picture.sha256]
    return gallery, places


def partner(picture: Picture, route: str) -> str:
    """The lifted item of the picture that was shown, for one that was decoded."""
    return f"{picture.item}_oracle_{route}"


def summarise(job: Job) -> None:
    """Write lift.json from the finished items and print its headline."""
    config = job.config
    items = finished(job, "score", finished(job, "lift", routes(job)))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in items:
        content = json.loads((job.folder("score") / item.key / "metrics.json").read_text())
        groups.setdefault((item.payload[0].facts["input"], item.payload[1]), []).append(content)
    known = {p.facts["image_id"]: p for p in job.pictures if p.scene}
    if known:
        groups[MEAN_SHAPE, "–"] = job.truths.mean_shape(list(known.values()))
    subjects = sorted({p.facts["subject"] for p in job.pictures if p.facts.get("subject")})
    rows = summary_rows(groups, config.scoring, seed=config.seed, labels={"subjects": subjects})
    records = read_items(job.folder("lift"), [item.key for item in items])
    counts = {status: sum(r["status"] == status for r in records) for status in ("ok", "empty", "refused")}
    described = read_items(job.folder("describe"), [p.key for p in job.pictures])
    content = {
        "rows": rows, "counts": counts, "failed": job.failed, "provenance": records[0]["provenance"] if records else {},
        "described": {s: sum(r["status"] == s for r in described) for s in ("ok", "truncated", "failed")},
    }  # fmt: skip
    write_json(config.output_dir / "lift.json", content)
    print(summary_table(rows))
    for status in ("empty", "refused"):
        if counts[status]:
            first = next(r for r in records if r["status"] == status)
            print(f"{counts[status]} of {len(records)} {status}; first {first['key']}: {first['reason']}")


def read(path: Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3].

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a picture ({error})") from error


if __name__ == "__main__":
    run(main, LiftConfig, doc=__doc__, check=check)
