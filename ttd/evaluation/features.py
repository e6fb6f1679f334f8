"""What networks see in pictures: each file is looked at once, by one of the ranks, and what was seen is kept."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttd.config import FailedItemsError
from ttd.diffusion.targets import ClipTargets, model_folder
from ttd.engine.accelerator import TTDAccelerator
from ttd.engine.items import Item, ItemsConfig, run_items
from ttd.experiments.eval import EvalConfig
from ttd.metrics.features import content_hash
from ttd.metrics.manifest import read_pictures
from ttd.metrics.networks import FeatureExtractor, PerceptualDistance, load_extractor, load_lpips
from ttd.metrics.picture_scores import Described
from ttd.metrics.pixel import resize
from ttd.simulation.judge import Judge, load_judge

JUDGE_SIZE = 64
"""Side of the pictures the judge was trained on."""


class Features:
    """What CLIP and judge see in picture files, each looked at once: item by item, shared among ranks, kept under the hash
    of its content in the run folder."""

    def __init__(self, config: EvalConfig, accelerator: TTDAccelerator):
        self.config, self.accelerator = config, accelerator
        self.folder = config.output_dir / "features"
        self.sha256: dict[Path, str] = {}

    def make(self, paths: list[Path]) -> None:
        """Look at every file that has not been looked at. Every rank must call it.

        Raises:
            FailedItemsError: a file could not be described.
        """
        if not paths:
            return
        clip, judge = model_folder(str(self.config.pictures.clip)), self.config.pictures.judge
        networks = [clip] if judge is None else [clip, judge]
        identities = [content_hash(networks), *(look.identity for look in self.extractors.values())]
        self.sha256 = {path: sha256(path.read_bytes()).hexdigest() for path in dict.fromkeys(paths)}
        files = {sha: path for path, sha in self.sha256.items()}
        items = [Item(sha, files[sha]) for sha in sorted(files)]
        result = run_items(
            items, self._look, self.folder, inputs=identities, config=ItemsConfig(batch_size=self.config.batch_size),
            accelerator=self.accelerator, desc="features",
        )  # fmt: skip
        if result.failed:
            raise FailedItemsError(result.summary())

    def _look(self, items: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        paths = [item.payload for item in items]
        alike: dict[tuple[int, ...], list[int]] = {}  # drawn and shown pictures may differ in size
        for i, path in enumerate(paths):
            alike.setdefault(read_pictures([path]).shape, []).append(i)
        clip = self.clip([path.read_bytes() for path in paths]).astype(np.float32)
        for group in alike.values():
            seen = self._networks_see(read_pictures([paths[i] for i in group]))
            for place, i in enumerate(group):
                values = {name: value[place] for name, value in seen.items()}
                np.savez(folders[i] / "features.npz", clip=clip[i], **values)
        return [{"path": str(path)} for path in paths]

    def _networks_see(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """What judge and networks see in pictures [N, H, W, 3] of one size."""
        seen = {f"network.{name}": look(pictures) for name, look in self.extractors.items()}
        if self.judge is not None:
            small = torch.from_numpy(resize(pictures, JUDGE_SIZE)).permute(0, 3, 1, 2)
            with torch.inference_mode():
                seen["judge"] = self.judge.features(small).numpy()
                words = self.judge(small)
            seen |= {word: words[word].argmax(1).numpy() for word in ("kind", "colour")}
        return seen

    @cached_property
    def clip(self) -> ClipTargets:
        return ClipTargets(str(self.config.pictures.clip), device=self.accelerator.device)

    @cached_property
    def judge(self) -> Judge | None:
        return None if self.config.pictures.judge is None else load_judge(self.config.pictures.judge)

    @cached_property
    def extractors(self) -> dict[str, FeatureExtractor]:
        folder, names = self.config.pictures.network_weights, self.config.pictures.networks
        device, batch = self.accelerator.device, self.config.batch_size
        return {n: load_extractor(n, folder, device=device, batch_size=batch) for n in names if n != "lpips"}

    @cached_property
    def lpips(self) -> PerceptualDistance | None:
        if "lpips" not in self.config.pictures.networks:
            return None
        return load_lpips(self.config.pictures.network_weights, device=self.accelerator.device)

    def read(self, paths: list[Path]) -> Described:
        """What ``make`` saw in these files, in their order."""
        rows = []
        for path in paths:
            with np.load(self.folder / self.sha256[path] / "features.npz", allow_pickle=False) as file:
                rows.append({name: file[name] for name in file.files})
        seen = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        own = {name.removeprefix("network."): seen[name] for name in seen if name.startswith("network.")}
        judge, kind, colour = (seen.get(name) for name in ("judge", "kind", "colour"))
        return Described(seen["clip"], judge, kind, colour, networks=own)
