"""Retrieval on real embeddings: pictures of THINGS-EEG2's test set find the centres of their concepts (NICE)."""

import os
from pathlib import Path

import numpy as np
import pytest

from ttd.metrics.retrieval import chance, cosine_similarity, reciprocal_rank, top_k_in_random_galleries
from ttd.metrics.uncertainty import shuffled_control

FOLDER = Path(os.environ.get("TTD_REAL_DATA", "../shared/data")) / "nice-clip-features"
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is absent; set TTD_REAL_DATA"),
]


@pytest.fixture(scope="module")
def similarity() -> np.ndarray:
    """Cosines [200, 200] of the pictures with the centres of the concepts."""
    images, centres = (
        np.load(FOLDER / name, allow_pickle=False).reshape(200, 768).astype(np.float64)
        for name in ("clip_feature_maps_test.npy", "center_clip.npy")
    )
    return cosine_similarity(images, centres)


def test_a_picture_finds_the_centre_of_its_concept_at_0_980_and_among_five_always(similarity):
    assert top_k_in_random_galleries(similarity, ways=200).mean() == 0.98
    assert top_k_in_random_galleries(similarity, ways=200, k=5).mean() == 1.0


def test_smaller_galleries_are_easier_and_the_reciprocal_rank_lies_above_top_1(similarity):
    by_size = [top_k_in_random_galleries(similarity, ways=k).mean() for k in (2, 4, 10, 50, 100, 200)]
    assert by_size == sorted(by_size, reverse=True)
    assert 0.98 < reciprocal_rank(similarity).mean() < 1


def test_the_wrong_concepts_are_found_at_chance_or_less(similarity):
    control = shuffled_control(lambda own: top_k_in_random_galleries(similarity, own, ways=200), np.arange(200), seed=0)
    assert control.mean() <= 2 * chance(ways=200)
