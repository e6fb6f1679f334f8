"""The sample contract: what a shard may hold, and the facts that stand in its index.

A sample is a key and its members: plain npy, json, png or jpg files inside a tar. Six kinds exist: ``window``
(unlabelled EEG), ``epoch`` (EEG and a label), ``paired`` (EEG of every repetition of one image, seen by one subject
within one part of the split), ``materialised`` (a paired sample together with its picture and targets), and, keyed by the
sha256 of the encoded image file, ``image`` and ``target``.

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

SCHEMA_VERSION = 1

Kind = Literal["window", "epoch", "paired", "materialised", "image", "target"]
Part = Literal["train", "validation", "test", "all"]
EEG_KINDS = ("window", "epoch", "paired", "materialised")
IMAGE_MEMBERS = ("image.png", "image.jpg")

KEY = re.compile(r"[A-Za-z0-9_=+-]{1,80}")
"""A key has no dot, because tar readers such as webdataset cut the member's name at the first dot."""


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleMeta(_Contract):
    """``meta.json`` of an EEG sample; sessions, runs and onsets have one entry per repetition."""

    study: str
    subject: str
    cap: str
    sessions: list[str]
    runs: list[str]
    onsets: list[float]
    """Seconds from the start of the recording to time 0 of the repetition."""
    image_id: str | None = None
    concept: str | None = None
    label: str | None = None
    image_sha256: str | None = None
    """Of the encoded image file; the key under which images and targets are joined."""
    pairing: Literal["image", "class"] = "image"
    """``image``: this picture was seen. ``class``: a picture of the class that was seen; which one is not known."""
    licence: str | None = None


class ImageMeta(_Contract):
    """``meta.json`` of an image."""

    image_id: str
    concept: str | None = None
    sha256: str
    study: str | None = None
    licence: str | None = None


class Statistics(_Contract):
    """Mean and standard deviation per channel in µV, over all repetitions and time points of the training part."""

    mean: list[float]
    std: list[float]

    @field_validator("std")
    @classmethod
    def _positive(cls, std: list[float]) -> list[float]:
        flat = [i for i, value in enumerate(std) if not value > 0]
        if flat:
            raise ValueError(f"channels {flat} are flat over the whole training part; drop or interpolate them")
        return std


class ShardFacts(_Contract):
    """One tar file: its name beside the index, its size in bytes, its hash and its number of samples."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,80}\.tar$")
    size: int
    sha256: str
    n_samples: int


class Facts(_Contract):
    """What an index says about all of its samples (``index.json``)."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    study: str
    part: Part = "all"
    sfreq: float | None = None
    """Hz; EEG kinds only, like tmin, n_times, caps and statistics."""
    tmin: float | None = None
    """Seconds from time 0 of a repetition to its first sample."""
    n_times: int | None = None
    caps: dict[str, list[str]] = Field(default_factory=dict)
    """Channel names, in the order of the rows, of each cap."""
    statistics: dict[str, Statistics] = Field(default_factory=dict)
    """Per cap."""
    normalise: Literal["channel", "subject"] = "channel"
    """What is done to EEG when it is read, beside the z-score per channel: see ``whitening``."""
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    split_fingerprint: str = ""
    simulated: bool = False
    code_version: str = ""
    source: dict[str, Any] = Field(default_factory=dict)
    """What made these samples (fingerprint of inputs and configuration), so that the same work is not done twice."""
    n_samples: int = 0
    shards: list[ShardFacts] = Field(default_factory=list)
    index_sha256: str = ""
    """Of ``index.npz``."""
    facts_sha256: str = ""
    """Of everything else in ``index.json`` (see ``hash_of``); empty in indices written before this field was there."""

    @model_validator(mode="after")
    def _complete(self) -> Facts:
        if self.kind in EEG_KINDS:
            missing = [name for name in ("sfreq", "tmin", "n_times", "caps") if getattr(self, name) in (None, {})]
            if missing:
                raise ValueError(f"an index of kind {self.kind!r} must state {', '.join(missing)}")
        for cap, statistics in self.statistics.items():
            n_chans = len(self.caps.get(cap, ()))
            if len(statistics.mean) != n_chans or len(statistics.std) != n_chans:
                raise ValueError(f"statistics of cap {cap!r} are for {len(statistics.mean)} channels, it has {n_chans}")
        return self


