"""Features of pictures, computed once: kept under a fingerprint of the pictures' and the network's content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def content_hash(paths: Sequence[Path]) -> str:
    """sha256 over the contents of files, in order; folders stand for all files in them."""
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def cached(folder: Path, key: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What ``compute`` returns, from ``<folder>/<key>.npz`` if that is there; written whole or not at all."""
    path = folder / f"{key[:32]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    arrays = compute()
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".aside.npz")
    np.savez(aside, **arrays)  # type: ignore[arg-type]
    aside.replace(path)
    return arrays
