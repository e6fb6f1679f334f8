"""A generation run on disk → rows: perfect pictures, pictures of others, and manifests that lie."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttd.config import UserError
from ttd.metrics.manifest import read_manifest, read_pictures
from ttd.metrics.picture_scores import Described, Seen
from ttd.metrics.reconstruction import (
    ScoredRun,
    difference_rows,
    distribution_rows,
    item_scores,
    joined_seeds,
    reconstruction_rows,
    scored_run,
)
from ttd.metrics.row import MEAN

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


DRAWS = {"seed": 0, "n_resamples": 200, "n_draws": 3}


def scored(folder: Path, *, pairwise: bool = False) -> ScoredRun:
    items = read_manifest(folder)
    paths = {item["image_sha256"]: item["shown_path"] for item in items}
    shas = sorted(paths)
    generated, shown = read_pictures([i["path"] for i in items]), read_pictures([paths[s] for s in shas])

    def described(images: np.ndarray) -> Described:
        flat = images.reshape(len(images), -1)
        word = (1e3 * flat.sum(1)).astype(int) % 6
        networks = {"fid_inception": flat[:, :8]}
        return Described(
            clip=flat, judge=flat[:, ::3], kind=word, colour=word, networks=networks, n_words={"kind": 6, "colour": 6}
        )

    truth = described(shown)
    return scored_run(
        folder.name, items, Seen(generated, described(generated)), shas, Seen(shown, truth),
        clip_centre=truth.clip.mean(0), pixel_size=16, ways=50, labels={"channels": 63}, pairwise=pairwise,
    )  # fmt: skip


def score(folder: Path) -> dict:
    return means(reconstruction_rows(scored(folder), **DRAWS))


def means(rows: list) -> dict:
    return {row.metric: row for row in rows if row.subject == MEAN}


def test_the_difference_of_two_runs_is_that_of_their_figures_with_a_narrower_interval(tmp_path):
    for name, quality in (("good", 0.9), ("fair", 0.5)):
        write_run(tmp_path / name, quality=quality)
    good, fair = scored(tmp_path / "good"), scored(tmp_path / "fair")
    difference = means(difference_rows(good, fair, **DRAWS))
    own, other = score(tmp_path / "good"), score(tmp_path / "fair")
    assert difference.keys() == own.keys()
    for name, row in difference.items():
        assert row.model == "good − fair"
        assert row.value == pytest.approx(own[name].value - other[name].value)
        assert row.control == pytest.approx(own[name].control - other[name].control, abs=1e-12)
        assert row.chance == (None if own[name].chance is None else 0)
    row = difference["two_way_judge"]
    assert row.low > 0 > means(difference_rows(fair, good, **DRAWS))["two_way_judge"].high
    assert row.high - row.low < sum(r["two_way_judge"].high - r["two_way_judge"].low for r in (own, other))
    nothing = means(difference_rows(good, good, **DRAWS))["two_way_judge"]
    assert (nothing.value, nothing.low, nothing.high, nothing.control) == (0, 0, 0, 0)


def test_runs_of_other_subjects_are_not_compared(tmp_path):
    write_run(tmp_path / "two", quality=0.9)
    write_run(tmp_path / "one", quality=0.9, subjects=("01",))
    with pytest.raises(ValueError, match="two and one drew other pictures or for other subjects"):
        difference_rows(scored(tmp_path / "two"), scored(tmp_path / "one"), **DRAWS)


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
        "samples": 1,
        "noise_seed": 0,
        "pictures": N,
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


def test_runs_that_differ_in_their_seed_are_averaged_item_by_item(tmp_path):
    for name, quality in (("good", 0.9), ("fair", 0.5)):
        write_run(tmp_path / name, quality=quality)
    good, fair = scored(tmp_path / "good"), scored(tmp_path / "fair")
    both = means(reconstruction_rows(joined_seeds([good, fair]), **DRAWS))["two_way_judge"]
    own, other = (means(reconstruction_rows(run, **DRAWS))["two_way_judge"].value for run in (good, fair))
    assert both.value == pytest.approx((own + other) / 2)
    assert both.sd == pytest.approx(abs(own - other) / 2**0.5)
    write_run(tmp_path / "one", quality=0.9, subjects=("01",))
    with pytest.raises(ValueError, match="its runs drew other pictures"):
        joined_seeds([good, scored(tmp_path / "one")])


def test_pair_wise_scores_of_perfect_pictures_are_1_whatever_the_direction_and_their_controls_sit_at_half(tmp_path):
    write_run(tmp_path, quality=1.0)
    rows = means(reconstruction_rows(scored(tmp_path, pairwise=True), **DRAWS))
    for name in ("pairwise_mse", "pairwise_pcc", "pairwise_ssim"):
        assert rows[name].value == 1
        assert rows[name].chance == 0.5
        assert rows[name].control == pytest.approx(0.5, abs=0.06)


def test_fid_and_kid_do_not_see_who_belongs_to_whom(tmp_path):
    write_run(tmp_path, quality=1.0)
    rows = {row.metric: row for row in distribution_rows(scored(tmp_path), seed=0)}
    assert set(rows) == {"fid", "kid"}
    assert rows["fid"].value == pytest.approx(0, abs=1e-3)
    assert rows["fid"].control_generated == pytest.approx(0, abs=1e-3), "the same pictures in another order"
    assert rows["fid"].control > 0.01, "two halves of the shown pictures"
    assert rows["fid"].low is None


def test_scores_of_items_are_those_of_the_table(tmp_path):
    write_run(tmp_path, quality=0.5)
    items = read_manifest(tmp_path)
    records = item_scores(scored(tmp_path), items, lambda kind, colour: {"kind": str(kind), "colour": str(colour)})
    assert [record["key"] for record in records] == [item["key"] for item in items]
    real = [record for record in records if record["control"] is None]
    rows = score(tmp_path)
    for metric in ("ssim", "two_way_judge", "named_kind"):
        assert np.mean([record["scores"][metric] for record in real]) == pytest.approx(rows[metric].value, abs=1e-5)
    assert all((r["named"]["kind"] == r["true"]["kind"]) == (r["scores"]["named_kind"] == 1) for r in records)


def test_pictures_of_nothing_lie_inside_their_chance_intervals_8_times_in_10_or_more_each_score_alone(tmp_path):
    write_run(tmp_path, quality=1.0)
    items = [item for item in read_manifest(tmp_path) if item["control"] is None]
    paths = {item["image_sha256"]: item["shown_path"] for item in items}
    inside: dict[str, int] = {}

    def random(n: int, rng: np.random.Generator) -> Seen:
        words = rng.integers(0, 4, (2, n))
        return Seen(
            rng.random((n, 12, 12, 3)).astype(np.float32),
            Described(
                rng.normal(size=(n, 8)),
                rng.normal(size=(n, 8)),
                kind=words[0],
                colour=words[1],
                n_words={"kind": 4, "colour": 4},
            ),
        )

    for draw in range(10):
        rng = np.random.default_rng(draw)
        run = scored_run(
            "x", items, random(len(items), rng), sorted(paths), random(len(paths), rng), clip_centre=np.zeros(8),
            pixel_size=12, ways=20, labels={}, pairwise=True,
        )  # fmt: skip
        for name, row in means(reconstruction_rows(run, **DRAWS)).items():
            if row.chance is not None:
                inside[name] = inside.get(name, 0) + (row.chance_low <= row.value <= row.chance_high)
    assert set(inside) == {
        "two_way_clip", "two_way_judge", "image_retrieval_top1", "named_kind", "named_colour",
        "pairwise_mse", "pairwise_pcc", "pairwise_ssim",
    }  # fmt: skip
    assert min(inside.values()) >= 8, inside
