import numpy as np
import pytest

from ttd.metrics.geometry import METRICS
from ttd.metrics.surface_views import clip_views, n_way_views, silhouette_iou


def test_the_mean_and_the_best_view_are_cosines_with_the_picture():
    views = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    scores = clip_views(views, np.array([5.0, 0.0]))
    assert scores == {
        "clip_views_mean": pytest.approx((1 + 0 + 0.5**0.5) / 3),
        "clip_views_best": pytest.approx(1),
    }
    assert set(clip_views(None, np.ones(2)).values()) == {None}
    assert scores.keys() <= METRICS.keys()


@pytest.mark.parametrize("views", [np.zeros((3, 2)), np.full((3, 2), np.nan)])
def test_an_embedding_that_points_nowhere_is_refused(views):
    with pytest.raises(ValueError, match="zero or not finite"):
        clip_views(views, np.ones(2))
    with pytest.raises(ValueError, match=r"need views \[V, F\]"):
        clip_views(np.ones((3, 4)), np.ones(2))


def test_views_without_information_are_recognised_at_chance_and_sure_ones_always():
    rng = np.random.default_rng(0)
    blind = [n_way_views(rng.normal(size=(6, 1000)), rng.integers(1000, size=6), ways=10, seed=i) for i in range(150)]
    assert np.mean([b["n_way_views_top1"] for b in blind]) == pytest.approx(0.1, abs=0.03)
    assert n_way_views(10 * np.eye(1000)[[3] * 6], np.full(6, 3), ways=10, seed=0) == {"n_way_views_top1": 1.0}
    assert n_way_views(None, np.full(6, 3), ways=10, seed=0) == {"n_way_views_top1": 0.0}


def test_half_a_silhouette_has_an_iou_of_one_half():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    half = mask.copy()
    half[:4] = False
    assert silhouette_iou(mask, mask) == {"silhouette_iou": 1.0}
    assert silhouette_iou(half, mask) == {"silhouette_iou": 0.5}
    assert silhouette_iou(None, mask) == {"silhouette_iou": 0.0}
