"""The pictures of a lifting job, and what a simulated study knows of them: true solids, masks, and the mean shape.

Letters: S pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from ttd.config import UserError
from ttd.geometry.camera import Camera
from ttd.geometry.lift_job import Truth, constant_scores
from ttd.geometry.lifter import Surface
from ttd.geometry.meshes import sample_surface
from ttd.geometry.surfaces import surface_of
from ttd.metrics.geometry import SampledSurface, cd_l1_mean
from ttd.metrics.manifest import read_manifest
from ttd.metrics.uncertainty import derangement
from ttd.seeding import key
from ttd.simulation.render import EYE, HALF_FOV, TARGET, render
from ttd.simulation.scenes import Scene, describe, draw_scene, mesh
from ttd.simulation.study import read_scenes

MEAN_SHAPE = "mean shape"
"""The input of the row that lifts the same shape for everybody."""
N_CANDIDATES = 48
"""Scenes of other seeds among which the mean shape is looked for: of more, the best one hardly gets nearer to the others."""


@dataclass(frozen=True)
class Picture:
    """One picture that is lifted. ``scene`` is what the simulation drew it from (seed, n_solids), None elsewhere."""

    key: str
    item: str
    """What pictures of one item share: as shown and as decoded."""
    path: Path
    sha256: str
    facts: dict[str, Any]
    """``input``: oracle, decoded or own; subject and image_id where there are any."""
    scene: dict[str, int] | None = None


def pictures_of_generation(
    generate: Path, study: Path | None, *, subject: str | None, n_items: int | None
) -> list[Picture]:
    """The first pictures of a subject in a generation run, each as shown and as decoded.

    Raises:
        UserError: there are fewer than two, or the study does not know one of them.
    """
    manifest = [line for line in read_manifest(generate) if line["control"] is None]
    chosen = subject or min(line["subject"] for line in manifest)
    mine = [line for line in manifest if line["subject"] == chosen][:n_items]
    if len(mine) < 2:
        known = ", ".join(sorted({line["subject"] for line in manifest}))
        raise UserError(f"subject: {chosen!r} has {len(mine)} pictures in {generate}; known there: {known}")
    scenes = read_scenes(study) if study is not None else {}
    unknown = [line["image_id"] for line in mine if study is not None and line["image_id"] not in scenes]
    if unknown:
        raise UserError(f"study: {study} does not know the pictures {', '.join(unknown[:5])} of {generate}")
    pictures = []
    for line in mine:
        scene = scenes.get(line["image_id"])
        known_scene = {name: scene[name] for name in ("seed", "n_solids")} if scene else None
        for source, path in (("oracle", line["shown_path"]), ("decoded", line["path"])):
            facts = {"input": source, "subject": chosen, "image_id": line["image_id"], "simulated": study is not None}
            pictures.append(Picture(f"{line['key']}_{source}", line["key"], path, _hash(path), facts, known_scene))
    return pictures


def own_pictures(folder: Path, n_items: int | None) -> list[Picture]:
    """The pictures of a folder by name.

    Raises:
        UserError: it holds none, or two of one name.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))[:n_items]
    if not paths:
        raise UserError(f"pictures: {folder} holds no png or jpg")
    names = [path.stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"pictures: {folder} has several files called {', '.join(twice[:5])}; give each its own name")
    return [Picture(path.stem, path.stem, path, _hash(path), {"input": "own", "image_id": path.stem}) for path in paths]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Truths:
    """What a simulated study knows of its pictures."""

    camera = Camera(eye=EYE, target=TARGET, half_fov=HALF_FOV)

    def __init__(self, study: Path | None, n_points: int, *, seed: int):
        self.study, self.n_points, self.seed = study, n_points, seed
        self._sampled = lru_cache(maxsize=256)(self._sample)

    def of(self, picture: Picture) -> Truth:
        """The sampled solids and the mask of a picture whose scene is known."""
        assert picture.scene is not None
        return self._sampled(picture.scene["seed"], picture.scene["n_solids"])

    def surface(self, picture: Picture) -> Surface:
        """The true solids as a surface, for the oracle."""
        assert picture.scene is not None
        return surface_of(mesh(draw_scene(**picture.scene)))

    def others(self, picture: Picture, pictures: list[Picture], n: int) -> list[Picture]:
        """Pictures of other items, which are the re-paired control of this one, as shown and as decoded."""
        known = {p.facts["image_id"]: p for p in pictures if p.facts["input"] == picture.facts["input"]}
        names = sorted(known)
        if len(names) < 2:
            return []
        place = names.index(picture.facts["image_id"])
        return [known[names[derangement(len(names), seed=self.seed, draw=d)[place]]] for d in range(n)]

    def mean_shape(self, pictures: list[Picture]) -> list[dict[str, Any]]:
        """The figures of one shape for every picture: of scenes of other seeds the one that is nearest to all the others."""
        seeds = [key(self.seed, "mean shape", i) for i in range(N_CANDIDATES)]
        surfaces = [self._surface(draw_scene(seed), seed) for seed in seeds]
        clouds = [surface.points[:512] for surface in surfaces]
        total = [np.mean([cd_l1_mean(cloud, other) for other in clouds]) for cloud in clouds]
        mean = surfaces[int(np.argmin(total))]
        return [{"metrics": s, "control": {}} for s in constant_scores(mean, [self.of(p).surface for p in pictures])]

    def _sample(self, seed: int, n_solids: int) -> Truth:
        scene = draw_scene(seed, n_solids)
        mask = render([scene], size=64).mask[0] >= 0
        return Truth(self._surface(scene, key(self.seed, "true", seed)), mask, describe(scene))

    def _surface(self, scene: Scene, seed: int) -> SampledSurface:
        solids: trimesh.Trimesh = mesh(scene)
        return sample_surface(solids, self.n_points, seed=seed)
