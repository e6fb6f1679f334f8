"""Retrieval on the page: the curve of a known list of ranks, and the right picture marked in words."""

import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from ttd.config import UserError
from ttd.data.writer import ShardWriter
from ttd.pages import neighbours, page

SHAS = [hashlib.sha256(f"picture {i}".encode()).hexdigest() for i in range(12)]
GALLERY = len(SHAS)


def record(i: int, rank: int, *, model: str = "encoder", subject: str = "01") -> dict:
    """Picture i with the rank given; the others of the gallery follow in their own order."""
    order = [j for j in range(GALLERY) if j != i]
    order.insert(rank - 1, i)
    nearest = [
        {"image_id": f"p{j}", "image_sha256": SHAS[j], "concept": None, "cosine": 0.5 - 0.1 * place}
        for place, j in enumerate(order[:5])
    ]
    return {
        "model": model, "subject": subject, "image_id": f"p{i}", "image_sha256": SHAS[i], "concept": None,
        "repetitions": 20, "gallery": GALLERY, "rank": rank, "nearest": nearest,
    }  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    with ShardWriter(root / "images", kind="image") as writer:
        for i, sha in enumerate(SHAS[:-1]):  # the last one is missing
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), (20 * i, 90, 30)).save(buffer, "PNG")
            meta = {"image_id": f"p{i}", "concept": None, "sha256": sha}
            writer.write(sha, {"image.png": buffer.getvalue(), "meta.json": meta})
        writer.finish({"study": "Simulated"})
    return root


def write(folder, records):
    folder.mkdir(exist_ok=True)
    (folder / "retrieval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_the_share_at_rank_k_is_that_of_the_planted_ranks():
    layers = neighbours.ranks([record(i, rank) for i, rank in enumerate([1, 1, 2, 5, 12])])
    shares = {k: float(np.nanmean(neighbours.matched(layers, k))) for k in (1, 2, 4, 5, 12)}
    assert shares == pytest.approx({1: 0.4, 2: 0.6, 4: 0.6, 5: 0.8, 12: 1.0})


def test_every_subject_weighs_the_same_and_a_picture_shown_twice_is_averaged():
    a = [record(0, 1), record(0, 3), record(1, 2)]  # at rank 1: 0.5 and 0, mean 0.25
    b = [record(1, 1, subject="02")]  # 1
    layers = neighbours.ranks(a + b)
    assert sorted(neighbours.matched(layers, 1)[0].tolist()) == [0.0, 0.5]
    header, cells = neighbours.rank_cells({"encoder": layers}, GALLERY)
    assert dict(zip(header, cells[0], strict=True)) == {
        "": "encoder", "rank 1": "62.5 %", "rank ≤ 5": "100.0 %", "rank ≤ 10": "100.0 %", "median rank": "1.5",
    }  # fmt: skip
    assert cells[-1] == ["chance", "8.3 %", "41.7 %", "83.3 %", "6.5"]


def test_the_curve_passes_through_the_shares_and_chance_is_k_of_m():
    layers = neighbours.ranks([record(i, rank) for i, rank in enumerate([1, 1, 2, 5, 12])])
    axis = neighbours.match_figure({"encoder": layers}, gallery=GALLERY, seed=0).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axis.lines}
    assert {1: 0.4, 2: 0.6, 12: 1.0}.items() <= dict(lines["encoder"].round(6).tolist()).items()
    k, share = lines["chance, k/M"].T
    assert share == pytest.approx(k / GALLERY)


def test_best_median_and_worst_are_what_they_say_and_no_epoch_is_shown_twice():
    records = [record(i, 1 + i, subject=subject) for subject in ("01", "02") for i in range(12)]
    chosen = neighbours.choose(records, seed=3)
    assert [len(chosen[name]) for name in ("best", "median", "worst", "random")] == [3, 3, 3, 6]
    shown = [(r["subject"], r["image_id"]) for rows in chosen.values() for r in rows]
    assert len(set(shown)) == 15
    left = sorted(r["rank"] for r in records if r not in chosen["random"])
    assert sorted(r["rank"] for r in chosen["best"]) == left[:3]
    assert sorted(r["rank"] for r in chosen["worst"]) == left[-3:]
    assert {r["rank"] for r in chosen["median"]} <= {5, 6, 7, 8}  # the median of 1 to 12 twice is 6.5


def test_the_choice_does_not_depend_on_the_order_of_the_file():
    records = [record(i, 1 + i % 3) for i in range(12)]
    assert neighbours.choose(records, seed=0) == neighbours.choose(records[::-1], seed=0)
    assert neighbours.choose(records, seed=0) != neighbours.choose(records, seed=1)


def test_the_right_picture_is_outlined_and_named_in_words(shards, tmp_path):
    html = "\n".join(neighbours.section(write(tmp_path / "eval", [record(3, 2)]), shards, page.Page("t")))
    outlined = re.findall(r'<div style="outline[^>]*><img[^>]*alt="([^"]*)"', html)
    assert outlined == ["nearest 2: p3, cosine 0.40, the right one"]
    assert "<b>✓ right</b>" in html
    assert f"Subject 01, p3: rank 2 of {GALLERY}</figcaption>" in html
    assert 'alt="seen: p3"' in html


def test_a_right_picture_beyond_the_fifth_is_said_to_be_absent(shards, tmp_path):
    html = "\n".join(neighbours.section(write(tmp_path / "eval", [record(0, 9)]), shards, page.Page("t")))
    assert f"rank 9 of {GALLERY}, not among the 5 nearest" in html
    assert "outline" not in html.split("<h4>")[1]


def test_pictures_that_may_not_be_republished_are_marked_or_left_out_but_the_right_one_is_still_told(shards, tmp_path):
    folder = write(tmp_path / "eval", [record(3, 2)])
    marked = "\n".join(neighbours.section(folder, shards, page.Page("t", stimuli="marked")))
    assert marked.count('class="mark"') == 6
    named = "\n".join(neighbours.section(folder, shards, page.Page("t", stimuli="leave_out")))
    assert named.count("<img") == 1  # the curve
    assert named.count('<div class="left-out">') == 6
    assert re.findall(r'<div style="outline[^>]*><div class="left-out">(\w+)</div></div><span><b>(.*?)</b>', named) == [
        ("p3", "✓ right")
    ]


def test_a_picture_that_the_shards_lack_is_said_to_be_missing(shards, tmp_path):
    html = "\n".join(neighbours.section(write(tmp_path / "eval", [record(11, 1)]), shards, page.Page("t")))
    assert "seen: p11: not in the shards" in html


def test_no_retrieval_is_said_and_a_damaged_line_is_refused(shards, tmp_path):
    assert "retrieval: not run" in neighbours.section(tmp_path, shards, page.Page("t"))[0]
    broken = write(tmp_path / "eval", [record(0, 1), {"model": "encoder"}])
    with pytest.raises(UserError, match=r"retrieval\.jsonl, line 2: lacks subject, image_id"):
        neighbours.section(broken, shards, page.Page("t"))
