"""What the lifting job keeps of one item, and what it says of all.

An item is one picture that is lifted: the picture that was shown (``oracle``) or the one decoded from EEG
(``decoded``). The difference between the two rows is the decoder's error; what the oracle row lacks is the
lifter's own.

Letters: N items of one kind, P points per surface.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttd.config import Config
from ttd.geometry.camera import Camera
from ttd.geometry.lifter import LifterInfo, LiftResult
from ttd.geometry.meshes import from_glb, sample_points, to_glb, to_trimesh
from ttd.geometry.views import to_gif, to_png, turntable
from ttd.metrics.geometry import score_surfaces
from ttd.metrics.uncertainty import bootstrap_interval, derangement
from ttd.seeding import key

INPUTS = ("oracle", "decoded")


class ScoringConfig(Config):
    n_points: int = 4096
    """Points P spread over each surface."""
    n_controls: int = 8
    """Other items against whose true surface each surface is scored, for the re-paired control."""
    n_frames: int = 8
    """Views of the turntable."""
    view_size: int = 96
    """Side of a view in pixels."""


@dataclass(frozen=True)
class Scored:
    """One item as it is read back: points of its surface [P, 3] (None when empty), of the true one [P, 3], figures."""

    key: str
    points: np.ndarray | None
    true: np.ndarray
    metrics: dict[str, float | None]


def item_files(
    result: LiftResult, image: np.ndarray, true: np.ndarray, info: LifterInfo, camera: Camera, config: ScoringConfig,
    *, seed: int, facts: dict[str, Any],
) -> tuple[dict[str, bytes], dict[str, Any]]:  # fmt: skip
    """The files of one item by name (mesh.glb, poster.png, turntable.gif, metrics.json), and its record.

    ``image`` is the lifted picture, uint8 [S, S, 3]; ``true`` points of the true surface [P, 3]; ``facts`` what the
    item is (input, subject, image_id, ...). An item without surface has no mesh and no pictures, but figures
    and a record.
    """
    provenance = {"domain": info.domain, "pretrained": False, "simulated": True, "lifter": asdict(info)}
    record: dict[str, Any] = {"status": result.status, "reason": result.reason, **facts, "provenance": provenance}
    files, points = {}, None
    if result.surface is not None:
        mesh = to_trimesh(result)
        points = sample_points(mesh, config.n_points, seed=key(seed, "lifted", result.key))
        frames = turntable(mesh, camera, n_frames=config.n_frames, size=config.view_size)
        strip = [_square(image, config.view_size), *frames[:: max(1, len(frames) // 4)]]
        files["mesh.glb"] = to_glb(mesh, {**provenance, **facts})
        files["poster.png"] = to_png(np.concatenate(strip, axis=1))
        files["turntable.gif"] = to_gif(frames)
        record |= {"n_vertices": len(mesh.vertices), "watertight": bool(mesh.is_watertight)}
    content = {"metrics": score_surfaces(points, true), "n_points": config.n_points, "provenance": provenance}
    files["metrics.json"] = (json.dumps(content, indent=1) + "\n").encode()
    return files, record


def read_item(folder: Path, true: np.ndarray, config: ScoringConfig, *, seed: int) -> Scored:
    """An item from its folder; its surface is sampled at the points that its own figures were read on."""
    points, glb = None, folder / "mesh.glb"
    if glb.is_file():
        points = sample_points(from_glb(glb.read_bytes()), config.n_points, seed=key(seed, "lifted", folder.name))
    return Scored(folder.name, points, true, json.loads((folder / "metrics.json").read_text())["metrics"])


def summary_rows(
    items: dict[str, list[Scored]], config: ScoringConfig, *, seed: int, labels: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per metric and input: mean, 95 % interval over items, and the re-paired control with its own interval.

    The control scores every surface against the true surfaces of ``n_controls`` other items, drawn without pairing any
    item with itself. Distances are means over the items that have a surface; ``n_empty`` says how many have none.
    """
    rows = []
    for source, scored in items.items():
        if len(scored) < 2:
            continue
        draws = [derangement(len(scored), seed=seed, draw=d) for d in range(config.n_controls)]
        wrong = [[score_surfaces(item.points, scored[d[i]].true) for d in draws] for i, item in enumerate(scored)]
        more = {
            **labels,
            "input": source,
            "n_points": config.n_points,
            "n_empty": sum(s.points is None for s in scored),
        }
        for metric in scored[0].metrics:
            values = np.array([s.metrics[metric] for s in scored], np.float64)  # None becomes NaN
            control = np.array([[s[metric] for s in one] for one in wrong], np.float64).mean(axis=1)
            if np.isfinite(values).sum() < 2:  # hardly any surface came out, so there are no distances
                continue
            row: dict[str, Any] = {"metric": metric, "input": source, "chance": None, "n": len(scored), "labels": more}
            for name, sample in (("", values), ("control", control)):
                sample = sample[np.isfinite(sample)]
                low, high = bootstrap_interval(sample, seed=seed)
                prefix = f"{name}_" if name else ""
                row |= {name or "value": float(sample.mean()), f"{prefix}low": low, f"{prefix}high": high}
            rows.append(row)
    return rows


def summary_table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = [f"{'metric':14s}{'input':10s}{'value [95 %]':26s}{'re-paired control':26s}n"]
    for r in rows:
        value, control = (
            f"{r[name]:.3f} [{r[low]:.3f}, {r[high]:.3f}]"
            for name, low, high in (("value", "low", "high"), ("control", "control_low", "control_high"))
        )
        lines.append(f"{r['metric']:14s}{r['input']:10s}{value:26s}{control:26s}{r['n']}")
    return "\n".join(lines)


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """Nearest neighbour to ``size`` x ``size``, so that pixels stay visible as what they are."""
    index = (np.arange(size) * len(image)) // size
    return image[index][:, index]
