import numpy as np
import pytest

from ttd.metrics.probing import GroupScores, difference, rows_of, table


def groups(right: float, n_groups: int = 20, n: int = 10) -> dict[str, GroupScores]:
    """``right`` of the epochs of every group are named rightly, of two equal classes."""
    labels = np.tile(["a", "b"], n // 2)
    wrong = np.arange(n) >= round(right * n)
    other = np.where(labels == "a", "b", "a")
    return {f"g{i}": GroupScores(np.where(wrong, other, labels), labels) for i in range(n_groups)}


def test_equal_groups_leave_no_doubt_about_other_groups_but_some_about_other_epochs():
    told = {"metric": "accuracy", "seed": 0}
    of_groups = rows_of(groups(0.8), [], unit="groups", **told)[-1]
    of_epochs = rows_of(groups(0.8), [], unit="epochs", **told)[-1]
    assert of_groups["value"] == of_epochs["value"] == pytest.approx(0.8)
    assert of_groups["interval"] == pytest.approx([0.8, 0.8])
    assert of_epochs["interval"][0] < 0.78 < 0.82 < of_epochs["interval"][1]


def test_the_mean_over_many_groups_has_a_narrower_control_than_one_of_them():
    *single, mean = rows_of(groups(0.8), [0.5], metric="accuracy", unit="epochs", seed=0)
    width = [row["control_interval"][1] - row["control_interval"][0] for row in (single[0], mean)]
    assert width[1] < 0.4 * width[0]  # 1 / sqrt(20) = 0.22 where draws of groups are independent
    assert mean["control"] == pytest.approx(0.5, abs=0.02)
    assert mean["chance"] == 0.5


def test_a_difference_compares_group_by_group():
    gain = difference(groups(0.8), groups(0.6), metric="accuracy", seed=0)
    assert (gain["value"], gain["above_0"], gain["n_groups"]) == (pytest.approx(0.2), 20, 20)
    assert gain["interval"] == pytest.approx([0.2, 0.2])


def test_of_many_groups_the_table_shows_their_mean_alone():
    rows = [
        {"model": "m", "data": "d", **row}
        for row in rows_of(groups(0.8), [0.4, 0.6], metric="accuracy", unit="groups", seed=0)
    ]
    text = table(rows, [], metric="accuracy")
    assert text.count("| m |") == 1
    assert "| mean of 20 | 200 | 0.800 |" in text
    assert "0.500 (0.400 to 0.600, 2 fits)" in text
