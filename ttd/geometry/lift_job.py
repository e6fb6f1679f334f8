"""What the lifting job keeps of one item, and what it says of all.

An item is one picture that is lifted on one route: the picture that was shown (``oracle``), the one decoded from EEG
(``decoded``) or one of the user's (``own``); as it is (``plain``), drawn again under its description (``refined``), or object by
object (``composed``). Decoded beside oracle is the decoder's error; what oracle lacks is the lifter's own; a route beside
plain is what the description does.

Letters: N items of one kind, P points per surface.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from pydantic import Field

from ttd.config import Config
from ttd.geometry.agreement import agreement
from ttd.geometry.camera import Camera
from ttd.geometry.lifter import LifterInfo, LiftResult
from ttd.geometry.likeness import control_of
from ttd.geometry.meshes import from_ply, sample_surface, to_glb, to_ply, to_trimesh
from ttd.geometry.views import silhouette, to_gif, to_png, turntable
from ttd.metrics.description import score_description
from ttd.metrics.geometry import METRICS, SampledSurface, score_item
from ttd.metrics.surface_views import silhouette_iou
from ttd.metrics.uncertainty import bootstrap_interval
from ttd.seeding import key

HEADLINE = (
    "raw_cd_l1_mean", "raw_fscore@0.05", "raw_iou", "raw_normal_consistency", "silhouette_iou",
    "clip_views_mean", "n_way_views_top1", "consistency_fscore@0.05",
    "description_count", "description_label_f1", "description_color_f1", "relations_held", "objects_found",
)  # fmt: skip
"""What the printed table shows; lift.json has every figure."""


class ScoringConfig(Config):
    n_points: int = 4096
    """Points P spread over each surface."""
    n_controls: int = 4
    """Other items against whose true surface each surface is scored, for the re-paired control."""
    n_frames: int = 8
    """Views of the turntable."""
    view_size: int = 96
    """Side of a view in pixels."""
    clip: str | None = None
    """Folder or repository of a CLIP whose similarity of views to the picture is scored; null leaves it out."""
    ways: int = Field(default=10, ge=2)
    """Pictures of the run among which that CLIP has to name the item's own when it sees the views; of fewer, all."""


@dataclass(frozen=True)
class Truth:
    """What a study knows of a picture: its solids, sampled, the pixels bool [S, S] that they cover, and their description."""

    surface: SampledSurface
    mask: np.ndarray
    description: dict[str, Any]


