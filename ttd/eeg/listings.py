"""What a study's server offers: the listings of S3 buckets, OSF, Figshare and PhysioNet as files with size and checksum.

S3: ListObjectsV2; the ETag of a file that was put in one piece is its MD5. OSF: API 2, folders page by page. Figshare: API 2.
PhysioNet: ``SHA256SUMS.txt`` names every file, without sizes. A listing is foreign input: its size is bounded, its XML may
declare no document type (so no entities), its links must stay with the server that was asked, its paths are confined by
``ttd.eeg.download``.
"""

from __future__ import annotations

import collections
import csv
import fnmatch
import json
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ttd.config import Config, UserError
from ttd.eeg.download import RemoteFile
from ttd.eeg.web import read_small

MAX_PAGES = 1000


class _Source(Config):
    """Which files of a listing are meant, and where they go."""

    into: str = ""
    """Folder below the study's root."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns of paths to leave out, as ``derivatives/*``."""
    subject: str = r"sub-0*(\d+)"
    """Regular expression with one group, searched in the path: the subject's number. Files without one are everybody's."""

    @field_validator("subject")
    @classmethod
    def _has_a_group(cls, subject: str) -> str:
        try:
            if re.compile(subject).groups != 1:
                raise ValueError("must hold one group, the subject's number")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return subject


class S3Source(_Source):
    """A folder of a public S3 bucket."""

    name: Literal["s3"] = "s3"
    bucket: str
    """Address of the bucket, as https://s3.amazonaws.com/openneuro.org."""
    prefix: str
    """Folder in the bucket, with a slash at its end."""
    checksums: Path | None = None
    """Table (path, size, md5) of files whose ETag is no MD5, or whose release is fixed."""
    etag_is_md5: bool = True
    """False where a bucket encrypts with keys of its own: then only ``checksums`` and sizes are compared."""


class OSFSource(_Source):
    """The storage of an OSF project."""

    name: Literal["osf"] = "osf"
    node: str
    """The project's five letters."""
    api: str = "https://api.osf.io/v2"


class FigshareSource(_Source):
    """The files of a Figshare article."""

    name: Literal["figshare"] = "figshare"
    article: int
    api: str = "https://api.figshare.com/v2"


class SumsSource(_Source):
    """A folder with a list of SHA-256 sums, as PhysioNet has it."""

    name: Literal["sha256sums"] = "sha256sums"
    url: str
    """Of the folder, with a slash at its end."""
    sums: str = "SHA256SUMS.txt"
    mean_bytes: int = Field(ge=1)
    """Typical size of a file: the list states none, and asking for each would take minutes."""


class ByHandSource(_Source):
    """Files that no program may fetch."""

    name: Literal["by_hand"] = "by_hand"
    how: str
    """What to do, and why it takes a person."""


Source = Annotated[S3Source | OSFSource | FigshareSource | SumsSource | ByHandSource, Field(discriminator="name")]


def list_files(source: S3Source | OSFSource | FigshareSource | SumsSource | ByHandSource) -> list[RemoteFile]:
    """Everything a source offers and its configuration does not leave out, sorted by path.

    Raises:
        UserError: the listing cannot be had, or has another form than the service documents.
    """
    read = {"s3": _s3, "osf": _osf, "figshare": _figshare, "sha256sums": _sums, "by_hand": lambda source: []}[
        source.name
    ]
    try:
        found = list(read(source))  # type: ignore[operator]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"the listing of {source.name} has another form than expected: {error!r}") from error
    kept = [f for f in found if not any(fnmatch.fnmatchcase(str(f.path), pattern) for pattern in source.exclude)]
    if any(not isinstance(f.path, str) or not isinstance(f.url, str) or (f.size or 0) < 0 for f in kept):
        raise UserError(f"the listing of {source.name} names something that is no file; refused")
    twice = [path for path, n in collections.Counter(file.path for file in kept).items() if n > 1]
    if twice:
        raise UserError(f"the listing names {twice[0]!r} twice; refused")
    prefix = f"{source.into}/" if source.into else ""
    moved = [RemoteFile(prefix + f.path, f.url, f.size, f.checksum, f.version or f.checksum) for f in kept]
    return sorted(moved, key=lambda file: file.path)


def subject_of(source: _Source, path: str) -> int | None:
    """Whose file this is, or None where it is everybody's."""
    match = re.search(source.subject, path)
    return int(match[1]) if match else None


def parse_xml(content: bytes) -> ElementTree.Element:
    """A document without document type: entities cannot be declared, so none can grow.

    Raises:
        ValueError: it declares one, is not UTF-8 or no XML.
    """
    text = content.decode("utf-8")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("the XML declares a document type; refused")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not valid XML: {error}") from error


