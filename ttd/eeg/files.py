"""Checks on foreign signal files before any library opens them, so that damage is refused and never read as signal.

An EDF whose line feeds were rewritten still has a valid header and can have the right size; read as latin-1 it gives
noise of 8 mV. EDF+ writes a time stamp into every record (Kemp & Olivan, 2003, section 2.2.4), and those are checked
here. A file of a DataLad clone that was never downloaded is a broken link or one line of text. The headers of
BrainVision name their companions; these must lie beside the header.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ttd.config import UserError

SIGNAL_SUFFIXES = (".vhdr", ".edf", ".bdf", ".set", ".fif")

_NOT_DOWNLOADED = "not downloaded (DataLad clone without content); fetch it with `datalad get` or from the archive"
_MAGIC = {".edf": b"0       ", ".bdf": b"\xffBIOSEMI"}
_TIME_STAMP = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15[\d.]*)?\x14")


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
    elif suffix in (".edf", ".bdf"):
        _check_edf(path)
    elif suffix not in SIGNAL_SUFFIXES:
        raise UserError(f"{path}: unknown kind of recording {suffix!r}; known: {', '.join(SIGNAL_SUFFIXES)}")


def brainvision_companions(header: Path) -> list[Path]:
    """The signal and marker file that a BrainVision header names, in the header's own folder.

    Raises:
        UserError: the header names no signal file, or a place outside its folder.
    """
    found = []
    for line in header.read_bytes().decode("latin-1").splitlines():
        key, _, value = line.partition("=")
        if key.strip().lower() not in ("datafile", "markerfile"):
            continue
        name = value.strip().replace("$b", header.stem)
        if not name or name in (".", "..") or re.search(r"[/\\:\0]", name):
            raise UserError(f"{header}: {key.strip()}={value.strip()} must be the name of a file beside the header")
        found.append((key.strip().lower(), header.parent / name))
    if "datafile" not in dict(found):
        raise UserError(f"{header}: the header names no DataFile; it is not a BrainVision header or it is damaged")
    return [path for _, path in found]


def check_inside(filenames: list[Path], folder: Path) -> None:
    """Refuse a recording whose signal file lies outside its folder (links inside the folder may point anywhere)."""
    home = os.path.abspath(folder)
    for name in filenames:
        if os.path.commonpath([home, os.path.abspath(name)]) != home:
            raise UserError(f"{folder}: a recording names the file {name}, which lies outside its folder; refused")


def content_hash(paths: list[Path]) -> str:
    """SHA-256 over the content of a recording's files, whatever they are called."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_edf(path: Path) -> None:
    """Compare header, size and the time stamp of every record of an EDF, EDF+ or BDF file."""
    magic = _MAGIC[path.suffix.lower()]
    with path.open("rb") as file:
        head = file.read(256)
        if not head.startswith(magic):
            raise UserError(f"{path}: not an {path.suffix[1:].upper()} recording (begins with {head[:12]!r})")
        try:
            n_signals = int(head[252:256])
            if not 0 < n_signals < 10_000:
                raise ValueError(n_signals)
            header_bytes, n_records = int(head[184:192]), int(head[236:244])
            duration_s = float(head[244:252])
            fields = file.read(256 * n_signals)
            counts = [int(fields[216 * n_signals + 8 * i :][:8]) for i in range(n_signals)]
        except ValueError as error:
            raise UserError(f"{path}: the header is damaged ({error}); download the file again") from error
        width = 3 if path.suffix.lower() == ".bdf" else 2
        record_bytes = width * sum(counts)
        size, expected = path.stat().st_size, header_bytes + n_records * record_bytes
        if size != expected:
            raise UserError(
                f"{path}: {size:,} bytes, but its header promises {expected:,}: the file is cut or was "
                "changed in transfer (line feeds rewritten, or text encoding); download it again in binary mode"
            )
        labels = [fields[16 * i : 16 * i + 16].strip() for i in range(n_signals)]
        stamps = [i for i, label in enumerate(labels) if label in (b"EDF Annotations", b"BDF Annotations")]
        if not stamps or head[192:197] not in (b"EDF+C", b"BDF+C"):
            return
        offset, first = width * sum(counts[: stamps[0]]), None
        for record in range(n_records):
            file.seek(header_bytes + record * record_bytes + offset)
            match = _TIME_STAMP.match(file.read(width * counts[stamps[0]]))
            onset = float(match[1]) if match else None
            first = onset if record == 0 else first
            if onset is None or first is None or abs(onset - first - record * duration_s) > 1e-3:
                raise UserError(
                    f"{path}: record {record} does not begin with its time stamp, so the samples are shifted: the file "
                    "was changed in transfer (line feeds rewritten); download it again in binary mode"
                )
