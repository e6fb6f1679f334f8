"""DreamDiffusion's scores against slow loops that follow its eval_metrics.py, at chance, and when perfect."""

import numpy as np
import pytest

from ttd.metrics.pairwise import every_pair, n_way_top_k, over_samples, pairwise_score
from ttd.metrics.pixel import mse, pixcorr
from ttd.metrics.retrieval import top_k_in_random_galleries


def pictures(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 8, 8, 3))


def logits(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 1000))


def slow_pairwise(metric, better, predicted: np.ndarray, shown: np.ndarray) -> list[float]:
    out = []
    for i, picture in enumerate(predicted):
        own = metric(picture[None], shown[i : i + 1])[0]
        rest = [metric(picture[None], x[None])[0] for j, x in enumerate(shown) if j != i]
        out.append(sum(better(own, other) for other in rest) / len(rest))
    return out


def slow_n_way(row: np.ndarray, true: int, n_draws: int, rng: np.random.Generator) -> float:
    others = [i for i in range(len(row)) if i != true]
    hits = 0
    for _ in range(n_draws):
        picked = np.concatenate([[row[true]], row[rng.choice(others, 49, replace=False)]])
        hits += picked.argmax() == 0
    return hits / n_draws


def test_the_pairwise_score_equals_the_loop_of_the_original_in_both_directions():
    shown = pictures(12, 0)
    predicted = 0.1 * shown + 0.9 * pictures(12, 1)
    lower = pairwise_score(every_pair(mse, predicted, shown), direction="lower")
    higher = pairwise_score(every_pair(pixcorr, predicted, shown), direction="higher")
    assert lower.tolist() == slow_pairwise(mse, lambda own, other: own < other, predicted, shown)
    assert higher.tolist() == slow_pairwise(pixcorr, lambda own, other: own > other, predicted, shown)
    assert 0.5 < lower.mean() < 1


def test_perfect_pictures_win_every_pair_and_unrelated_ones_half_of_them():
    shown = pictures(60, 0)
    assert pairwise_score(every_pair(mse, shown, shown), direction="lower").tolist() == [1.0] * 60
    unrelated = pairwise_score(every_pair(pixcorr, pictures(60, 1), shown), direction="higher")
    assert unrelated.mean() == pytest.approx(0.5, abs=0.05)


def test_own_says_which_picture_a_row_is_scored_against():
    values = every_pair(mse, pictures(3, 0)[[2, 2, 0]], pictures(3, 0))
    assert pairwise_score(values, np.array([2, 2, 0]), direction="lower").tolist() == [1.0, 1.0, 1.0]
    assert pairwise_score(values, np.array([0, 1, 2]), direction="lower").max() < 1


def test_n_way_top_1_agrees_with_drawing_the_distractors_themselves():
    rows, true = logits(6, 0), np.arange(6)
    rows[np.arange(6), true] += np.array([0, 1.5, 2, 2.5, 3, 4])
    rng = np.random.default_rng(1)
    slow = [slow_n_way(row, t, 1500, rng) for row, t in zip(rows, true, strict=True)]
    assert n_way_top_k(rows, true, seed=0, n_draws=1500) == pytest.approx(slow, abs=0.06)


@pytest.mark.parametrize("k", [1, 5])
def test_n_way_top_k_converges_to_its_expectation_over_all_draws(k):
    rows, true = logits(20, 0), np.random.default_rng(1).integers(0, 1000, 20)
    rows[np.arange(20), true] += 1.5
    exact = top_k_in_random_galleries(rows, true, ways=50, k=k)
    assert n_way_top_k(rows, true, seed=0, k=k, n_draws=20_000) == pytest.approx(exact, abs=0.015)


def test_the_same_outputs_as_the_shown_picture_are_always_named_and_random_ones_at_one_in_fifty():
    shown = logits(400, 0)
    assert n_way_top_k(shown, shown.argmax(1), seed=0).tolist() == [1.0] * 400
    unrelated = n_way_top_k(logits(400, 1), shown.argmax(1), seed=0)
    assert unrelated.mean() == pytest.approx(1 / 50, abs=0.01)


def test_the_draws_belong_to_the_seed_and_the_row():
    rows, true = logits(30, 0), np.zeros(30, int)
    rows[:, 0] += 2
    first = n_way_top_k(rows, true, seed=0)
    assert n_way_top_k(rows, true, seed=0).tolist() == first.tolist()
    assert n_way_top_k(rows[:10], true[:10], seed=0).tolist() == first[:10].tolist()
    assert n_way_top_k(rows, true, seed=1).tolist() != first.tolist()


def test_the_maximum_over_samples_is_that_of_means_over_pictures():
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    mean, largest = over_samples(scores)
    assert mean == pytest.approx(0.5)
    assert largest == pytest.approx(2 / 3)  # the best of each picture would give 1


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="direction must be 'higher' or 'lower', got 'up'"):
        pairwise_score(np.eye(3), direction="up")
    with pytest.raises(ValueError, match=r"need logits \[N, K\] and classes \[N\]"):
        n_way_top_k(np.ones((2, 1000)), np.zeros(3, int), seed=0)
    with pytest.raises(ValueError, match="ways <= 10 outputs, got k=1, ways=50"):
        n_way_top_k(np.ones((2, 10)), np.zeros(2, int), seed=0)
    with pytest.raises(ValueError, match="not all finite"):
        n_way_top_k(np.full((1, 1000), np.nan), np.zeros(1, int), seed=0)
    with pytest.raises(ValueError, match="must lie in 0..999"):
        n_way_top_k(np.ones((1, 1000)), np.array([1000]), seed=0)
