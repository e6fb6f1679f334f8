"""Checks on EDF, EDF+ and BDF files that tell damage from signal before any reader opens them.

Kemp et al., 1992, Electroencephalogr. Clin. Neurophysiol. 82:391; Kemp & Olivan, 2003, Clin. Neurophysiol. 114:1755
(EDF+), whose section 2.2.4 puts a time stamp into every record. A file whose line feeds were rewritten keeps a valid
header and can have the right size: read as latin-1 it gives noise of 8 mV, but its stamps are out of place. Readers
also resample signals of unequal rates and rename repeated labels without a word; both are refused here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ttd.config import UserError
from ttd.eeg import channels, montage

_MAGIC = {".edf": b"0       ", ".bdf": b"\xffBIOSEMI"}
_TIME_STAMP = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15[\d.]*)?\x14")
_STAMPS = ("EDF Annotations", "BDF Annotations")
_AGAIN = "download it again in binary mode"


@dataclass(frozen=True)
class Header:
    """What the header promises; one entry per signal in the lists."""

    n_bytes: int
    kind: str
    """EDF+C, EDF+D (with gaps), BDF+C, BDF+D, or empty."""
    n_records: int
    record_s: float
    labels: list[str]
    ranges: list[tuple[float, float]]
    """Physical and digital maximum minus minimum."""
    counts: list[int]
    """Samples per record."""


def check(path: Path) -> None:
    """Compare header, size and the time stamp of every record, and refuse what a reader would silently repair.

    Raises:
        UserError: naming the file, the defect and the remedy.
    """
    with path.open("rb") as file:
        header = read_header(path, file)
        width = 3 if path.suffix.lower() == ".bdf" else 2
        size, expected = path.stat().st_size, header.n_bytes + header.n_records * width * sum(header.counts)
        if size != expected:
            raise UserError(
                f"{path}: {size:,} bytes, but its header promises {expected:,}: the file is cut or was "
                f"changed in transfer (line feeds rewritten, or text encoding); {_AGAIN}"
            )
        check_electrodes(path, header)
        if header.kind:
            _check_stamps(path, file, header, width)


def read_header(path: Path, file: BinaryIO) -> Header:
    """The fixed and the signal fields.

    Raises:
        UserError: it is of another format, or a field is not what it must be.
    """
    head = file.read(256)
    if head.startswith(b"SR_RESEARCH"):
        raise UserError(f"{path}: this is an EyeLink eye tracker's file, not EEG; leave it out of the recordings")
    if not head.startswith(_MAGIC[path.suffix.lower()]):
        raise UserError(f"{path}: not an {path.suffix[1:].upper()} recording (begins with {head[:12]!r})")
    try:
        n_signals = int(head[252:256])
        if not 0 < n_signals < 10_000:
            raise ValueError(f"{n_signals} signals")
        n_bytes, n_records, record_s = int(head[184:192]), int(head[236:244]), float(head[244:252])
        if n_bytes != 256 * (n_signals + 1):
            raise ValueError(f"{n_bytes} header bytes for {n_signals} signals")
        fields = file.read(256 * n_signals)

        def column(start: int, width: int) -> list[str]:
            whole = fields[start * n_signals : (start + width) * n_signals]
            return [whole[i * width : (i + 1) * width].decode("latin-1").strip() for i in range(n_signals)]

        labels, counts = column(0, 16), [int(text) for text in column(216, 8)]
        if any(ord(letter) < 32 for label in labels for letter in label):
            raise ValueError("labels are not text")
        low, high, least, most = ([float(text) for text in column(at, 8)] for at in (104, 112, 120, 128))
    except ValueError as error:
        raise UserError(f"{path}: the header is damaged ({error}); download the file again") from error
    if n_records == -1:
        raise UserError(f"{path}: the header counts -1 records: the recording was not closed; export it again")
    if n_records < 1 or not 0 <= record_s < 1e6 or min(counts) < 0 or max(counts) < 1:
        raise UserError(f"{path}: the header is damaged ({n_records} records of {record_s} s); download the file again")
    ranges = [(b - a, d - c) for a, b, c, d in zip(low, high, least, most, strict=True)]
    kind = head[192:197].decode("latin-1")
    return Header(n_bytes, kind if kind[1:4] == "DF+" else "", n_records, record_s, labels, ranges, counts)


def check_electrodes(path: Path, header: Header) -> None:
    """Refuse electrodes that occur twice, have no scale, or are sampled more slowly than another signal.

    Raises:
        UserError: naming them; a reader would rename, guess or resample.
    """
    electrodes = [i for i, label in enumerate(header.labels) if montage.is_electrode(montage.normalise_name(label))]
    channels.check_unique(path, header.labels)
    signals = [i for i, label in enumerate(header.labels) if label not in _STAMPS]
    if signals and header.record_s == 0:
        raise UserError(f"{path}: its records last 0 s, so that its rate is unknown; export it again")
    for i in electrodes:
        if 0 in header.ranges[i] or header.ranges[i][1] < 0:
            raise UserError(f"{path}: channel {header.labels[i]!r} has no scale (minimum and maximum); export it again")
    rates = {i: header.counts[i] / header.record_s for i in signals}
    fastest = max(signals, key=lambda i: rates[i], default=None)
    slow = [i for i in electrodes or signals if fastest is not None and rates[i] < rates[fastest]]
    if slow and fastest is not None:
        raise UserError(
            f"{path}: channel {header.labels[slow[0]]!r} is sampled at {rates[slow[0]]:g} Hz, "
            f"{header.labels[fastest]!r} at {rates[fastest]:g} Hz, and would be resampled on reading; export the EEG "
            "at one rate, without faster signals"
        )


def _check_stamps(path: Path, file: BinaryIO, header: Header, width: int) -> None:
    """Compare where each record begins with its time stamp."""
    number = next((i for i, label in enumerate(header.labels) if label in _STAMPS), None)
    if number is None:
        raise UserError(
            f"{path}: the header is damaged ({header.kind} without a signal {_STAMPS[0]}); download it again"
        )
    offset, record_bytes = width * sum(header.counts[:number]), width * sum(header.counts)
    first = 0.0
    for record in range(header.n_records):
        file.seek(header.n_bytes + record * record_bytes + offset)
        match = _TIME_STAMP.match(file.read(width * header.counts[number]))
        if match is None:
            raise UserError(
                f"{path}: record {record} does not begin with its time stamp, so the samples are shifted: the file "
                f"was changed in transfer (line feeds rewritten); {_AGAIN}"
            )
        onset = float(match[1])
        first = onset if record == 0 else first
        due = first + record * header.record_s
        if abs(onset - due) > 1e-3:
            raise UserError(
                f"{path}: record {record} starts at {onset:g} s by its time stamp and at {due:g} s by its place: "
                "the recording has gaps, or records are missing; export its continuous stretches as files of their own"
            )
