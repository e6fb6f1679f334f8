"""What both ways of building shards share: the parts' writers, the statistics of the training part, whole-or-absent
folders.

A study's shards are written into a hidden folder beside their place and renamed at the end. ``build.json`` in it
states the configuration and the input files, so that the same command is recognised and another one refused.

Shapes: R repetitions, C channels, T time points.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from ttd.config import Config, UserError, fingerprint, write_json
from ttd.data.scaling import ChannelStatistics, scaling
from ttd.data.schema import Kind
from ttd.data.splits import some_of
from ttd.data.writer import ShardWriter
from ttd.eeg.studies import Recording, Study

CPU_S_PER_MILLION_VALUES = 0.11
"""CPU seconds to read, filter and cut a million values (channels × samples at the recording's rate); measured with 63
channels at 250 Hz."""

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image.png", b"\xff\xd8\xff": "image.jpg"}


def identity(config: Config, recordings: Sequence[Recording] | None, *, kind: Kind) -> dict[str, Any]:
    """What two builds with equal shards share: the configuration but for places, the content of the signal files and,
    where samples are paired with pictures, what the events say."""
    inputs = None if recordings is None else {r.name: [_glimpse(file) for file in r.signal_files] for r in recordings}
    if inputs and recordings and kind == "paired":
        for recording in recordings:
            told = [(e.onset_s, e.image_id, e.concept, e.label, e.part) for e in recording.events()]
            inputs[recording.name].append(fingerprint(told))
    return {
        "config": config.model_dump(mode="json", exclude={"output_dir": True, "study": {"root", "images"}}),
        "inputs": inputs,
    }


def _glimpse(path: Path) -> str:
    """Size of a file and a hash of 64 kB from its beginning, middle and end: enough to tell recordings apart, at no
    cost."""
    size, digest = path.stat().st_size, xxhash.xxh3_64()
    with path.open("rb") as file:
        for offset in (0, size // 2, max(0, size - 65536)):
            file.seek(offset)
            digest.update(file.read(65536))
    return f"{size}-{digest.hexdigest()}"


def find_built(
    root: Path, config: Config, recordings: Sequence[Recording] | None, *, kind: Kind
) -> dict[str, Any] | None:
    """The ``build.json`` of a finished build with this identity, or None where nothing is.

    Without recordings (the study's folder is gone) the configuration alone decides.

    Raises:
        UserError: the folder holds other shards (the differing keys are named) or other files.
    """
    built = finished(root)
    if built is None:
        return None
    now = identity(config, recordings, kind=kind)
    keys = differing(built["config"], now["config"])
    if now["inputs"] is not None and built["inputs"] != now["inputs"]:
        keys.append("the study's recordings or events")
    if keys:
        raise UserError(other_settings(root, keys))
    return built


def finished(root: Path) -> dict[str, Any] | None:
    """The ``build.json`` of whatever build stands in ``root``, or None where nothing is.

    Raises:
        UserError: the folder holds other files.
    """
    path = root / "build.json"
    if path.is_file():
        return json.loads(path.read_text())
    foreign = [p.name for p in root.iterdir() if p.name != "outcome.json"] if root.is_dir() else []
    if foreign:
        raise UserError(f"output_dir={root}: holds other files ({', '.join(sorted(foreign)[:3])}); give a new folder")
    return None


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Dotted keys in which two configurations differ; what one of them lacks counts as null."""
    old, new = _flat(one), _flat(other)
    return [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def other_settings(root: Path, keys: Sequence[str]) -> str:
    """What is said of a folder that holds another build, which differs in ``keys``."""
    return (
        f"output_dir={root}: holds shards built with other settings: {', '.join(keys)}; "
        "give another output_dir or delete that folder"
    )


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}


def portion_of(recordings: Sequence[Recording], subjects: Sequence[str] | None) -> list[Recording]:
    """The recordings of these subjects, all where None.

    Raises:
        UserError: the study has no such subject.
    """
    known = list(dict.fromkeys(recording.subject for recording in recordings))
    unknown = [subject for subject in subjects or () if subject not in known]
    if unknown:
        raise UserError(f"only_subjects: the study has no subject {', '.join(unknown)}; there are {some_of(known, 8)}")
    return [recording for recording in recordings if subjects is None or recording.subject in subjects]


def free_mb(root: Path) -> float:
    """Megabytes left on the disk where ``root`` is or will be."""
    place = root.absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free / 1e6


@contextlib.contextmanager
def only_build(root: Path) -> Iterator[None]:
    """Hold the lock of an output folder, a file beside it; the system releases it when the process ends, however it does.

    Raises:
        UserError: another process holds it, or has finished a build there since the folder was looked at.
    """
    path = root.with_name(f".{root.name}.lock")
    root.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"output_dir={root}: another process is building there; wait for it, or give another output_dir"
                ) from error
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                continue  # its holder finished and took the file away between our two steps
            try:
                if (root / "build.json").is_file():
                    raise UserError(f"output_dir={root}: was built by another process just now; run the command again")
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def building(root: Path) -> Iterator[Path]:
    """A fresh hidden folder beside ``root``, for ``put_in_place``; it is gone at the end. Only one process gets it.

    Raises:
        UserError: see ``only_build``.
    """
    aside = root.with_name(f".{root.name}.building")
    with only_build(root):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, root: Path) -> None:
    """Let a finished folder appear."""
    (root / "outcome.json").unlink(missing_ok=True)
    if root.is_dir():
        root.rmdir()
    aside.rename(root)


