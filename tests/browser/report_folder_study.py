"""A small report for the browser: flat pictures, scores that follow from an item's number, meshes of a known size."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from ttd.config import write_json
from ttd.data.writer import ShardWriter
from ttd.experiments.report import ReportConfig
from ttd.geometry.meshes import to_glb

SOFTWARE_GL = ("--enable-unsafe-swiftshader",)
"""Flags of Chromium: WebGL without a graphics card."""

NO_GL = ("--disable-gpu", "--disable-3d-apis")

CONCEPTS = ("red_cone", "green_box", "blue_sphere")
CH_NAMES = ["P3", "P4", "O1", "O2"]


def config_of(root: Path, **more) -> ReportConfig:
    """The report of everything that the functions below wrote into ``root``."""
    return ReportConfig(
        output_dir=root / "report", shards=root / "paired", generate={"A": root / "A", "B": root / "B"},
        eval=root / "eval", lift=root / "lift", title="A small report", **more,
    )  # fmt: skip


def write_study(root: Path, *, simulated: bool = True, licence: str = "CC0") -> None:
    """Shards of one picture, enough for a report's recordings."""
    rng = np.random.default_rng(0)
    with ShardWriter(root / "train", kind="paired") as writer:
        for i in range(2):
            meta = {
                "study": "Browser", "subject": "01", "cap": "four", "sessions": ["1"], "runs": ["1"], "onsets": [float(i)],
                "image_id": f"train-{i}", "image_sha256": hashlib.sha256(b"%d" % i).hexdigest(), "licence": licence,
            }  # fmt: skip
            writer.write(f"01_{i}", {"eeg.npy": rng.normal(size=(1, 4, 80)), "meta.json": meta})
        writer.finish({
            "study": "Browser", "part": "train", "sfreq": 125.0, "tmin": -0.104, "n_times": 80, "simulated": simulated,
            "caps": {"four": CH_NAMES}, "statistics": {"four": {"mean": [0.0] * 4, "std": [1.0] * 4}},
        })  # fmt: skip


def paint(path: Path, value: int) -> None:
    image = np.full((64, 64, 3), 60, np.uint8)
    image[16:48, 16:48] = (value * 37 % 256, value * 91 % 256, value * 151 % 256)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def score(i: int) -> float:
    """Of item ``i``: all different, in no order."""
    return (i * 7919 % 10007) / 10007


def write_runs(root: Path, n: int, *, n_pictures: int | None = None) -> None:
    """Two generation runs of ``n`` items over two subjects, the first with its control, and their scores.

    With ``n_pictures`` items share that many picture files.
    """
    lines: list[dict] = []
    for run in ("A", "B"):
        manifest = []
        for i in range(n):
            for control in (None, "shuffled") if run == "A" else (None,):
                drawn = i if n_pictures is None else i % n_pictures
                path = f"items/{drawn}{control or ''}.png"
                for place in (path, f"shown/{drawn}.png"):
                    if not (root / run / place).exists():
                        paint(root / run / place, drawn + 100 * (control is not None))
                line = {
                    "key": f"{i:04d}{control or ''}", "subject": f"0{1 + i % 2}", "image_id": f"picture-{i:04d}",
                    "image_sha256": hashlib.sha256(b"%d" % i).hexdigest(), "concept": CONCEPTS[i % 3], "path": path, "seed": 0,
                    "n_repetitions": 4, "candidates": 1, "control": control, "shown_path": f"shown/{drawn}.png",
                }  # fmt: skip
                manifest.append(line)
                value = 0.25 if control else score(i) if run == "A" else 1 - score(i)
                same = {k: line[k] for k in ("key", "subject", "image_id", "image_sha256", "concept", "control")}
                lines.append(same | {
                    "run": run, "samples": 1, "scores": {"two_way_clip": value, "mse": value / 10},
                    "named": {"kind": "torus", "colour": "white"}, "true": None,
                })  # fmt: skip
        (root / run / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in manifest))
    (root / "eval").mkdir()
    (root / "eval/items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_solids(root: Path, n: int, *, subdivisions: int = 4) -> None:
    """``n`` items lifted from both inputs: noisy spheres of 20 · 4**subdivisions faces."""
    rng = np.random.default_rng(0)
    for i in range(n):
        for source, value in (("decoded", 0.25), ("oracle", 0.75)):
            folder = root / f"lift/{i:04d}_{source}"
            mesh = trimesh.creation.icosphere(subdivisions)
            mesh.vertices *= 1 + 0.02 * rng.normal(size=(len(mesh.vertices), 1))
            mesh.visual.vertex_colors = rng.integers(0, 255, (len(mesh.vertices), 3), dtype=np.uint8)
            folder.mkdir(parents=True)
            (folder / "mesh.glb").write_bytes(to_glb(mesh, {}))
            strip = np.full((96, 480, 3), 244, np.uint8)
            strip[30:60, 30:450] = rng.integers(0, 255, (30, 1, 3), dtype=np.uint8)
            Image.fromarray(strip).save(folder / "poster.png")
            write_json(root / f"score/{folder.name}/metrics.json", {"metrics": {"raw_fscore@0.05": value}})
            facts = {
                "input": source,
                "subject": "01",
                "image_id": f"picture-{i:04d}",
                "item": f"{i:04d}",
                "reason": "",
                "route": "plain",
            }
            write_json(folder / "status.json", {"status": "done", "record": facts})
    write_json(root / "lift.json", {"rows": []})
