"""Rows of one metric: means, subjects, controls, and the tables made of them."""

import json

import numpy as np
import pytest

from ttd.config import UserError
from ttd.metrics.decoding import retrieval_rows
from ttd.metrics.retrieval import cosine_similarity
from ttd.metrics.row import MEAN, read_rows
from ttd.metrics.rows import by_subject_and_picture, permutation_test, rows_of
from ttd.metrics.table import replace_section, table_markdown, write_results

SETTINGS = {"seed": 0, "n_resamples": 300, "n_draws": 3}


def two_subjects(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(["01", "02"], n), np.tile(np.arange(n), 2)


def hits(quality: dict[str, float], subject: np.ndarray):
    """A metric that is right with a known probability when the pairing is right, and never otherwise."""
    _, picture = two_subjects()
    right = np.random.default_rng(0).random(len(subject)) < np.vectorize(quality.get)(subject)
    return lambda r, own: (right[r] & (picture[r] == own)).astype(float)


def test_the_mean_row_is_the_mean_of_the_subjects_and_carries_its_interval():
    subject, picture = two_subjects()
    rows = rows_of(
        "named_kind", "x", hits({"01": 0.9, "02": 0.3}, subject), subject, picture, chance=1 / 6, labels={}, **SETTINGS
    )
    by_name = {row.subject: row for row in rows}
    assert set(by_name) == {MEAN, "01", "02"}
    assert by_name[MEAN].value == pytest.approx((by_name["01"].value + by_name["02"].value) / 2)
    assert by_name["01"].low < by_name["01"].value < by_name["01"].high
    assert by_name[MEAN].labels["subjects"] == ["01", "02"]
    assert by_name[MEAN].n == 60


def test_the_re_paired_control_knows_nothing():
    subject, picture = two_subjects()
    row = rows_of(
        "named_kind", "x", hits({"01": 1, "02": 1}, subject), subject, picture, chance=None, labels={}, **SETTINGS
    )[0]
    assert (row.value, row.control) == (1, 0)


def test_pictures_made_from_wrong_eeg_are_a_control_and_no_part_of_the_value():
    subject, picture = two_subjects()
    value = np.ones(120)
    value[::4] = 0.25
    wrong = np.zeros(120, bool)
    wrong[::4] = True
    row = rows_of(
        "ssim", "x", lambda r, own: value[r], subject, picture, chance=None, labels={}, wrong_eeg=wrong, **SETTINGS
    )[0]
    assert (row.value, row.control_generated) == (1, 0.25)


def test_repeats_of_a_picture_count_once_and_unseen_ones_not_at_all():
    table = by_subject_and_picture(np.array([1.0, 0.0, 4.0]), np.array(["a", "a", "b"]), np.array([7, 7, 9]))
    assert np.array_equal(table, [[0.5, np.nan], [np.nan, 4.0]], equal_nan=True)


def test_perfect_embeddings_are_retrieved_and_random_ones_sit_at_chance():
    gallery = np.random.default_rng(0).normal(size=(60, 16))
    subject, own = two_subjects()
    for predicted, expected in ((gallery[own], 1.0), (np.random.default_rng(1).normal(size=(120, 16)), 0.1)):
        rows = retrieval_rows(
            "x", [cosine_similarity(predicted, gallery)], subject, own, ways=[10, 200], labels={}, **SETTINGS
        )
        row = next(r for r in rows if r.metric == "retrieval_top1" and r.labels["gallery"] == 10 and r.subject == MEAN)
        assert row.value == pytest.approx(expected, abs=0.06)
        assert row.control == pytest.approx(0.1, abs=0.04)
        assert row.chance == 0.1
        assert {r.labels["gallery"] for r in rows} == {10, 60}, "a gallery cannot be larger than the pictures shown"


def test_results_survive_the_file_and_their_table_shows_control_and_chance(tmp_path):
    subject, picture = two_subjects()
    rows = rows_of(
        "two_way_clip", "lora", lambda r, own: np.full(len(r), 0.8), subject, picture,
        chance=0.5, labels={"repetitions": 20}, **SETTINGS,
    )  # fmt: skip
    write_results(tmp_path, rows, heading="Study", facts={"simulated": True})
    again, facts = read_rows(tmp_path / "metrics.json")
    assert again == rows
    assert facts["simulated"] is True
    assert facts["metrics"]["two_way_clip"]["source"] == "Ozcelik & VanRullen 2023"
    text = (tmp_path / "table.md").read_text()
    assert (
        "| two-way identification, CLIP ↑ | lora | 20 | 0.800 [0.800, 0.800] | 0.500 | – | 0.800 [0.800, 0.800] | – | 60 |"
        in text
    )
    assert "| two-way identification, CLIP | lora | 20 | 0.800 | 0.800 |" in text
    assert text == table_markdown(rows, "Study")


def test_a_missing_or_foreign_metrics_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run ttd/eval.py first"):
        read_rows(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text(json.dumps({"rows": [{"metric": "beauty"}]}))
    with pytest.raises(UserError, match="not a metrics.json of this version"):
        read_rows(tmp_path / "metrics.json")


def test_a_section_of_a_readme_is_exchanged_between_its_markers():
    readme = "a\n<!-- results -->\nold\n<!-- /results -->\nb\n"
    assert replace_section(readme, "results", "new | x\n") == "a\n<!-- results -->\nnew | x\n<!-- /results -->\nb\n"
    with pytest.raises(ValueError, match="no section between"):
        replace_section("nothing", "results", "x")


def test_the_permutation_test_of_two_pictures_is_counted_by_hand():
    """Two pictures, two names: half of the permutations are the true one."""
    score = lambda r, own: (np.array([0, 1])[r] == own).astype(float)  # noqa: E731
    test = permutation_test(score, np.array(["01", "01"]), np.array([0, 1]), seed=0)
    assert test.p == pytest.approx(0.5, abs=0.03)
    assert (test.low, test.high) == (0, 1)


def test_what_knows_nothing_is_called_significant_five_times_in_a_hundred():
    rng, found = np.random.default_rng(0), []
    subject, picture = np.repeat(["01", "02"], 40), np.tile(np.arange(40), 2)
    for _ in range(300):
        common = rng.normal(size=(40, 40))  # subjects see alike: a test of single trials would be wrong
        similarity = np.tile(common, (2, 1)) + 0.5 * rng.normal(size=(80, 40))
        found.append(
            permutation_test(lambda r, own, s=similarity: s[r, own], subject, picture, seed=1, n_permutations=199).p
        )
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_the_interval_of_permutations_is_that_of_the_metric_without_signal_and_the_signal_lies_above_it():
    subject, picture = two_subjects()
    rows = rows_of(
        "named_kind", "x", lambda r, own: (picture[r] % 6 == own % 6).astype(float), subject, picture,
        chance=1 / 6, labels={}, permute=True, **SETTINGS,
    )  # fmt: skip
    mean = next(row for row in rows if row.subject == MEAN)
    assert mean.chance_low < 1 / 6 < mean.chance_high < 0.35
    assert mean.p == 1 / 5000
    assert "< 0.001" in table_markdown(rows, "x")
    assert all(row.p is None for row in rows if row.subject != MEAN)


def test_random_predictions_lie_inside_their_chance_intervals_8_times_in_10_or_more():
    rng, (subject, picture) = np.random.default_rng(1), two_subjects()
    inside: dict[str, int] = {}
    for draw in range(10):
        rows = retrieval_rows(
            "x", [cosine_similarity(rng.normal(size=(120, 8)), rng.normal(size=(60, 8)))], subject, picture, ways=(50,),
            labels={},
            **SETTINGS | {"seed": draw},
        )  # fmt: skip
        for row in rows:
            if row.subject == MEAN:
                inside[row.title] = inside.get(row.title, 0) + (row.chance_low <= row.value <= row.chance_high)
    assert set(inside) == {"retrieval top-1, 50-way", "retrieval top-5, 50-way", "mean reciprocal rank, 60-way"}
    assert min(inside.values()) >= 8