def picture_member(path: Path) -> str:
    """``image.png`` or ``image.jpg``: what an encoded picture is called in a shard.

    Raises:
        UserError: it is no PNG or JPEG, or cannot be decoded.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        member = next((name for magic, name in SIGNATURES.items() if start.startswith(magic)), None)
        if member is None:
            raise ValueError("neither PNG nor JPEG; convert it")
        with Image.open(path) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: this picture cannot be used: {error}") from error
    return member


def nothing_to_train_on(study: Study, kind: Kind, dropped: Mapping[str, int]) -> str:
    """Why the training part is empty, with the remedy where one is known."""
    counts = ", ".join(f"{n} {why}" for why, n in dropped.items())
    text = f"{study.location}: not one sample for the training part; " + (
        f"left out: {counts}" if counts else "nothing was left out"
    )
    if kind == "window":
        return f"{text}; its recordings are shorter than a window (windows.n_times), or marked bad from end to end"
    if "outside the recording" in dropped:
        unit = getattr(getattr(study, "config", None), "onset_unit", None)
        given = f", which study.onset_unit={unit} reads as they stand (s, ms or samples)" if unit else ""
        return f"{text}; compare the onsets{given}, and epochs.tmin and tmax, with the length of the recordings"
    return text


class StudyWriter:
    """The shards of all parts of one study, and its images, below one root that appears whole or not at all.

    with StudyWriter(root, config, study, kind="paired", ...) as writer:
        writer.write("train", key, eeg, ch_names, meta)
        writer.finish(...)
    """

    def __init__(self, root: Path, study: Study, *, kind: Kind, samples_per_shard: int):
        self.root, self.study, self.kind, self._per_shard = root, study, kind, samples_per_shard
        self._held = contextlib.ExitStack()
        self.aside = self._held.enter_context(building(root))
        self._writers: dict[str, ShardWriter] = {}
        self._caps: dict[str, dict[str, list[str]]] = {}
        self._statistics: dict[str, dict[str, ChannelStatistics]] = {}  # by cap and subject
        self._images: dict[str, tuple[Path, str, dict[str, Any]]] = {}

    def __enter__(self) -> StudyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.__exit__(*_)
        self._held.close()

    @property
    def counts(self) -> dict[str, int]:
        """Samples written so far, per part."""
        return {part: writer.n_samples for part, writer in self._writers.items()}

    def write(self, part: str, key: str, eeg: np.ndarray, ch_names: list[str], meta: dict[str, Any]) -> None:
        """Append one sample: ``eeg`` [R, C, T] in µV, ``meta`` without study and licence."""
        if part not in self._writers:
            self._writers[part] = ShardWriter(self.aside / part, kind=self.kind, samples_per_shard=self._per_shard)
            self._caps[part] = {}
        eeg, cap = eeg.astype(np.float16), meta["cap"]
        self._caps[part].setdefault(cap, ch_names)
        meta = {"study": self.study.title, "licence": self.study.licence, **meta}
        self._writers[part].write(key, {"eeg.npy": eeg, "meta.json": meta})
        if part == "train":
            of_cap = self._statistics.setdefault(cap, {})
            of_cap.setdefault(meta["subject"], ChannelStatistics(len(ch_names))).add(eeg)

    def add_image(self, sha256: str, path: Path, meta: dict[str, Any]) -> None:
        """Remember the file of an encoded picture; equal files are kept once.

        Raises:
            UserError: it is no PNG or JPEG, or cannot be decoded.
        """
        if sha256 in self._images:
            return
        full = {"sha256": sha256, "study": self.study.title, "licence": self.study.licence, **meta}
        self._images[sha256] = (path, picture_member(path), full)

    def finish(
        self,
        config: Config,
        recordings: Sequence[Recording],
        report: dict[str, Any],
        *,
        portion: dict[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        """Write all indexes with the training part's statistics, ``build.json`` last, and rename the whole folder.

        ``report`` goes into ``build.json``; ``facts`` are those of ``schema.Facts`` that all parts share. A portion of a study
        (``only_subjects``) needs no training part and has no statistics: what ``merging`` makes them of goes into
        ``build.json`` together with ``portion``.

        Raises:
            UserError: the training part is empty, or a cap occurs in other parts alone.
        """
        if portion is None and "train" not in self._writers:
            raise UserError(nothing_to_train_on(self.study, self.kind, report.get("dropped", {})))
        moments = {
            cap: {subject: found.moments() for subject, found in of_cap.items()}
            for cap, of_cap in self._statistics.items()
        }
        who = identity(config, recordings, kind=self.kind)
        for part, writer in self._writers.items():
            statistics = {} if portion is not None else scaling(moments, self._caps[part], part, self.study.location)
            source = {"fingerprint": fingerprint(who), "citation": self.study.citation}
            shared = {"study": self.study.title, "simulated": self.study.simulated, "source": source, **facts}
            writer.finish({**shared, "part": part, "caps": self._caps[part], "statistics": statistics})
        if self._images:
            with ShardWriter(self.aside / "images", kind="image", samples_per_shard=self._per_shard) as images:
                for sha256, (path, member, meta) in sorted(self._images.items()):
                    content = path.read_bytes()
                    if hashlib.sha256(content).hexdigest() != sha256:
                        raise UserError(f"{path}: this picture was changed during the build; build again")
                    images.write(sha256, {member: content, "meta.json": meta})
                images.finish({"study": self.study.title, "simulated": self.study.simulated, "part": "all"})
        more = {} if portion is None else {"portion": {**portion, "moments": moments}}
        built = {"fingerprint": fingerprint(who), **who, **report, "samples": self.counts, **more}
        write_json(self.aside / "build.json", built)
        put_in_place(self.aside, self.root)