def lifted_files(
    result: LiftResult, image: np.ndarray, info: LifterInfo, camera: Camera, config: ScoringConfig, *,
    facts: dict[str, Any],
) -> tuple[dict[str, bytes], dict[str, Any]]:  # fmt: skip
    """The files of one lifted item by name (mesh.glb, mesh.ply, poster.png, turntable.gif), and its record.

    ``image`` is the lifted picture, uint8 [S, S, 3]; ``facts`` what the item is (input, route, subject, ...). A file that a
    backend wrote itself is kept byte for byte. An item without surface has no files, but a record.
    """
    provenance = {"lifter": asdict(info), **result.facts}
    record: dict[str, Any] = {"status": result.status, "reason": result.reason, **facts, "provenance": provenance}
    record |= {"kind": info.kind, "seconds": round(result.seconds, 3), "peak_memory_mb": result.peak_memory_mb}
    files: dict[str, bytes] = {"worker.log": result.log.encode()} if result.log else {}
    if result.surface is None:
        return files, record
    mesh = to_trimesh(result)
    if not mesh.area > 0:
        return files, record | {"status": "empty", "reason": "the surface has no area"}
    frames = turntable(mesh, camera, n_frames=config.n_frames, size=config.view_size)
    shown = image if result.picture is None else result.picture
    strip = [_square(shown[..., :3], config.view_size), *frames[:: max(1, len(frames) // 4)]]
    files["mesh.glb"] = result.glb or to_glb(mesh, {**provenance, **facts})
    files["mesh.ply"] = to_ply(mesh)
    files["poster.png"] = to_png(np.concatenate(strip, axis=1))
    files["turntable.gif"] = to_gif(frames)
    return files, record | {"n_vertices": len(mesh.vertices), "watertight": bool(mesh.is_watertight)}


@dataclass(frozen=True)
class Lifted:
    """One item as the lift phase left it; None where no surface came out."""

    mesh: trimesh.Trimesh | None
    surface: SampledSurface | None

    @classmethod
    def read(cls, folder: Path, n_points: int, *, seed: int) -> Lifted:
        """From the item's folder; its surface is sampled at the same points each time."""
        ply = folder / "mesh.ply"  # a backend's own GLB may have other axes
        if not ply.is_file():
            return cls(None, None)
        mesh = from_ply(ply.read_bytes())
        return cls(mesh, sample_surface(mesh, n_points, seed=key(seed, "lifted", folder.name)))

    @property
    def points(self) -> np.ndarray | None:
        """Points [P, 3] on it."""
        return None if self.surface is None else self.surface.points


def scores_of(
    lifted: Lifted, truth: Truth | None, others: Sequence[Truth], description: dict[str, Any] | None, *,
    described: bool, camera: Camera,
) -> dict[str, Any]:  # fmt: skip
    """The figures of one lifted item, by the names of ``ttd.metrics.geometry.METRICS``.

    Args:
        lifted: the item as the lift phase left it.
        truth: where a study knows it.
        others: what is known of other items, for the re-paired control.
        description: of the picture, for the check of its relations.
        described: whether a describer was asked, so that no description is a missing one.

    Returns:
        ``metrics`` and ``control`` by name, None where there is nothing to measure; ``broken`` and ``unchecked`` relations.
    """
    mesh, surface = lifted.mesh, lifted.surface
    content: dict[str, Any] = {"metrics": {}, "control": {}}
    if truth is not None:
        content["metrics"] |= score_item(surface, truth.surface)
        wrong = [score_item(surface, other.surface, frames=("raw_",)) for other in others]
        if described:
            content["metrics"] |= _description_scores(description, truth)
            wrong = [w | _description_scores(description, other) for w, other in zip(wrong, others, strict=True)]
        if description is not None and mesh is not None:
            wrong = [w | agreement(other.description, mesh).scores for w, other in zip(wrong, others, strict=True)]
        content["control"] = control_of(wrong)
        seen = None if mesh is None else silhouette(mesh, camera, len(truth.mask))
        content["metrics"] |= silhouette_iou(seen, truth.mask)
    if description is not None and mesh is not None:
        checked = agreement(description, mesh)
        content["metrics"] |= checked.scores
        content |= {"broken": checked.broken, "unchecked": checked.unchecked}
    return content


def _description_scores(description: dict[str, Any] | None, truth: Truth) -> dict[str, float | None]:
    return {f"description_{n}": v for n, v in score_description(description, truth.description).items()}


def constant_scores(mean: SampledSurface, truths: Sequence[SampledSurface]) -> list[dict[str, float | None]]:
    """The figures of one surface for everybody, against each true one: what knowing the study alone is worth."""
    return [score_item(mean, truth, frames=("raw_",)) for truth in truths]


def summary_rows(
    groups: dict[tuple[str, str], list[dict[str, Any]]], config: ScoringConfig, *, seed: int, labels: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per metric, input and route: mean, 95 % interval over items, and the re-paired control with its own interval.

    The n-way score has the label ``ways`` and its ``chance`` too. Distances are means over the items that have a surface;
    ``n_empty`` says how many have none.
    """
    rows = []
    for (source, route), contents in groups.items():
        names = list(dict.fromkeys(name for content in contents for name in content["metrics"]))
        more = {**labels, "n_points": config.n_points, "n_empty": sum(c["metrics"].get("empty") == 1 for c in contents)}
        for name in names:
            row: dict[str, Any] = {"metric": name, "input": source, "route": route, "n": len(contents), "labels": more}
            for prefix, field_ in (("", "metrics"), ("control_", "control")):
                values = np.array([c[field_].get(name) for c in contents], np.float64)  # None becomes NaN
                values = values[np.isfinite(values)]
                if len(values) > 1:
                    low, high = bootstrap_interval(values, seed=seed)
                    row |= {
                        prefix.rstrip("_") or "value": float(values.mean()),
                        f"{prefix}low": low,
                        f"{prefix}high": high,
                    }
            if name == "n_way_views_top1":
                ways = next(content["ways"] for content in contents if name in content["metrics"])
                row |= {"chance": 1 / ways, "labels": more | {"ways": ways}}
            if "value" in row:
                rows.append(row)
    return rows


def summary_table(rows: list[dict[str, Any]]) -> str:
    """The headline rows as lines of text."""
    lines = [f"{'metric':39s}{'input':12s}{'route':10s}{'value [95 %]':26s}{'re-paired control':26s}n"]
    for r in sorted((r for r in rows if r["metric"] in HEADLINE), key=lambda r: HEADLINE.index(r["metric"])):
        value, control = (
            f"{r[name]:.3f} [{r[low]:.3f}, {r[high]:.3f}]" if name in r else "–"
            for name, low, high in (("value", "low", "high"), ("control", "control_low", "control_high"))
        )
        title = METRICS[r["metric"]].title.format(k=r["labels"].get("ways"))
        title += f" (chance {r['chance']:.2f})" if "chance" in r else ""
        lines.append(f"{title:39s}{r['input']:12s}{r['route']:10s}{value:26s}{control:26s}{r['n']}")
    return "\n".join(lines)


def write_scores(folder: Path, content: dict[str, Any], provenance: dict[str, Any]) -> None:
    """``metrics.json`` of one item."""
    (folder / "metrics.json").write_text(json.dumps({**content, "provenance": provenance}, indent=1) + "\n")


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """Nearest neighbour to ``size`` x ``size``, so that pixels stay visible as what they are."""
    rows, columns = ((np.arange(size) * n) // size for n in image.shape[:2])
    return image[rows][:, columns]
