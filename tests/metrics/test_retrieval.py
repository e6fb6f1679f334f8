import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.retrieval import retrieval_reciprocal_rank

from ttd.metrics.retrieval import (
    chance,
    chance_reciprocal_rank,
    cosine_similarity,
    prototypes,
    reciprocal_rank,
    top_k_in_random_galleries,
)
from ttd.metrics.uncertainty import shuffled_control


def brute_force(similarity: np.ndarray, row: int, ways: int, k: int, n_draws: int, rng: np.random.Generator) -> float:
    others = np.delete(np.arange(similarity.shape[1]), row)
    hits = 0
    for _ in range(n_draws):
        drawn = rng.choice(others, ways - 1, replace=False)
        hits += (similarity[row, drawn] > similarity[row, row]).sum() < k
    return hits / n_draws


@pytest.mark.parametrize("k", [1, 5])
def test_the_closed_form_equals_drawing_many_galleries(k):
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((40, 40)) + 1.2 * np.eye(40)
    exact = top_k_in_random_galleries(similarity, ways=10, k=k)
    for row in range(0, 40, 8):
        assert exact[row] == pytest.approx(brute_force(similarity, row, 10, k, 4000, rng), abs=0.03)


def test_the_whole_gallery_counts_ranks():
    similarity = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert top_k_in_random_galleries(similarity, ways=3).tolist() == [1.0, 0.0, 0.0]
    assert top_k_in_random_galleries(similarity, ways=3, k=2).tolist() == [1.0, 1.0, 0.0]


def test_perfect_predictions_score_one_and_constant_ones_sit_at_chance():
    gallery = np.random.default_rng(0).standard_normal((200, 16))
    assert top_k_in_random_galleries(cosine_similarity(gallery, gallery), ways=50).mean() == 1.0
    constant = top_k_in_random_galleries(np.ones((200, 200)), ways=50, k=5)
    assert constant == pytest.approx(np.full(200, chance(ways=50, k=5)))


def test_the_shuffled_control_of_perfect_predictions_never_hits():
    similarity = np.eye(60)
    control = shuffled_control(lambda own: top_k_in_random_galleries(similarity, own, ways=60), np.arange(60), seed=0)
    assert control.mean() < 0.02


def test_unrelated_predictions_sit_at_chance():
    rng = np.random.default_rng(1)
    similarity = cosine_similarity(rng.standard_normal((400, 64)), rng.standard_normal((400, 64)))
    assert top_k_in_random_galleries(similarity, ways=50).mean() == pytest.approx(chance(ways=50), abs=0.01)


def test_several_predictions_may_belong_to_one_picture():
    similarity = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]])
    assert top_k_in_random_galleries(similarity, np.array([0, 0, 0]), ways=2).tolist() == [1.0, 0.0, 1.0]


def test_a_gallery_larger_than_the_pictures_is_refused():
    with pytest.raises(ValueError, match="ways=50 must be between 2 and the gallery's 3 pictures"):
        top_k_in_random_galleries(np.eye(3), ways=50)
    with pytest.raises(ValueError, match="own must be given: 2 predictions, 3 pictures"):
        top_k_in_random_galleries(np.eye(3)[:2], ways=2)


def test_the_reciprocal_rank_equals_torchmetrics_and_the_average_precision_of_scikit_learn():
    rng = np.random.default_rng(0)
    similarity = 10 + rng.standard_normal((30, 40))  # torchmetrics drops scores below 0
    own = rng.integers(0, 40, 30)
    similarity[np.arange(30), own] += 1.5
    found = reciprocal_rank(similarity, own)
    for row, true, value in zip(similarity, own, found, strict=True):
        relevant = torch.arange(40) == int(true)
        assert value == pytest.approx(float(retrieval_reciprocal_rank(torch.from_numpy(row), relevant)))
        assert value == pytest.approx(average_precision_score(relevant.numpy(), row))


def test_the_reciprocal_rank_of_perfect_unrelated_and_constant_predictions():
    rng = np.random.default_rng(1)
    assert reciprocal_rank(np.eye(50)).tolist() == [1.0] * 50
    assert reciprocal_rank(rng.standard_normal((3000, 50)), rng.integers(0, 50, 3000)).mean() == pytest.approx(
        chance_reciprocal_rank(50), abs=0.01
    )
    assert reciprocal_rank(np.ones((50, 50))) == pytest.approx(np.full(50, chance_reciprocal_rank(50)))
    assert chance_reciprocal_rank(2) == 0.75


def test_a_prototype_is_the_mean_of_its_class_and_a_prediction_retrieves_its_class():
    embeddings = np.array([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    names, gallery, row = prototypes(embeddings, np.array(["dog", "dog", "cat"]))
    assert names.tolist() == ["cat", "dog"]
    assert gallery.tolist() == [[0.0, 5.0], [2.0, 1.0]]
    assert row.tolist() == [1, 1, 0]
    similarity = cosine_similarity(embeddings, gallery)
    assert top_k_in_random_galleries(similarity, row, ways=2).tolist() == [1.0, 1.0, 1.0]


def test_unrelated_predictions_find_prototypes_at_chance():
    rng = np.random.default_rng(0)
    _, gallery, row = prototypes(rng.standard_normal((600, 32)), np.repeat(np.arange(20), 30))
    similarity = cosine_similarity(rng.standard_normal((600, 32)), gallery)
    assert top_k_in_random_galleries(similarity, row, ways=20).mean() == pytest.approx(chance(ways=20), abs=0.03)


def test_prototypes_need_a_class_for_every_picture():
    with pytest.raises(ValueError, match="3 embeddings but 2 classes"):
        prototypes(np.ones((3, 2)), np.array([0, 1]))
