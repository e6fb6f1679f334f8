"""The structured description of a picture: its schema, the grammar of its JSON, and what no grammar can check.

The fields are those the Brain3D abstract names (arXiv:2604.08068): scene type, main objects with 3D positions, spatial
relations, depth and geometry. Coordinates are integers in hundredths of the frame of ``ttd.geometry.camera``, names follow
patterns and every array is capped: constrained decoding engines treat floats, ``maxLength`` and open arrays differently
from JSON's own rules, and a grammar that forbids what a model has learnt costs accuracy without any error.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SceneType = Literal["indoor", "outdoor", "object", "tabletop"]
Shape = Literal["sphere", "box", "cylinder", "cone", "torus", "capsule", "other"]
Predicate = Literal["left_of", "right_of", "in_front_of", "behind", "above", "below", "on", "inside", "near"]
SCENE_TYPES, SHAPES, PREDICATES = get_args(SceneType), get_args(Shape), get_args(Predicate)

Id = Annotated[str, Field(pattern=r"^o[0-7]$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z ]{0,23}$")]
Coordinate = Annotated[int, Field(ge=-100, le=100, strict=True)]
Length = Annotated[int, Field(ge=0, le=200, strict=True)]


class Part(BaseModel):
    """Base of the parts of a description: all keys required, none added."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Position(Part):
    """Centre, in hundredths: x to the right, y up, z towards the camera."""

    x: Coordinate
    y: Coordinate
    z: Coordinate


class Extent(Part):
    """Size along each axis, in hundredths."""

    x: Length
    y: Length
    z: Length


class ObjectPart(Part):
    """One object; ``depth_rank`` 0 is the nearest."""

    id: Id
    label: Name
    color: Name
    shape: Shape
    size: Literal["small", "large"]
    place: Literal["left", "middle", "right"]
    position: Position
    extent: Extent
    depth_rank: Annotated[int, Field(ge=0, le=7, strict=True)]


class Relation(Part):
    """``subject`` is ``predicate`` ``object``, both named by their id."""

    subject: Id
    predicate: Predicate
    object: Id


class Depth(Part):
    """Ids of the objects in front and of those behind; one in between may stand in neither."""

    near: Annotated[tuple[Id, ...], Field(max_length=8)]
    far: Annotated[tuple[Id, ...], Field(max_length=8)]


class Description(Part):
    """A scene. The keys are written in this order."""

    schema_version: Literal[1]
    scene_type: SceneType
    objects: Annotated[tuple[ObjectPart, ...], Field(min_length=1, max_length=8)]
    relations: Annotated[tuple[Relation, ...], Field(max_length=12)]
    depth: Depth
    geometry: Annotated[str, Field(pattern=r"^[a-z][a-z ]{0,63}$")]
    confidence: Annotated[int, Field(ge=0, le=100, strict=True)]


def to_text(description: dict[str, Any]) -> str:
    """The JSON of a description as models are trained on it: one line, separators ``", "`` and ``": "``."""
    return json.dumps(description)


def grammar_schema() -> dict[str, Any]:
    """JSON schema for llguidance, whose separators and whitespace are those of ``to_text``."""
    guidance = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    return {"x-guidance": guidance, **Description.model_json_schema()}


def parse(text: str) -> dict[str, Any]:
    """The description that ``text`` is, whole and exactly; nothing is repaired.

    Raises:
        ValueError: not JSON, or not of the schema; the message names the first mistake.
    """
    try:
        content = json.loads(text)
        Description.model_validate(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "description"
        raise ValueError(f"not of the schema: {where}: {first['msg']} ({error.error_count()} in all)") from error
    return content


# For each predicate that positions decide: the axis, and the sign of subject minus object along it.
AXIS = {"left_of": ("x", -1), "right_of": ("x", 1), "in_front_of": ("z", 1), "behind": ("z", -1), "above": ("y", 1),
        "below": ("y", -1), "on": ("y", 1)}  # fmt: skip


def contradicts(predicate: str, subject: dict[str, Any], object_: dict[str, Any]) -> bool:
    """Whether the positions of two objects say the opposite of a predicate; equal coordinates say nothing.

    ``inside`` is contradicted when the subject's centre lies outside the object's extent. ``near`` never is: the schema
    gives it no distance.
    """
    a, b = subject["position"], object_["position"]
    if predicate in AXIS:
        axis, sign = AXIS[predicate]
        return (a[axis] - b[axis]) * sign < 0
    if predicate == "inside":
        return any(2 * abs(a[axis] - b[axis]) > object_["extent"][axis] for axis in "xyz")
    return False


def semantic_problems(description: dict[str, Any]) -> list[str]:
    """What is wrong with a description of the right form, one sentence each; empty when it agrees with itself."""
    objects = description["objects"]
    ids = [o["id"] for o in objects]
    by_id = {o["id"]: o for o in objects}
    problems = [f"the id {i} is given to {ids.count(i)} objects" for i in sorted(set(ids)) if ids.count(i) > 1]
    for r in description["relations"]:
        said = f"{r['subject']} {r['predicate']} {r['object']}"
        unknown = sorted({r["subject"], r["object"]} - set(ids))
        if unknown:
            problems.append(f"{said}: there is no object {', '.join(unknown)}")
        elif r["subject"] == r["object"]:
            problems.append(f"{said}: an object cannot stand in relation to itself")
        elif contradicts(r["predicate"], by_id[r["subject"]], by_id[r["object"]]):
            problems.append(f"{said}: the positions say the opposite")
    ranks = [o["depth_rank"] for o in objects]
    if sorted(ranks) != list(range(len(objects))):
        problems.append(f"depth_rank must number the objects from 0 to {len(objects) - 1}, got {ranks}")
    else:
        z = [o["position"]["z"] for o in sorted(objects, key=lambda o: o["depth_rank"])]
        if any(behind > before for before, behind in pairwise(z)):
            problems.append(f"depth_rank does not go from near to far: z by rank is {z}")
    near, far = description["depth"]["near"], description["depth"]["far"]
    unknown = sorted({*near, *far} - set(ids))
    if unknown:
        problems.append(f"depth: there is no object {', '.join(unknown)}")
    for i in sorted(set(near) & set(far)):
        problems.append(f"depth: {i} is both near and far")
    known = [[by_id[i]["position"]["z"] for i in part if i in by_id] for part in (near, far)]
    if all(known) and min(known[0]) < max(known[1]):
        problems.append("depth: something far stands nearer than something near")
    return problems
