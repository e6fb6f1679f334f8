"""Several objects from one description: each is lifted from a picture of itself alone and put where the description has it.

A lifter of whole scenes gets the picture with the other objects painted over, and of what comes out that is kept which lies
around the object's box. A generator of single objects gets the object's own cut of the picture, and its surface is brought to the
object's box.

Shapes: H, W pixels; V vertices, F faces. Boxes are in the frame of ``ttd.geometry.camera``, descriptions in its hundredths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ttd.geometry.camera import Camera
from ttd.geometry.lifter import LiftRequest, LiftResult, Surface

MARGIN = 1.4
"""Boxes are enlarged by this before they are painted over or cut out: a describer's extents are good to a fifth."""


def box_of(thing: dict[str, Any], *, margin: float = 1.0) -> np.ndarray:
    """Lower and upper corner [2, 3] of an object of a description, in scene units."""
    centre, extent = (np.array([thing[name][axis] for axis in "xyz"], float) / 100 for name in ("position", "extent"))
    half = np.maximum(extent, 0.02) * margin / 2
    return np.stack([centre - half, centre + half])


def region_of(thing: dict[str, Any], camera: Camera, shape: tuple[int, int]) -> np.ndarray:
    """Pixels bool [H, W] in which an object's enlarged box is seen."""
    low, high = box_of(thing, margin=MARGIN)
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    seen = (camera.project(corners) + 1) / 2 * [shape[1], shape[0]]
    (left, top), (right, bottom) = np.floor(seen.min(0)).astype(int), np.ceil(seen.max(0)).astype(int)
    out = np.zeros(shape, bool)
    out[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return out


def alone(image: np.ndarray, objects: Sequence[dict[str, Any]], index: int, camera: Camera) -> np.ndarray:
    """The picture uint8 [H, W, 3] with all objects but one painted over, row by row from what stands left and right of them."""
    shape = (image.shape[0], image.shape[1])
    hide = np.zeros(shape, bool)
    for other, thing in enumerate(objects):
        if other != index:
            hide |= region_of(thing, camera, shape)
    hide &= ~region_of(objects[index], camera, shape)
    out, columns = image.copy(), np.arange(shape[1])
    for row in np.flatnonzero(hide.any(1)):
        seen = ~hide[row]
        if seen.any():
            for channel in range(3):
                out[row, hide[row], channel] = np.interp(columns[hide[row]], columns[seen], image[row, seen, channel])
    return out


def cut(image: np.ndarray, thing: dict[str, Any], camera: Camera) -> np.ndarray:
    """The object's own square cut of the picture; the whole picture where its box lies outside."""
    region = region_of(thing, camera, (image.shape[0], image.shape[1]))
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(rows):
        return image
    side = max(len(rows), len(columns))
    top = min(max(0, (rows[0] + rows[-1] + 1 - side) // 2), max(0, image.shape[0] - side))
    left = min(max(0, (columns[0] + columns[-1] + 1 - side) // 2), max(0, image.shape[1] - side))
    return image[top : top + side, left : left + side]


def within(surface: Surface, thing: dict[str, Any]) -> Surface | None:
    """The part of a scene's surface whose faces lie in an object's enlarged box; None where there is none."""
    low, high = box_of(thing, margin=MARGIN)
    middle = surface.vertices[surface.faces].mean(1)
    return _kept(surface, ((middle >= low) & (middle <= high)).all(1))


def brought_to(surface: Surface, thing: dict[str, Any]) -> Surface:
    """A single object's surface, scaled evenly and moved so that it fills an object's box."""
    low, high = box_of(thing)
    own_low, own_high = surface.vertices.min(0), surface.vertices.max(0)
    scale = ((high - low) / np.maximum(own_high - own_low, 1e-6)).min()
    vertices = (surface.vertices - (own_low + own_high) / 2) * scale + (low + high) / 2
    return Surface(vertices.astype(np.float32), surface.faces, surface.colours)


def joined(surfaces: Sequence[Surface]) -> Surface:
    """Several surfaces as one."""
    offsets = np.cumsum([0, *(len(s.vertices) for s in surfaces)])
    faces = [s.faces + offset for s, offset in zip(surfaces, offsets[:-1], strict=True)]
    return Surface(
        np.concatenate([s.vertices for s in surfaces]), np.concatenate(faces).astype(np.int32),
        np.concatenate([s.colours for s in surfaces]),
    )  # fmt: skip


def requests_of(
    key: str, image: np.ndarray, description: dict[str, Any], camera: Camera, *, whole_scene: bool, seed: int
) -> list[LiftRequest]:
    """One request for each object of a description."""
    objects = description["objects"]
    pictures = [
        alone(image, objects, i, camera) if whole_scene else cut(image, thing, camera)
        for i, thing in enumerate(objects)
    ]
    return [LiftRequest(f"{key}/{o['id']}", p, seed=seed) for o, p in zip(objects, pictures, strict=True)]


def composed(key: str, results: Sequence[LiftResult], description: dict[str, Any], *, whole_scene: bool) -> LiftResult:
    """The scene of the objects' own surfaces; empty where none of them has one."""
    parts, missing = [], []
    for thing, result in zip(description["objects"], results, strict=True):
        surface = None if result.surface is None else _in_frame(result)
        if surface is not None:
            surface = within(surface, thing) if whole_scene else brought_to(surface, thing)
        parts += [] if surface is None else [surface]
        missing += [f"{thing['id']}: {result.reason or 'nothing where it is described'}"] if surface is None else []
    seconds, reason = sum(r.seconds for r in results), "; ".join(missing)
    if not parts:
        return LiftResult(key, "empty", reason or "no object is described", seconds=seconds)
    return LiftResult(key, "ok", reason, surface=joined(parts), seconds=seconds)


def _in_frame(result: LiftResult) -> Surface:
    assert result.surface is not None
    s, matrix = result.surface, result.to_frame
    vertices = s.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    return Surface(vertices.astype(np.float32), s.faces, s.colours)


def _kept(surface: Surface, faces: np.ndarray) -> Surface | None:
    if not faces.any():
        return None
    used, renumbered = np.unique(surface.faces[faces], return_inverse=True)
    return Surface(surface.vertices[used], renumbered.reshape(-1, 3).astype(np.int32), surface.colours[used])
