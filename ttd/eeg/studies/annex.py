"""What a DataLad or git clone knows of files whose content was not downloaded: size and MD5, from git-annex' own names.

A file under git-annex is a link to ``.git/annex/objects/…/MD5E-s<size>--<md5><suffix>``; without content the link is
broken, and in mirrors it may be a text file holding the same name. Where the links themselves were lost, a table
``annex-symlinks.tsv`` (path, symlink_target) at the root of the dataset stands for them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from ttd.config import UserError

_KEY = re.compile(r"MD5E?-s(?P<size>\d+)--(?P<md5>[0-9a-f]{32})")
TABLE = "annex-symlinks.tsv"


class Content(NamedTuple):
    """What a file under git-annex holds once it has been downloaded."""

    size: int
    """Bytes."""
    md5: str

    def __str__(self) -> str:
        return f"{_bytes(self.size)}, MD5 {self.md5}"


def parse(text: str) -> Content | None:
    """Size and MD5 in the name of an annexed object; None where there is none."""
    match = _KEY.search(text)
    return Content(int(match["size"]), match["md5"]) if match else None


def promised(path: Path) -> Content | None:
    """What a link or pointer file says about the content that should stand in its place.

    A link whose content is there says it as well: a download can be checked against it.
    """
    if path.is_symlink():
        return parse(os.readlink(path))
    if path.is_file() and path.stat().st_size < 1024:
        return parse(path.read_bytes().decode("latin-1"))
    return None


def is_absent(path: Path) -> bool:
    """Whether there is no content: no file, a broken link, or a pointer of git-annex."""
    return not path.is_file() or (not path.is_symlink() and promised(path) is not None)


def read_table(root: Path) -> dict[str, Content]:
    """{path below ``root``: its content} from ``annex-symlinks.tsv``; empty where there is no such table.

    Raises:
        UserError: a line is not path, tab and the target of a link.
    """
    table = root / TABLE
    if not table.is_file():
        return {}
    found = {}
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").splitlines()[1:], start=2):
        name, tab, target = line.partition("\t")
        content = parse(target)
        if not tab or content is None:
            raise UserError(f"{table}: line {number} is not a path, a tab and the target of an annex link")
        found[name] = content
    return found


def _bytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"
