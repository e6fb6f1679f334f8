"""Small artificial run folders in the formats of the entries, every number known."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ttd.config import write_json
from ttd.data.writer import ShardWriter
from ttd.metrics.rows import rows_of
from ttd.metrics.table import write_results

CH_NAMES = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2"]
SFREQ, TMIN, N_TIMES = 125.0, -0.104, 80
SUBJECTS = ("sub-01", "sub-02")
N_IMAGES = 5


def response() -> np.ndarray:
    """What every subject shows on average, µV [C, T]: 5 µV at 170 ms at O1 and O2."""
    t = TMIN + np.arange(N_TIMES) / SFREQ
    out = np.zeros((len(CH_NAMES), N_TIMES))
    out[-2:] = 5 * np.exp(-((t - 0.170) ** 2) / (2 * 0.02**2))
    return out


def write_shards(root: Path, *, simulated: bool = True) -> None:
    rng = np.random.default_rng(0)
    statistics = {"mean": [0.0] * len(CH_NAMES), "std": [1.0] * len(CH_NAMES)}
    for part, n_repetitions in (("train", 4), ("validation", 4), ("test", 6)):
        with ShardWriter(root / part, kind="paired") as writer:
            for subject in SUBJECTS:
                for i in range(N_IMAGES):
                    noise = 0.5 * rng.normal(size=(n_repetitions, len(CH_NAMES), N_TIMES))
                    meta = {
                        "study": "Simulated", "subject": subject, "cap": "ten",
                        "sessions": ["1"] * n_repetitions, "runs": [part] * n_repetitions,
                        "onsets": [float(10 * i + r) for r in range(n_repetitions)], "image_id": f"{part}-{i:04d}",
                        "concept": "x", "image_sha256": hashlib.sha256(f"{part} {i}".encode()).hexdigest(),
                    }  # fmt: skip
                    writer.write(f"{subject}_{i}", {"eeg.npy": response() + noise, "meta.json": meta})
            writer.finish({
                "study": "Simulated", "part": part, "sfreq": SFREQ, "tmin": TMIN, "n_times": N_TIMES,
                "caps": {"ten": CH_NAMES}, "statistics": {"ten": statistics}, "simulated": simulated,
            })  # fmt: skip
    (root / "ledger.jsonl").write_text(
        '{"time": "2026-01-01T00:00:00", "who": "generate", "config": "abc", "split": "d"}\n'
    )


def write_training(folder: Path, *, n_steps: int = 200) -> None:
    folder.mkdir(parents=True)
    lines = [{"event": "started", "step": 0}]
    for step in range(10, n_steps + 1, 10):
        lines.append({"event": "train", "step": step, "samples_seen": 8 * step, "lr": 1e-3, "loss": 4 * 0.99**step})
        if step % 50 == 0:
            lines.append({"event": "validation", "step": step, "samples_seen": 8 * step, "top1": step / 1000})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("seed: 0\n")
    write_json(folder / "environment.json", {"python": "3.11.7", "packages": {"torch": "2.13.0"}, "world_size": 1})
    write_json(folder / "outcome.json", {"status": 0, "message": "done", "seconds": 61.5})


def write_pretrain_report(folder: Path) -> None:
    bands = [{"low": 0, "high": 4, "coherence": 0.9, "power_ratio": 0.8, "explained": 0.7}]
    bands.append({"low": 8, "high": 13, "coherence": 0.5, "power_ratio": 0.4, "explained": 0.3})
    write_json(
        folder / "pretrain_report.json",
        {
            "part": "validation", "runs": ["02"], "n_windows": 40, "hidden_fraction": 0.5, "n_wiener": 20,
            "masked_mse": {"model": 0.61, "zero": 1.0, "linear": 0.7},
            "masked_mse_on_wiener_windows": {"model": 0.612, "zero": 1.0, "linear": 0.701, "wiener": 0.583},
            "spectrum": {"model": bands, "linear": bands, "wiener": bands},
        },
    )  # fmt: skip


def draw(colour: tuple[int, int, int], path: Path) -> None:
    image = np.full((64, 64, 3), 60, np.uint8)
    image[20:44, 20:44] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_generation(folder: Path) -> None:
    lines = []
    for i in range(N_IMAGES):
        colour = (40 * i, 200 - 30 * i, 120)
        draw(colour, folder / f"shown/{i}.png")
        for subject in SUBJECTS:
            for control in (None, "shuffled"):
                key = f"{subject}_{i}" + (f"_{control}" if control else "")
                draw((200, 30, 30) if control else colour, folder / f"images/{key}.png")
                sha = hashlib.sha256(f"test {i}".encode()).hexdigest()
                lines.append({
                    "key": key, "subject": subject, "image_id": f"test-{i:04d}", "image_sha256": sha, "concept": "x",
                    "path": f"images/{key}.png", "seed": 7, "n_repetitions": 6, "candidates": 1,
                    "control": control,
                    "shown_path": f"shown/{i}.png",
                })  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(folder: Path) -> None:
    subject, picture = np.repeat(SUBJECTS, 40), np.tile(np.arange(40), 2)
    rows = []
    for metric, chance, quality in (("retrieval_top1", 0.02, 0.4), ("two_way_judge", 0.5, 0.87), ("mse", None, 0.05)):
        for model, factor in (("encoder", 1.0), ("ridge", 0.8)):
            own = np.random.default_rng(0).random(80) * 2 * quality * factor
            rows += rows_of(
                metric, model, lambda r, p, own=own, c=chance or 0.2: np.where(picture[r] == p, own[r], c),
                subject, picture, chance=chance, labels={"gallery": 50, "repetitions": 6, "channels": 10},
                seed=0, n_resamples=200,
            )  # fmt: skip
    write_results(
        folder, rows, heading="Simulated", facts={"simulated": True, "not_run": ["generated pictures: not run"]}
    )


def write_lifting(folder: Path) -> None:
    for name in ("decoded_a", "oracle_a"):
        draw((200, 90, 20), folder / f"lift/{name}/poster.png")
        write_json(folder / f"lift/{name}/status.json", {"record": {"input": name.split("_")[0], "route": "plain"}})
    row = {
        "metric": "raw_fscore@0.05",
        "input": "oracle",
        "route": "plain",
        "value": 0.71,
        "low": 0.66,
        "high": 0.75,
        "n": 40,
    }
    write_json(folder / "lift.json", {"rows": [{**row, "control": 0.2, "control_low": 0.17, "control_high": 0.23}]})
