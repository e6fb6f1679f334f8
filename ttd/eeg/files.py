"""Checks on foreign signal files before any library opens them, so that damage is refused and never read as signal.

A file of a DataLad clone that was never downloaded is a broken link or one line of text. The headers of BrainVision
name their companions; these must lie beside the header, and hold what it promises: readers take a cut file for a
shorter recording. EDF has a module of its own.
"""

from __future__ import annotations

import collections
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ttd.config import UserError
from ttd.eeg import channels, edf, eeglab, fif

SIGNAL_SUFFIXES = (".vhdr", ".edf", ".bdf", ".set", ".fif")

MAX_HEADER_BYTES = 4_000_000
"""BrainVision headers are text of some 10 kB."""

_NOT_DOWNLOADED = "not downloaded (DataLad clone without content); fetch it with `datalad get` or from the archive"
_WIDTHS = {"INT_16": 2, "UINT_16": 2, "INT_32": 4, "IEEE_FLOAT_32": 4, "IEEE_FLOAT_64": 8}
_MARKER = re.compile(rb"^Mk\d+=[^,\r\n]*,[^,\r\n]*,(\d+)", re.MULTILINE)


def check_present(path: Path) -> None:
    """Refuse a file that is absent, empty, not downloaded, or a web page.

    Raises:
        UserError: naming the file and the remedy.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: {_NOT_DOWNLOADED}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes): the signals are missing; download it again")
    with path.open("rb") as file:
        start = file.read(512)
    if b".git/annex/objects" in start or start.startswith(b"/annex/objects"):
        raise UserError(f"{path}: {_NOT_DOWNLOADED}")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path}: this is a web page, not a recording; download the file itself (the raw link)")


def check_npy(path: Path) -> None:
    """Refuse what cannot be an array or a dictionary of arrays: neither ``.npy`` nor a pickle of that name.

    Raises:
        UserError: naming the file and how it begins.
    """
    check_present(path)
    with path.open("rb") as file:
        start = file.read(24)
    if not start.startswith((b"\x93NUMPY", b"\x80")):
        raise UserError(
            f"{path}: neither a NumPy file nor a pickle (it begins with {start.decode('latin-1')!r}); download it again"
        )


def check_signal_file(path: Path) -> None:
    """Refuse a recording that is absent, damaged, or points outside its folder; the format is told by the suffix.

    Raises:
        UserError: naming the file, the defect and the remedy.
    """
    check_present(path)
    suffix = path.suffix.lower()
    if suffix == ".vhdr":
        for companion in brainvision_companions(path):
            check_present(companion)
        _check_brainvision(path)
    elif suffix in (".edf", ".bdf"):
        edf.check(path)
    elif suffix == ".fif":
        fif.check(path)
    elif suffix == ".set":
        eeglab.check(path)
    elif suffix not in SIGNAL_SUFFIXES:
        raise UserError(f"{path}: unknown kind of recording {suffix!r}; known: {', '.join(SIGNAL_SUFFIXES)}")


def brainvision_companions(header: Path) -> list[Path]:
    """The signal and marker file that a BrainVision header names, in the header's own folder.

    Raises:
        UserError: the header names no signal file, or a place outside its folder.
    """
    found = []
    for key, value in _brainvision_fields(header):
        if key.lower() not in ("datafile", "markerfile"):
            continue
        name = value.replace("$b", header.stem)
        if not name or name in (".", "..") or re.search(r"[/\\:\0]", name):
            raise UserError(f"{header}: {key}={value} must be the name of a file beside the header")
        found.append((key.lower(), header.parent / name))
    if "datafile" not in dict(found):
        raise UserError(f"{header}: the header names no DataFile; it is not a BrainVision header or it is damaged")
    return [path for _, path in found]


def check_inside(filenames: list[Path], folder: Path) -> None:
    """Refuse a recording whose signal file lies outside its folder (links inside the folder may point anywhere)."""
    home = os.path.abspath(folder)
    for name in filenames:
        if os.path.commonpath([home, os.path.abspath(name)]) != home:
            raise UserError(f"{folder}: a recording names the file {name}, which lies outside its folder; refused")


def content_hash(paths: Sequence[Path]) -> str:
    """SHA-256 over the content of a recording's files, whatever they are called."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def duplicates(signal_files: Iterable[list[Path]]) -> list[str]:
    """One sentence for every two recordings with equal content under different names: they would leak between parts.

    Recordings that share one and the same file (several subjects in one container) are no duplicates. Only files of
    equal size are read.
    """
    by_size: dict[tuple[int, ...], list[tuple[Path, ...]]] = collections.defaultdict(list)
    for paths in dict.fromkeys(tuple(paths) for paths in signal_files):
        if all(path.exists() for path in paths):
            by_size[tuple(path.stat().st_size for path in paths)].append(paths)
    problems = []
    for same_size in by_size.values():
        seen: dict[tuple[bytes, str], Path] = {}
        beginnings = collections.Counter(_beginning(paths) for paths in same_size)
        for paths in same_size:
            beginning = _beginning(paths)
            if beginnings[beginning] < 2:
                continue
            first = seen.setdefault((beginning, content_hash(paths)), paths[0])
            if first != paths[0]:
                problems.append(f"{first} and {paths[0]}: the same recording under two names; remove one of them")
    return problems


