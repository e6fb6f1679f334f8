"""Pictures, captions and labels the tiny base models are trained on: rendered once, drawn by key."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttd.config import fingerprint
from ttd.seeding import key
from ttd.simulation.render import dominant, render
from ttd.simulation.scenes import COLOURS, KINDS, PLACES, SIZES, Scene, caption, draw_scene

VOCABULARY = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "place": PLACES}


@dataclass
class Pictures:
    """N pictures of one look: ``image`` uint8 [N, 64, 64, 3], ``mask`` int8 [N, 64, 64], the scenes and their labels."""

    image: np.ndarray
    mask: np.ndarray
    scenes: list[Scene]
    labels: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def captions(self) -> list[str]:
        return [caption(s) for s in self.scenes]

    def images(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures in [0, 1], float32 [B, 3, 64, 64]."""
        return torch.from_numpy(self.image[rows]).permute(0, 3, 1, 2).float() / 255


def scenes_of(part: str, n: int, single_fraction: float) -> list[Scene]:
    """The scenes of a part: every part draws from a seed space of its own, so no scene is in two parts."""
    n_single = round(n * single_fraction)
    return [draw_scene(key(0, f"base-{part}", i), 1 if i < n_single else 2) for i in range(n)]


def pictures(part: str, look: str, n: int, single_fraction: float, folder: Path | None = None) -> Pictures:
    """Render a part in a look (two processes), or read it from ``folder`` where it was rendered before."""
    scenes = scenes_of(part, n, single_fraction)
    name = f"{part}-{look}-{fingerprint([n, single_fraction, scenes[0].solids[0].radius])}.npz"
    if folder is not None and (folder / name).exists():
        with np.load(folder / name, allow_pickle=False) as stored:
            image, mask = stored["image"], stored["mask"]
    else:
        chunks = [scenes[i : i + 500] for i in range(0, n, 500)]
        with ProcessPoolExecutor(2) as pool:
            done = list(pool.map(_render_chunk, chunks, [look] * len(chunks)))
        image, mask = (np.concatenate(v) for v in zip(*done, strict=True))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / f".{name}", image=image, mask=mask)
            (folder / f".{name}").replace(folder / name)
    chosen = [s.solids[dominant(m)] for s, m in zip(scenes, mask, strict=True)]
    labels = {k: torch.tensor([words.index(getattr(c, k)) for c in chosen]) for k, words in VOCABULARY.items()}
    return Pictures(image, mask, scenes, labels)


def _render_chunk(scenes: list[Scene], look: str) -> tuple[np.ndarray, np.ndarray]:
    torch.set_num_threads(1)
    rendered = render(scenes, look)
    return rendered.image, rendered.mask
