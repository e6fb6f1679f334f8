"""How much a lifted surface looks like its picture, without a true surface: scores of its views.

Networks stay outside: embeddings and outputs of a classifier go in. None of these says that the shape is right: a flat
cut-out of the picture looks like it from in front.

Shapes: V views, F features, K outputs of a classifier, S pixels.
"""

from __future__ import annotations

import numpy as np

from ttd.metrics.pairwise import n_way_top_k
from ttd.metrics.volume import iou

N_VIEWS = 8
"""Views on a circle for CLIP, the first one the camera of the picture."""
N_WAY_VIEWS, N_WAY_DRAWS = 6, 40
"""Views and draws of MinD-3D's n-way score (Gao et al., 2024, arXiv:2409.11315)."""


def clip_views(views: np.ndarray | None, picture: np.ndarray) -> dict[str, float | None]:
    """Cosine between the picture's embedding [F] and those of the views [V, F]: mean and best view.

    Embeddings of CLIP's image encoder (Radford et al., 2021, arXiv:2103.00020). Two unrelated pictures are not at 0, so
    the same figure with another item's picture stands beside it; the best of V lies above the mean by selection
    alone. ``views=None``, an empty surface, has neither.

    Raises:
        ValueError: the shapes do not fit, or an embedding is zero or not finite.
    """
    if views is None:
        return {"clip_views_mean": None, "clip_views_best": None}
    if views.ndim != 2 or len(views) == 0 or picture.shape != views.shape[1:]:
        raise ValueError(f"need views [V, F] and a picture [F], got {views.shape} and {picture.shape}")
    lengths = np.linalg.norm(views, axis=1) * np.linalg.norm(picture)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("an embedding is zero or not finite")
    cosine = views @ picture / lengths
    return {"clip_views_mean": float(cosine.mean()), "clip_views_best": float(cosine.max())}


def n_way_views(logits: np.ndarray | None, classes: np.ndarray, *, ways: int, seed: int) -> dict[str, float | None]:
    """``ttd.metrics.pairwise.n_way_top_k`` over the views of one surface: mean over V views and 40 draws each.

    Chance is 1 / ``ways``. ``classes`` [V]: what the classifier sees in the same view of the true surface, or in the
    picture, for every view, where there is none. ``logits`` [V, K] of the views; ``None``, an empty surface, is never
    recognised and scores 0.
    """
    if logits is None:
        return {"n_way_views_top1": 0.0}
    return {"n_way_views_top1": float(n_way_top_k(logits, classes, seed=seed, ways=ways, n_draws=N_WAY_DRAWS).mean())}


def silhouette_iou(lifted: np.ndarray | None, picture: np.ndarray) -> dict[str, float]:
    """IoU of the surface's silhouette in the camera of the picture and the picture's mask, both bool [S, S].

    An empty surface (``None``) covers nothing: 0.
    """
    return {"silhouette_iou": 0.0 if lifted is None else iou(lifted, picture)}