def _beginning(paths: Sequence[Path]) -> bytes:
    """A hash of the first 64 kB of each file."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(file.read(65536))
    return digest.digest()


def _brainvision_fields(header: Path) -> list[tuple[str, str]]:
    """The lines ``key=value`` of a header."""
    if header.stat().st_size > MAX_HEADER_BYTES:
        raise UserError(f"{header}: {header.stat().st_size:,} bytes are too many for a BrainVision header; refused")
    lines = header.read_bytes().decode("latin-1").splitlines()
    pairs = (line.partition("=") for line in lines if not line.startswith(";"))
    return [(key.strip(), value.strip()) for key, sign, value in pairs if sign]


def _channel_lines(header: Path) -> list[str]:
    """What "Ch1=" and so on say in [Channel Infos]; the same keys stand in [Coordinates] again."""
    section = re.split(r"(?im)^\[channel infos\]", header.read_bytes().decode("latin-1"))[-1]
    section = re.split(r"(?m)^\[", section)[0]
    return re.findall(r"(?m)^\s*Ch\d+\s*=\s*(.*?)\s*$", section)


def _check_brainvision(header: Path) -> None:
    """Compare the signal file's size, and the last marker, with what the header says of channels and samples."""
    pairs = _brainvision_fields(header)
    fields = {key.lower(): value for key, value in pairs}
    labels = [value.partition(",")[0].replace(r"\1", ",") for value in _channel_lines(header)]
    n_chans, width = fields.get("numberofchannels", ""), _WIDTHS.get(fields.get("binaryformat", "").upper())
    if not n_chans.isdecimal() or not 0 < int(n_chans) < 10_000 or len(labels) != int(n_chans):
        raise UserError(f"{header}: NumberOfChannels={n_chans} and {len(labels)} lines Ch…: the header is damaged")
    channels.check_unique(header, labels)
    if fields.get("dataformat", "").upper() != "BINARY":
        return  # text: lines say themselves what they are
    if width is None:
        raise UserError(f"{header}: BinaryFormat={fields.get('binaryformat', '')}: known are {', '.join(_WIDTHS)}")
    signal, *markers = brainvision_companions(header)
    frame, size = int(n_chans) * width, signal.stat().st_size
    points = fields.get("datapoints", "")
    if size % frame or (points.isdecimal() and int(points) not in (0, size // frame)):
        raise UserError(
            f"{signal}: {size:,} bytes are not {points or 'a whole number of'} samples of {n_chans} channels: the file "
            "is cut or is not the header's; download it again"
        )
    for path in markers:
        last = max((int(match) for match in _MARKER.findall(path.read_bytes())), default=0)
        if last > size // frame + 1:
            raise UserError(
                f"{signal}: holds {size // frame:,} samples, but {path.name} has a marker at sample {last:,}: the file "
                "is cut or is not the header's; download it again"
            )
