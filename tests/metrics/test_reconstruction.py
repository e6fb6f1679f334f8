"""A generation run on disk → rows: perfect pictures, pictures of others, and manifests that lie."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttd.config import UserError
from ttd.metrics.reconstruction import Described, read_manifest, read_pictures, reconstruction_rows
from ttd.metrics.table import MEAN

N = 24


def write_run(folder: Path, quality: float, *, subjects=("01", "02")) -> None:
    """A run whose pictures are the shown ones with probability ``quality``, else those of another stimulus."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines, shas = [], []
    for i in range(N):
        path = folder / f"shown-{i}.png"
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
        shas.append(hashlib.sha256(path.read_bytes()).hexdigest())
    for subject in subjects:
        for i in range(N):
            for control in (None, "shuffled"):
                key = f"{subject}-{i}-{control or 'real'}"
                source = i if control is None and rng.random() < quality else (i + 5) % N
                (folder / f"images/{key}.png").write_bytes((folder / f"shown-{source}.png").read_bytes())
                lines.append({
                    "key": key, "subject": subject, "image_id": f"test-{i:04d}", "image_sha256": shas[i], "concept": "x",
                    "path": f"images/{key}.png", "seed": 0, "n_repetitions": 20, "candidates": 1, "control": control,
                    "shown_path": f"shown-{i}.png",
                })  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def score(folder: Path) -> dict[str, object]:
    items = read_manifest(folder)
    paths = {item["image_sha256"]: item["shown_path"] for item in items}
    shas = sorted(paths)
    generated, shown = read_pictures([i["path"] for i in items]), read_pictures([paths[s] for s in shas])

    def described(images: np.ndarray) -> Described:
        flat = images.reshape(len(images), -1)
        word = (1e3 * flat.sum(1)).astype(int) % 6
        return Described(clip=flat, judge=flat[:, ::3], kind=word, colour=word)

    truth = described(shown)
    rows = reconstruction_rows(
        "x", items, generated, described(generated), shas, shown, truth, clip_centre=truth.clip.mean(0),
        pixel_size=16, ways=50, labels={"channels": 63}, seed=0, n_resamples=200, n_draws=3,
    )  # fmt: skip
    return {row.metric: row for row in rows if row.subject == MEAN}


def test_perfect_pictures_are_perfect_in_every_metric_and_both_controls_are_not(tmp_path):
    write_run(tmp_path, quality=1.0)
    rows = score(tmp_path)
    assert rows["mse"].value == pytest.approx(0)
    for name in (
        "pixcorr",
        "ssim",
        "two_way_clip",
        "two_way_judge",
        "image_retrieval_top1",
        "named_kind",
        "named_colour",
    ):
        assert rows[name].value == pytest.approx(1), name
        assert rows[name].control_high < 0.75, name
        assert rows[name].control_generated < 0.75, name
    assert rows["image_retrieval_top1"].labels["gallery"] == N, "24 pictures cannot make a gallery of 50"
    assert rows["two_way_clip"].control == pytest.approx(0.5, abs=0.06)
    assert rows["ssim"].labels == {
        "channels": 63,
        "repetitions": 20,
        "candidates": 1,
        "seeds": [0],
        "size": 16,
        "subjects": ["01", "02"],
    }


def test_pictures_of_other_stimuli_sit_at_chance(tmp_path):
    write_run(tmp_path, quality=0.0)
    row = score(tmp_path)["two_way_clip"]
    assert row.value == pytest.approx(0.5, abs=0.15)
    assert row.value == pytest.approx(row.control_generated)


def test_a_manifest_that_is_missing_or_incomplete_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run ttd/generate.py first"):
        read_manifest(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("")
    with pytest.raises(UserError, match="holds no item"):
        read_manifest(tmp_path)
    manifest.write_text('{"key": 1}\n')
    with pytest.raises(UserError, match="line 1: lacks subject, image_id"):
        read_manifest(tmp_path)
    manifest.write_text("{oops\n")
    with pytest.raises(UserError, match="line 1: not JSON"):
        read_manifest(tmp_path)


def test_a_picture_that_is_gone_or_broken_is_named(tmp_path):
    write_run(tmp_path, quality=1.0)
    victim = tmp_path / "images/01-3-real.png"
    victim.write_bytes(b"no picture")
    with pytest.raises(UserError, match="01-3-real.png: cannot be read as a picture"):
        read_pictures([victim])
    victim.unlink()
    with pytest.raises(UserError, match=r"path .*01-3-real.png is not there"):
        read_manifest(tmp_path)
