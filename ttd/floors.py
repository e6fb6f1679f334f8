"""The oldest versions that are safe with files of others, and why; read from what is installed, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class Floor:
    package: str
    oldest: str
    reason: str
    """What an older one allows, with the CVE."""


FLOORS = (
    Floor(
        "torch",
        "2.10",
        "a file of weights runs code or corrupts memory although weights_only=True (CVE-2025-32434, CVE-2026-24747)",
    ),
    Floor(
        "transformers",
        "5.10",
        "a model's configuration runs code without trust_remote_code, and saving leaves its folder (CVE-2026-4372, "
        "CVE-2026-9856)",
    ),
    Floor("diffusers", "0.38", "custom_pipeline runs code without trust_remote_code (CVE-2026-44513)"),
)
PYTHON = {(3, 11): 14, (3, 12): 12, (3, 13): 6}
"""First patch levels without ``PYTHON_REASON``."""
PYTHON_REASON = "tarfile hangs on a crafted header (CVE-2025-8194)"
"""This project walks tars by a reader of its own; webdataset and other tools that read the same shards do not."""


def too_old() -> list[tuple[str, str]]:
    """Installed packages below their floor: what is wrong, and the remedy. What is not installed is passed over."""
    found = []
    for floor in FLOORS:
        remedy = f"pip install --upgrade '{floor.package}>={floor.oldest}'"
        try:
            installed = version(floor.package)
            old = Version(installed) < Version(floor.oldest)
        except PackageNotFoundError:
            continue
        except (InvalidVersion, TypeError):  # TypeError: metadata without a version
            found.append((f"{floor.package}: its version cannot be read", remedy))
            continue
        if old:
            found.append((f"{floor.package} {installed} is older than {floor.oldest}: {floor.reason}", remedy))
    return found


def newer_python(running: Sequence[int] = sys.version_info[:3]) -> str:
    """The version from which this Python line is safe, ``3.11.14``; empty where ``running`` (major, minor, patch) is."""
    major, minor, patch = running[:3]
    oldest = PYTHON.get((major, minor), 0)
    return "" if patch >= oldest else f"{major}.{minor}.{oldest}"