def hash_of(facts: dict[str, Any]) -> str:
    """The ``facts_sha256`` of the content of ``index.json``."""
    others = {name: value for name, value in facts.items() if name != "facts_sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def check_sample(kind: Kind, key: str, members: dict[str, Any]) -> str | None:
    """What is wrong with a decoded sample (npy members as arrays, json members as dicts), in one sentence, or None.

    Whether C and T fit the cap is known only once the facts are: see ``check_shape``.
    """
    if not KEY.fullmatch(key):
        return f"key {key!r} must be 1 to 80 characters of A-Z a-z 0-9 _ = + - (no dots: readers cut names there)"
    names = set(members)
    if kind == "materialised":
        pictures = [name for name in names if name in IMAGE_MEMBERS]
        targets = {name: members[name] for name in names if name.endswith(".npy") and name != "eeg.npy"}
        if not {"eeg.npy", "meta.json"} <= names or names - {"eeg.npy", "meta.json", *pictures, *targets}:
            return f"members are {sorted(names)}, expected eeg.npy, meta.json, an image and targets"
        wrong = next(filter(None, (_check_target(name, value) for name, value in sorted(targets.items()))), None)
        return wrong or _check_eeg(kind, members["eeg.npy"], members["meta.json"])
    if kind in EEG_KINDS:
        if names != {"eeg.npy", "meta.json"}:
            return f"members are {sorted(names)}, expected eeg.npy and meta.json"
        return _check_eeg(kind, members["eeg.npy"], members["meta.json"])
    if kind == "image":
        if len(names) != 2 or "meta.json" not in names or not names & set(IMAGE_MEMBERS):
            return f"members are {sorted(names)}, expected meta.json and one of {', '.join(IMAGE_MEMBERS)}"
        return _mistakes(ImageMeta, members["meta.json"])
    if names != {"target.npy"}:
        return f"members are {sorted(names)}, expected target.npy"
    return _check_target("target.npy", members["target.npy"])


def _is_finite(x: np.ndarray) -> bool:
    if x.dtype == np.float16:  # by the exponent's bits: ten times faster than np.isfinite
        return not ((x.view(np.uint16) & 0x7C00) == 0x7C00).any()
    return bool(np.isfinite(x).all())


def _check_target(name: str, target: np.ndarray) -> str | None:
    if target.dtype not in (np.float16, np.float32):
        return f"{name} is {target.dtype}, expected float16 or float32"
    return None if _is_finite(target) else f"{name} holds NaN or infinite values"


def _check_eeg(kind: Kind, eeg: np.ndarray, meta: dict) -> str | None:
    if eeg.dtype != np.float16:
        return f"eeg.npy is {eeg.dtype}, expected float16 (µV)"
    if eeg.ndim != 3 or 0 in eeg.shape:
        return f"eeg.npy has shape {list(eeg.shape)}, expected [R, C, T]"
    if not _is_finite(eeg):
        return "eeg.npy holds NaN, or values beyond ±65504 µV; is it in µV?"
    wrong = _mistakes(SampleMeta, meta)
    if wrong:
        return wrong
    lengths = {name: len(meta[name]) for name in ("sessions", "runs", "onsets")}
    if set(lengths.values()) != {len(eeg)}:
        return f"eeg.npy has {len(eeg)} repetitions, but meta.json lists {lengths}"
    shown = ("image_id", "image_sha256")
    needed = {"window": (), "epoch": ("label",), "paired": shown, "materialised": shown}[kind]
    absent = [name for name in needed if not meta.get(name)]
    return f"meta.json lacks {', '.join(absent)}, needed by kind {kind!r}" if absent else None


def check_shape(facts: Facts, cap: str, shape: tuple[int, ...]) -> str | None:
    """What is wrong with the shape [R, C, T] of an EEG sample of ``cap``, or None."""
    if cap not in facts.caps:
        return f"cap {cap!r} is not one of the index: {sorted(facts.caps)}"
    expected = (len(facts.caps[cap]), facts.n_times)
    if tuple(shape[1:]) != expected:
        return f"eeg.npy has shape {list(shape)}, expected [R, {expected[0]}, {expected[1]}] of cap {cap!r}"
    return None


def _mistakes(model: type[BaseModel], meta: Any) -> str | None:
    try:
        model.model_validate(meta)
    except ValidationError as error:
        return "meta.json: " + "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return None