def _s3(source: S3Source) -> Iterator[RemoteFile]:
    known = _read_checksums(source.checksums) if source.checksums else {}
    token = ""
    for _ in range(MAX_PAGES):
        query = {"list-type": "2", "prefix": source.prefix} | ({"continuation-token": token} if token else {})
        page = parse_xml(read_small(f"{source.bucket}/?{urllib.parse.urlencode(query)}"))
        for element in page.iter():
            element.tag = element.tag.rpartition("}")[2]
        for entry in page.iter("Contents"):
            key, etag = entry.findtext("Key") or "", (entry.findtext("ETag") or "").strip('"')
            path, size = key.removeprefix(source.prefix), int(entry.findtext("Size") or "")
            if not key.startswith(source.prefix):
                raise ValueError(f"{key!r} does not begin with {source.prefix!r}")
            if path.endswith("/") or not path:
                continue
            url = f"{source.bucket}/{urllib.parse.quote(key)}"
            md5 = etag if source.etag_is_md5 and re.fullmatch("[0-9a-f]{32}", etag) else ""
            if path in known:
                expected, md5 = known[path]
                if size != expected:
                    raise UserError(
                        f"{url}: {size:,} bytes, {expected:,} in {source.checksums}: the study was released anew; "
                        "set checksums=null for its source to take the new files on trust"
                    )
            yield RemoteFile(path, url, size, f"md5:{md5}" if md5 else "", f"etag:{etag}")
        token = page.findtext("NextContinuationToken") or ""
        if not token:
            return
    raise ValueError(f"more than {MAX_PAGES} pages")


def _read_checksums(path: Path) -> dict[str, tuple[int, str]]:
    if not path.is_file():
        raise UserError(f"checksums={path}: no such table; start from the project's folder")
    with path.open(newline="") as file:
        return {row["path"]: (int(row["size"]), row["md5"]) for row in csv.DictReader(file, delimiter="\t")}


def _osf(source: OSFSource) -> Iterator[RemoteFile]:
    waiting, seen = [f"{source.api}/nodes/{source.node}/files/osfstorage/?page%5Bsize%5D=100"], 0
    while waiting:
        url, seen = waiting.pop(), seen + 1
        if seen > MAX_PAGES:
            raise ValueError(f"more than {MAX_PAGES} pages")
        page = json.loads(read_small(_same_server(url, source.api)))
        if page.get("links", {}).get("next"):
            waiting.append(page["links"]["next"])
        for entry in page["data"]:
            facts = entry["attributes"]
            if facts["kind"] == "folder":
                waiting.append(entry["relationships"]["files"]["links"]["related"]["href"])
                continue
            hashes = (facts.get("extra") or {}).get("hashes") or {}
            path = str(facts.get("materialized_path") or f"/{facts['name']}").removeprefix("/")
            yield RemoteFile(path, entry["links"]["download"], int(facts["size"]), _checksum(hashes))


def _same_server(url: str, api: str) -> str:
    if urllib.parse.urlsplit(url)[:2] != urllib.parse.urlsplit(api)[:2]:
        raise ValueError(f"a page of the listing is said to lie at {url}, not with {api}")
    return url


def _figshare(source: FigshareSource) -> Iterator[RemoteFile]:
    for number in range(1, MAX_PAGES):
        url = f"{source.api}/articles/{source.article}/files?page={number}&page_size=100"
        entries = json.loads(read_small(url))
        for entry in entries:
            md5 = entry.get("computed_md5") or entry.get("supplied_md5")
            yield RemoteFile(entry["name"], entry["download_url"], int(entry["size"]), _checksum({"md5": md5}))
        if len(entries) < 100:
            return


def _checksum(hashes: dict[str, Any]) -> str:
    """The stronger of the sums that a listing states."""
    for algorithm, length in (("sha256", 64), ("md5", 32)):
        value = str(hashes.get(algorithm) or "").lower()
        if re.fullmatch(f"[0-9a-f]{{{length}}}", value):
            return f"{algorithm}:{value}"
    return ""


def _sums(source: SumsSource) -> Iterator[RemoteFile]:
    for number, line in enumerate(read_small(source.url + source.sums).decode("utf-8").splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64})\s+\*?(.+)", line)
        if not match:
            raise ValueError(f"line {number} of {source.sums} is no SHA-256 sum: {line[:80]!r}")
        yield RemoteFile(match[2], source.url + urllib.parse.quote(match[2]), None, f"sha256:{match[1]}")
