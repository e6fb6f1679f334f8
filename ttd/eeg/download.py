"""Bring remote files to disk: resumed where a transfer stopped, checked before they get their name.

A file grows as ``<name>.part`` beside its place. ``<name>.part.json`` holds what the server called that version (a strong
ETag, or Last-Modified); a resumed request carries it as If-Range (RFC 9110, section 13.1.5), so that a file that changed
in between starts anew. Size and checksum are compared before the part is renamed. ``.fetch.jsonl`` in the root states
what was fetched, so that the same command need not read it again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path, PurePosixPath

from ttd.config import UserError, write_json
from ttd.eeg.web import NoRestError, TransientError, open_url, with_retries

BLOCK = 1 << 20
RECORD = ".fetch.jsonl"


@dataclass(frozen=True)
class RemoteFile:
    """One file as a listing tells of it."""

    path: str
    """Below the root, with forward slashes, as the listing wrote it: not to be trusted."""
    url: str
    size: int | None = None
    checksum: str = ""
    """``md5:…`` or ``sha256:…``; empty where the listing knows none."""
    version: str = ""
    """Whatever changes when the content does: the checksum, or an ETag that is none."""


def confine(root: Path, listed: str) -> Path:
    """The place of a listed path below ``root``.

    Raises:
        UserError: it would lie elsewhere, or bears a name that is no plain file name.
    """
    place = PurePosixPath(listed)
    plain = all(re.fullmatch(r"[^\\:\x00-\x1f\x7f]+", part) and part != ".." for part in place.parts)
    own = any(part == RECORD or part.endswith((".part", ".part.json")) for part in place.parts)
    if not place.parts or place.is_absolute() or not plain or own:
        raise UserError(f"the listing names {listed!r}, which is no plain path below the study's folder; refused")
    path, home = root / place, os.path.realpath(root)
    if os.path.commonpath([home, os.path.realpath(path.parent)]) != home:
        raise UserError(f"{path}: a link leads out of {root}; refused")
    return path


def differs(path: Path, file: RemoteFile) -> str:
    """How a file on disk differs from what the listing says, or an empty string."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes where the listing says {file.size:,}"
    if file.checksum:
        algorithm, _, expected = file.checksum.partition(":")
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
        if found != expected.lower():
            return f"its {algorithm.upper()} is {found} where the listing says {expected}"
    return ""


def fetch(file: RemoteFile, path: Path, tick: Callable[[int], object]) -> None:
    """Download one file to ``path``; it gets its name when size and checksum are right.

    Args:
        tick: is told of every byte that came, less those that had to be thrown away.

    Raises:
        UserError: it cannot be had, or is not what the listing says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, notes = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    if part.exists():
        tick(part.stat().st_size)

    def work() -> None:
        old = part.stat().st_size if part.exists() else 0
        if not (old and old == file.size):
            old = _transfer(file, part, notes, tick)
        wrong = differs(part, file)
        if wrong:
            tick(-part.stat().st_size)
            part.unlink()
            notes.unlink(missing_ok=True)
            if old:  # some of it came with an earlier request: both may have been right
                raise TransientError(f"what came is wrong ({wrong})")
            raise UserError(
                f"{file.url}: what came is wrong ({wrong}) and was thrown away; try again, or tell its authors"
            )

    with_retries(work, file.url)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(path)
    notes.unlink(missing_ok=True)


def _transfer(file: RemoteFile, part: Path, notes: Path, tick: Callable[[int], object]) -> int:
    """Request what is missing of ``part``; returns how many bytes of it an earlier request had brought."""
    old, headers = part.stat().st_size if part.exists() else 0, {}
    validator = json.loads(notes.read_text())["validator"] if old and notes.exists() else ""
    if old and (validator or file.checksum):
        headers = {"Range": f"bytes={old}-"} | ({"If-Range": validator} if validator else {})
    try:
        with open_url(file.url, headers) as response:
            start = _start(response)
            if start not in (0, old):
                raise UserError(f"{file.url}: asked from byte {old} on, the server sent from byte {start}")
            length = response.headers.get("Content-Length")
            total = start + int(length) if length is not None else file.size
            if total is None:
                raise UserError(f"{file.url}: neither listing nor server says how large it is; refused")
            if file.size is not None and total != file.size:
                raise UserError(
                    f"{file.url}: the server offers {total:,} bytes, the listing says {file.size:,}: "
                    "the file has changed on the server"
                )
            if start == 0:
                tick(-old)
                old = 0
                part.unlink(missing_ok=True)
                write_json(notes, {"validator": _validator(response.headers)})
            with part.open("ab") as out:
                got = start
                while got < total and (block := response.read(min(BLOCK, total - got))):
                    try:
                        out.write(block)
                        out.flush()
                    except OSError as error:
                        raise UserError(
                            f"{part}: cannot be written: {error.strerror}; the same command goes on"
                        ) from error
                    got += len(block)
                    tick(len(block))
            if got < total:
                raise TransientError(f"the connection broke after {got:,} of {total:,} bytes")
    except NoRestError as error:
        tick(-old)
        part.unlink(missing_ok=True)
        raise TransientError("the server no longer has the rest of the file") from error
    return old


def _start(response: http.client.HTTPResponse) -> int:
    """First byte of what a response brings: 0 unless it is the rest of a file."""
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _validator(headers: Message) -> str:
    """What If-Range may carry: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


@dataclass
class Fetched:
    """One line of the record: what lay at ``path`` when it was checked."""

    path: str
    size: int
    mtime_ns: int
    version: str

    @classmethod
    def of(cls, root: Path, file: RemoteFile) -> Fetched:
        stat = confine(root, file.path).stat()
        return cls(file.path, stat.st_size, stat.st_mtime_ns, file.version or file.checksum)


def read_record(root: Path) -> dict[str, Fetched]:
    """What was fetched into ``root``; a line that was cut by a crash is as if it were not there."""
    out = {}
    lines = (root / RECORD).read_text().splitlines() if (root / RECORD).is_file() else []
    for line in lines:
        try:
            fetched = Fetched(**json.loads(line))
        except (ValueError, TypeError):
            continue
        out[fetched.path] = fetched
    return out


def add_to_record(root: Path, fetched: Fetched) -> None:
    """Append a line, whole before the next file begins."""
    with (root / RECORD).open("a") as file:
        file.write(json.dumps(asdict(fetched)) + "\n")
