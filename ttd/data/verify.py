"""Look at every byte of a shard folder: archives, checksums, the sample contract, and what the parts share.

Tar readers such as webdataset skip the rest of a shard after one damaged header without a word, and hand out a
sample whose bytes changed; here each such damage has a name.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttd.config import UserError
from ttd.data import tar
from ttd.data.index import ShardIndex
from ttd.data.members import DamageError
from ttd.data.quarantine import add_to_quarantine, read_quarantine
from ttd.data.schema import EEG_KINDS, check_sample, check_shape
from ttd.data.splits import SplitManifest, Use, recording_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; with a key if leaving that sample out would put it right."""

    folder: Path
    message: str
    shard: str = ""
    key: str = ""
    offset: int | None = None

    def __str__(self) -> str:
        place = str(self.folder / self.shard) if self.shard else str(self.folder)
        sample = f": sample {self.key!r}" if self.key else ""
        at = f" at byte {self.offset}" if self.offset is not None else ""
        return f"{place}{sample}{at}: {self.message}"


@dataclass
class Report:
    findings: list[Finding] = field(default_factory=list)
    n_samples: int = 0
    n_shards: int = 0
    quarantined: int = 0
    """Damaged samples that were in quarantine before; they are no findings."""


def index_folders(root: Path) -> list[Path]:
    """Every folder with an index: ``root`` itself, its parts, images and targets."""
    return sorted(path.parent for path in root.rglob("index.json") if not path.parent.name.startswith("."))


def verify(root: Path) -> Report:
    """Check every index below ``root``, then whether its parts share anything."""
    report, images = Report(), None
    parts: dict[str, tuple[ShardIndex, dict]] = {}
    for folder in index_folders(root):
        try:
            index = ShardIndex.read(folder, open_test=True, quarantine=False)
        except UserError as error:
            report.findings.append(Finding(folder, str(error)))
            continue
        metas: dict[int, dict[str, Any]] = {}
        known = set(read_quarantine(folder))
        found = [*check_shards(index), *check_samples(index, metas)]
        explained = {finding.shard for finding in found if finding.key}  # a shard's hash differs because a sample does
        report.quarantined += len({finding.key for finding in found} & known)
        report.findings += [f for f in found if f.key not in known and (f.key or f.shard not in explained)]
        report.n_samples += index.n_samples
        report.n_shards += len(index.facts.shards)
        logger.info("%s: %d samples in %d shards", folder, index.n_samples, len(index.facts.shards))
        if index.facts.kind == "image":
            images = index
        elif index.facts.kind in EEG_KINDS:
            parts[index.facts.part] = (index, metas)
    report.findings += check_parts(root, parts, images)
    return report


def check_shards(index: ShardIndex) -> Iterator[Finding]:
    """Compare every tar, header by header, with the index."""
    for number, shard in enumerate(index.facts.shards):
        path = index.folder / shard.name
        if not path.is_file():
            yield Finding(index.folder, "the shard is missing; copy or build it again", shard.name)
            continue
        expected = _expected(index, number)
        explained = False
        with path.open("rb") as file:
            for offset, (key, header) in expected.items():
                if os.pread(file.fileno(), tar.BLOCK, offset - tar.BLOCK) != header:
                    explained = True
                    yield Finding(index.folder, "the tar header is damaged", shard.name, key, offset - tar.BLOCK)
            try:
                for entry in tar.walk(file.fileno()):
                    if entry.offset not in expected:
                        explained = True
                        message = f"member {entry.name} is unknown to the index"
                        yield Finding(index.folder, message, shard.name, offset=entry.offset)
            except tar.TarDamageError as error:
                if not explained:
                    explained = True
                    yield Finding(index.folder, str(error), shard.name, offset=error.offset)
            if not explained and path.stat().st_size != shard.size:
                yield Finding(index.folder, f"has {path.stat().st_size} bytes, {shard.size} were written", shard.name)
            elif not explained and hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                yield Finding(index.folder, "the sha256 differs from the index", shard.name)


def _expected(index: ShardIndex, number: int) -> dict[int, tuple[str, bytes]]:
    """{offset of a content: (key, its header)} of one shard."""
    out = {}
    for i in np.flatnonzero(index.shard == number):
        for name, offset, size in zip(index.members, index.offset[i], index.size[i], strict=True):
            if offset >= 0:
                out[int(offset)] = index.keys[i], tar.header(f"{index.keys[i]}.{name}", int(size))
    return out


def check_samples(index: ShardIndex, metas: dict[int, dict[str, Any]]) -> Iterator[Finding]:
    """Read every sample against its checksums and the contract; ``metas`` collects ``meta.json`` by row."""
    for key, n in Counter(index.keys).items():
        if n > 1:
            yield Finding(index.folder, f"the key occurs {n} times", key=key)
    for i, key in enumerate(index.keys):
        shard = index.facts.shards[index.shard[i]].name
        try:
            members: dict[str, Any] = {}
            for name in index.member_names(i):
                value = index.read_member(i, name)
                members[name] = value.copy() if isinstance(value, np.ndarray) else value
        except DamageError as error:
            yield Finding(index.folder, error.reason, shard, key)
            continue
        wrong = check_sample(index.facts.kind, key, members)
        if not wrong and index.facts.kind in EEG_KINDS:
            wrong = check_shape(index.facts, members["meta.json"]["cap"], members["eeg.npy"].shape)
            metas[i] = members["meta.json"]
        if not wrong and index.facts.kind == "image":
            content = next(value for name, value in members.items() if name.startswith("image."))
            if hashlib.sha256(content).hexdigest() != key:
                wrong = "the key is not the sha256 of the image"
        if wrong:
            yield Finding(index.folder, wrong, shard, key)


def check_parts(root: Path, parts: dict[str, tuple[ShardIndex, dict]], images: ShardIndex | None) -> Iterator[Finding]:
    """What the parts of one study share although they must not, and pictures that are not there."""
    known = set(images.keys) if images else None
    for index, metas in parts.values():
        shown = {meta.get("image_sha256") for meta in metas.values()} - {None}
        if known is not None and shown - known:
            yield Finding(index.folder, f"{len(shown - known)} shown images are not in {root / 'images'}")
    if len(parts) < 2:
        return
    try:
        manifest = SplitManifest.read(root)
        manifest.check(use for index, metas in parts.values() for use in uses(index, metas, manifest))
    except UserError as error:
        yield Finding(root, str(error))


def uses(index: ShardIndex, metas: dict[int, dict[str, Any]], manifest: SplitManifest) -> Iterator[Use]:
    """Every repetition of a part as the split's check takes it."""
    length = (index.n_times - 1) / index.sfreq
    for meta in metas.values():
        for session, run, onset in zip(meta["sessions"], meta["runs"], meta["onsets"], strict=True):
            name = recording_name(meta["subject"], session, run)
            start = onset + index.tmin
            yield Use(
                part=index.facts.part,
                recording=manifest.recordings.get(name, name),
                start=start,
                stop=start + length,
                concept=meta.get("concept"),
                image=meta.get("image_sha256"),
            )


def quarantine(findings: list[Finding]) -> list[Finding]:
    """Write the damaged samples into ``quarantine.json`` beside their index; returns the findings this cannot help."""
    by_folder: dict[Path, dict[str, str]] = {}
    for finding in findings:
        if finding.key:
            by_folder.setdefault(finding.folder, {}).setdefault(finding.key, finding.message)
    for folder, reasons in by_folder.items():
        add_to_quarantine(folder, reasons)
    return [finding for finding in findings if not finding.key]
