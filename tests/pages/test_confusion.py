"""Confusion on the page, of matrices that were planted."""

import json
import re

import numpy as np
import pytest

from ttd.pages import confusion
from ttd.pages.confusion import Confusion

COUNTS = np.array([[6, 2, 0], [1, 7, 0], [0, 3, 1]])  # 14 of 20 right; most often sphere → cone, 3 of 4
NAMES = ["box", "cone", "sphere"]


def items(counts: np.ndarray = COUNTS, *, control: str | None = None, run: str = "LoRA") -> list[dict]:
    return [
        {"run": run, "control": control, "named": {"kind": NAMES[j]}, "true": {"kind": NAMES[i]}}
        for i, j in np.ndindex(3, 3)
        for _ in range(counts[i, j])
    ]


def retrieval(concepts: list[str], nearest: list[str]) -> list[dict]:
    return [
        {
            "model": "encoder", "subject": "01", "image_id": f"p{i}", "image_sha256": f"{i:064x}", "concept": own,
            "repetitions": 4, "gallery": 9, "rank": 1, "nearest": [{"concept": near}],
        }
        for i, (own, near) in enumerate(zip(concepts, nearest, strict=True))
    ]  # fmt: skip


def section(folder, name: str, records: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    return "\n".join(confusion.section(folder))


def test_planted_counts_come_back():
    found = Confusion.of([r["true"]["kind"] for r in items()], [r["named"]["kind"] for r in items()])
    assert found.names == NAMES
    assert (found.counts == COUNTS).all()
    assert found.accuracy == pytest.approx(0.7)
    assert found.chance == pytest.approx(1 / 3)
    assert found.independent == pytest.approx((8 * 7 + 8 * 12 + 4 * 1) / 20**2)
    assert found.worst == ("sphere", "cone", 3, 4)
    assert found.shares.sum(1) == pytest.approx([1, 1, 1])


def test_chance_counts_the_names_that_were_seen_not_those_that_were_said():
    found = Confusion.of(["a", "b", "a"], ["a", "c", "d"])
    assert found.chance == 0.5
    assert found.shares[2:].sum() == 0  # c and d were never seen


def test_perfect_naming_has_no_confusion():
    assert Confusion.of(["a", "b"], ["a", "b"]).worst is None


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="got 1 and 2"):
        Confusion.of(["a", "b"], ["a"])


def test_cells_carry_their_counts_and_the_diagonal_is_framed():
    axis = confusion.matrix_figure(Confusion(NAMES, COUNTS), "kind").axes[0]
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in axis.texts}
    assert written == {(i, j): COUNTS[i, j] for i, j in np.ndindex(3, 3) if COUNTS[i, j]}
    assert [patch.get_x() for patch in axis.patches] == pytest.approx([-0.47, 0.53, 1.53])
    assert axis.images[0].get_array()[2].tolist() == pytest.approx([0, 0.75, 0.25])


def test_the_alternative_text_states_accuracy_chance_and_the_worst_confusion_beside_the_control(tmp_path):
    uniform = np.full((3, 3), 2)
    other = items(np.diag([9, 9, 9]), run="no LoRA")
    html = section(tmp_path, "items.jsonl", items() + items(uniform, control="shuffled") + other)
    own, control = re.findall(r'alt="([^"]*)"', html)
    assert own == (
        "confusion of kind, EEG of the picture: 70.0 % of 20 named rightly, chance 33.3 % (1 of 3), by the totals of rows and "
        "columns alone 39.0 %; most often sphere was taken for cone, 3 of 4"
    )
    assert control.startswith("confusion of kind, wrong EEG: 33.3 % of 18 named rightly")
    assert "“LoRA”" in html


def test_a_run_without_its_control_says_so(tmp_path):
    assert "kind: no control was generated" in section(tmp_path, "items.jsonl", items())


def test_without_words_the_concept_of_the_nearest_picture_is_compared(tmp_path):
    html = section(tmp_path, "retrieval.jsonl", retrieval(["a", "a", "b", "b"], ["a", "b", "b", "b"]))
    own, control = re.findall(r'alt="([^"]*)"', html)
    assert "75.0 % of 4 named rightly, chance 50.0 % (1 of 2)" in own
    assert "most often a was taken for b, 1 of 2" in own
    assert "re-paired control" in control


def test_more_than_thirty_concepts_are_not_drawn(tmp_path):
    names = [f"c{i}" for i in range(31)]
    assert "31 concepts are too many" in section(tmp_path, "retrieval.jsonl", retrieval(names, names))
    assert "<img" in section(tmp_path, "retrieval.jsonl", retrieval(names[:30], names[:30]))


def test_nothing_to_compare_is_said(tmp_path):
    assert "no run whose pictures were named" in confusion.section(tmp_path)[0]
