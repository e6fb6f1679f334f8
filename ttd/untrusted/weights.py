"""Weight files held against the SHA-256 that is known of them, before they are read.

Two places vouch for a weight file:

    SHA256SUMS                in the model's folder or the one above it, as ``sha256sum`` writes it; ``weights/tiny`` has one
    the Hugging Face cache    keeps a large file under its own hash as its name: ``blobs/<sha256>``

A folder with neither is taken as it is. A name with a commit, ``owner/name@<40 hex digits>``, stands for the cache's snapshot of
that commit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

SUMS = "SHA256SUMS"
COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""A name on the Hugging Face hub, without its commit. It has the looks of a relative folder; what is a folder is none."""


def sha256_of(path: Path) -> str:
    """The hash of a file's content. 5 GB take seconds: read once per process, as long as size and time of change stay."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_tampered(folder: Path, files: Iterable[Path] | None = None) -> str | None:
    """One sentence that names the weight files of ``folder`` which are not those that are vouched for, or None.

    ``files``: those that will be read; without it all ``*.safetensors`` below the folder.
    """
    places = {place / SUMS: _read(place / SUMS) for place in (folder, folder.parent)}
    listed, stated = next(((place, hashes) for place, hashes in places.items() if hashes), (None, {}))
    wrong = []
    for path in sorted(folder.rglob("*.safetensors") if files is None else files):
        expected, by = _name_in_cache(path), "the name that the Hugging Face cache gave it"
        if listed is not None:
            expected, by = stated.get(path.relative_to(listed.parent).as_posix(), "no hash"), str(listed)
        if expected is not None and sha256_of(path) != expected:
            wrong.append(f"{path} has sha256 {sha256_of(path)}, but {by} says {expected}")
    if not wrong:
        return None
    return f"{'; '.join(wrong)}. Restore the file (git checkout, or remove it and download it again)"


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over all weight files below ``folder``: for who has just made them."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    aside = folder / f".{SUMS}"
    aside.write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in files))
    aside.replace(folder / SUMS)


def _read(path: Path) -> dict[str, str]:
    """Hashes of weight files by name relative to the list; none where there is no list, or one of other files."""
    text = path.read_text() if path.is_file() else ""
    return {
        name: digest
        for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](?:\./)?(.+\.safetensors)$", text, re.MULTILINE)
    }


def _name_in_cache(path: Path) -> str | None:
    """The hash that the cache of Hugging Face states of a file, which is a link there; of small files it states another."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name) else None


def split_name(name: str) -> tuple[str, str | None]:
    """``owner/name@commit`` → repository and commit; a name without, and a folder, → itself and None."""
    repository, sign, commit = name.rpartition("@")
    return (repository, commit) if sign and REPOSITORY.fullmatch(repository) else (name, None)


def unpinned(repository: str, commit: str | None, found: Path) -> str | None:
    """One sentence where a repository was found in the cache without being named by its commit, else None."""
    if commit is not None and COMMIT.fullmatch(commit):
        return None
    said = "is a repository, whose files may change," if commit is None else f"at {commit!r} may change"
    return f"{repository!r} {said} so name its commit; the one in the cache is {found.name}"
