"""Keyed randomness: a random number belongs to (seed, purpose, position), never to the history of a global generator.

So a resumed run, another number of ranks or another number of workers draws the same numbers for the same sample.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, purpose: str, *position: int | str) -> int:
    """A 63-bit integer that depends on all arguments and on nothing else (not on PYTHONHASHSEED)."""
    text = "\x1f".join([str(int(seed)), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, purpose: str, *position: int | str) -> np.random.Generator:
    """A NumPy generator of its own for (seed, purpose, position)."""
    return np.random.default_rng(key(seed, purpose, *position))


def torch_rng(seed: int, purpose: str, *position: int | str) -> torch.Generator:
    """A CPU torch generator of its own for (seed, purpose, position)."""
    import torch

    return torch.Generator().manual_seed(key(seed, purpose, *position))


def randn(seed: int, purpose: str, positions: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers [B, *shape] on the CPU, row i keyed by ``positions[i]`` (global sample positions [B])."""
    import torch

    return torch.stack([torch.randn(shape, generator=torch_rng(seed, purpose, int(p))) for p in positions])


def rand(seed: int, purpose: str, positions: torch.Tensor, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Uniform numbers in [0, 1) [B, *shape] on the CPU, row i keyed by ``positions[i]``."""
    import torch

    return torch.stack([torch.rand(shape, generator=torch_rng(seed, purpose, int(p))) for p in positions])
