"""The judge: a small CNN that names kind, colour, size and place in a picture, independently of the CLIP.

The CLIP conditions the generator, so its own opinion of a generated picture is circular; the judge shares no weight and no
target with it. With two solids it names the one with more visible pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttd.config import UserError
from ttd.seeding import numpy_rng, torch_rng
from ttd.simulation.base_data import VOCABULARY, Pictures
from ttd.untrusted.weights import find_tampered

WIDTHS = (24, 48, 96, 128)


class Judge(nn.Module):
    """Four strided stages, mean and maximum pooling, one linear head per property. 0.17 M parameters."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.widths, layers, previous = widths, [], 3
        for width in widths:
            layers += [nn.Conv2d(previous, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            previous = width
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({k: nn.Linear(2 * previous, len(w)) for k, w in VOCABULARY.items()})

    def features(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, 64, 64] in [0, 1] → features [B, 256]."""
        x = self.trunk(images * 2 - 1)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of kind [B, 6], colour [B, 8], size [B, 2] and place [B, 3]."""
        x = self.features(images)
        return {k: head(x) for k, head in self.heads.items()}


class JudgeLoss:
    """``loss_at(step)``: cross-entropy on clean, noisy and decoded pictures of both looks."""

    def __init__(
        self,
        judge: Judge,
        parts: list[Pictures],
        *,
        decode: Callable[[Tensor], Tensor],
        batch_size: int,
        seed: int,
    ) -> None:
        self.judge, self.parts, self.decode = judge, parts, decode
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng, pictures = numpy_rng(self.seed, "judge", step), self.parts[step % len(self.parts)]
        rows = rng.choice(len(pictures), size=self.batch_size, replace=False)
        images = pictures.images(rows)
        if step % 4 == 3:
            images = self.decode(images)  # what a generator can emit at best
        noise = torch.randn(images.shape, generator=torch_rng(self.seed, "judge-noise", step))
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(rows), 1, 1, 1))).float()
        images = (images * gain + float(rng.uniform(0, 0.06)) * noise).clamp(0, 1)
        logits = self.judge(images)
        losses = [F.cross_entropy(logits[k], pictures.labels[k][rows]) for k in VOCABULARY]
        right = (logits["kind"].argmax(1) == pictures.labels["kind"][rows]).float().mean()
        return torch.stack(losses).sum(), {"kind": right.item()}


@torch.no_grad()
def name_pictures(judge: Judge, images: Tensor) -> dict[str, np.ndarray]:
    """The judge's words for pictures [N, 3, 64, 64] in [0, 1]: per property an array of N words."""
    logits = [judge(b) for b in images.split(200)]
    return {k: np.array(words)[torch.cat([x[k] for x in logits]).argmax(1).numpy()] for k, words in VOCABULARY.items()}


def save_judge(folder: Path, judge: Judge) -> None:
    """Weights in half precision and the widths they belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, str(folder / "model.safetensors"))
    config = {"widths": judge.widths, "vocabulary": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_judge(folder: Path) -> Judge:
    """The judge in float32, frozen.

    Raises:
        UserError: the folder holds no judge, or another one than its list of hashes says.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no judge here (config.json is missing); train one with python ttd/train_base.py")
    tampered = find_tampered(folder)
    if tampered:
        raise UserError(tampered)
    judge = Judge(tuple(json.loads((folder / "config.json").read_text())["widths"]))
    judge.load_state_dict({k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()})
    return judge.eval().requires_grad_(False)
