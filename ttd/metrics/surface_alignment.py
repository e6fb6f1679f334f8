"""What a wrong frame costs: a surface set onto the true one before it is measured, and the alignment of MinD-3D.

``align`` finds a similarity (turn, one scale, shift): centre and scale of both clouds, a search over turns about the
vertical, then the iterative closest point (Besl & McKay, 1992) with the least-squares similarity of Umeyama (1991,
doi:10.1109/34.88573, eqs. 40-42) in each step. Points are paired in both directions: with one
direction alone the scale shrinks.

MinD-3D (Gao et al., 2024, arXiv:2409.11315) does not align to the truth: ``tools/get_cd.py`` turns the generated mesh by
the principal axes of its vertices and leaves the true cloud as it is. The matrix with the axes as its *columns*
multiplies the vertices there, which carries the axes nowhere in particular. It is kept as published, for
comparison with its tables only: a perfect surface is not at distance zero. The sign of each axis is arbitrary (whatever
LAPACK returns), so each ``mind3d_`` figure has eight equally right values; here the largest component of an axis is positive,
so that the figure does not depend on the machine. Raw and aligned figures have no such ambiguity.

Shapes: N points of the predicted surface, M of the true one, V vertices.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

N_YAW = 36
"""Turns tried, one every 10 degrees: the closest point then has at most 5 degrees left, which it bridges."""
N_SEARCH, N_REFINE, N_KEPT, N_STEPS = 256, 1024, 3, 20
"""Points that rank the turns, points that are refined, turns that are refined, steps of each: 50 ms in all (measured, one core);
twice as many points or steps bring the surfaces of unlike scenes at most 1 % nearer."""


def align(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The similarity [4, 4] that sets points ``predicted`` [N, 3] onto points ``true`` [M, 3].

    Standing still is one of the candidates: a surface that is right in the known frame is not moved away. Rows must be in
    no order (as sampling leaves them), as the first ones stand for all.

    Raises:
        ValueError: a cloud has fewer than 3 points, or all of them in one place.
    """
    for name, cloud in (("predicted", predicted), ("true", true)):
        if len(cloud) < 3 or _spread(cloud) == 0:
            raise ValueError(f"{name} must be at least 3 points that are not all the same, got {cloud.shape}")
    centre, target = predicted.mean(0), true.mean(0)
    scale = _spread(true) / _spread(predicted)
    moves = [np.eye(4)]
    for yaw in np.arange(N_YAW) * 2 * np.pi / N_YAW:
        c, s = np.cos(yaw), np.sin(yaw)
        turn = scale * np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        moves.append(_affine(turn, target - turn @ centre))
    coarse = _Pair(predicted[:N_SEARCH], true[:N_SEARCH])
    fine = _Pair(predicted[:N_REFINE], true[:N_REFINE])
    order = np.argsort([coarse.distance(move) for move in moves[1:]], kind="stable")[: N_KEPT - 1]
    found = [fine.refine(move) for move in [moves[0], *[moves[1 + i] for i in order]]]
    return min(found, key=lambda pair: pair[0])[1]


def move_points(points: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Points [N, 3] carried by ``move`` [4, 4]."""
    return points @ move[:3, :3].T + move[:3, 3]


def move_normals(normals: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Unit normals [N, 3] turned by the similarity ``move`` [4, 4]."""
    turned = normals @ move[:3, :3].T
    return turned / np.linalg.norm(turned, axis=1, keepdims=True)


def mind3d_turn(vertices: np.ndarray) -> np.ndarray:
    """The matrix [3, 3] by which MinD-3D multiplies a generated mesh with ``vertices`` [V, 3]."""
    _, axes = np.linalg.eigh(np.cov(vertices, rowvar=False))
    axes = axes[:, ::-1]  # largest variance first
    return axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(3)])


def mind3d_unit(points: np.ndarray) -> np.ndarray:
    """Points [N, 3] with their mean at the origin and the farthest one at 0.5."""
    centred = points - points.mean(0)
    return centred / (2 * np.linalg.norm(centred, axis=1).max())


class _Pair:
    """Two clouds with a search tree each, so that a move costs two queries and no new tree."""

    def __init__(self, predicted: np.ndarray, true: np.ndarray):
        self.predicted, self.true = predicted, true
        self.trees = cKDTree(predicted), cKDTree(true)

    def _nearest(self, move: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Distances and indices: moved predicted points to the true ones, and the reverse."""
        back = np.linalg.inv(move)
        distance, index = self.trees[0].query(move_points(self.true, back))
        there = self.trees[1].query(move_points(self.predicted, move))
        return there, (distance * np.cbrt(np.linalg.det(move[:3, :3])), index)

    def distance(self, move: np.ndarray) -> float:
        """Mean distance to the nearest point, over both directions."""
        there, back = self._nearest(move)
        return float(there[0].mean() + back[0].mean()) / 2

    def refine(self, move: np.ndarray) -> tuple[float, np.ndarray]:
        """The best (distance, move) on the way of the iterative closest point from ``move``."""
        best = np.inf, move
        for _ in range(N_STEPS):
            (there, at_true), (back, at_predicted) = self._nearest(move)
            distance = float(there.mean() + back.mean()) / 2
            if distance > best[0] * (1 - 1e-3):  # no longer worth its time
                return min((distance, move), best, key=lambda pair: pair[0])
            best = distance, move
            source = np.concatenate([self.predicted, self.predicted[at_predicted]])
            move = _similarity(source, np.concatenate([self.true[at_true], self.true]))
        return best


def _similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares similarity [4, 4] from rows of ``source`` to rows of ``target`` (Umeyama, 1991), never a mirror image."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, strength, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    turn = (strength * sign).sum() / (a**2).sum() * (u * sign) @ vt
    return _affine(turn, target.mean(0) - turn @ source.mean(0))


def _affine(linear: np.ndarray, shift: np.ndarray) -> np.ndarray:
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = linear, shift
    return move


def _spread(points: np.ndarray) -> float:
    """Root mean square distance to the mean."""
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean()))
