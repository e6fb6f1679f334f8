"""A pixel-aligned signed-distance network: one picture and a point of the scene give distance and colour there.

After PIFu (Saito et al., 2019, arXiv:1905.05172): the point is projected into the picture with the known camera and
reads the feature map there; beside it stand a code of the whole picture and the point's own coordinates (Fourier
features, Tancik et al., 2020, arXiv:2006.10739). The distance is truncated, as in DeepSDF
(Park et al., 2019, arXiv:1901.05103). The picture is read by convolutions of its own, or by the vision tower of a Qwen3-VL,
which a describer can share.

Letters: B pictures, S x S pixels, P points per picture, F width of the feature map, G width of the picture's code, N = n x n
visual tokens of a tower, E width of what it says of each.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ttd.config import Config, UserError
from ttd.geometry.camera import Camera


class SDFNetworkConfig(Config):
    camera: Camera
    """The camera of the training pictures; pictures of another camera are outside the domain."""
    image_size: int = 64
    """Side S of the picture in pixels; others are resized."""
    channels: tuple[int, ...] = (32, 64, 128, 160)
    """Width of the encoder at S/2, S/4, S/8 and S/16."""
    tower: dict[str, Any] | None = None
    """In place of that encoder a vision tower: the fields of a ``Qwen3VLVisionConfig`` with ``spatial_merge_size`` 1."""
    feature_dim: int = 64
    """Width F of the feature map that points read, at S/2."""
    code_dim: int = 128
    """Width G of the code of the whole picture."""
    hidden_dim: int = 192
    """Width of the network that points pass through."""
    n_blocks: int = 3
    """Its residual blocks."""
    n_frequencies: int = 5
    """Octaves of the Fourier features, from half a wave per scene up."""
    truncation: float = 0.15
    """Distances beyond it (scene units) are cut to it, in training and so in the answer."""


@dataclass
class Features:
    """What a picture says: ``local`` [B, F, S/2, S/2] and ``code`` [B, G]."""

    local: Tensor
    code: Tensor


class ConvBlock(nn.Module):
    """Halve the picture, then refine it with one residual pair of convolutions."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.down = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, n_out) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(n_out, n_out, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, h, w] → [B, n_out, h/2, w/2]."""
        x = F.relu(self.norms[0](self.down(x)))
        y = F.relu(self.norms[1](self.convs[0](x)))
        return F.relu(x + self.norms[2](self.convs[1](y)))


class SDFNetwork(nn.Module):
    """``encode`` a picture once, then ``query`` it at as many points as needed."""

    def __init__(self, config: SDFNetworkConfig):
        super().__init__()
        self.config = config
        if config.tower is None:
            widths = (3, *config.channels)
            self.stages = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(widths))
            self.lateral = nn.ModuleList(nn.Conv2d(c, config.feature_dim, 1) for c in config.channels)
            width = config.channels[-1]
        else:
            from transformers import Qwen3VLVisionConfig, Qwen3VLVisionModel  # seconds, and rarely wanted

            self.tower = Qwen3VLVisionModel(Qwen3VLVisionConfig(**config.tower))
            self.patch = config.tower["patch_size"]
            width = config.tower["out_hidden_size"] * (1 + len(config.tower["deepstack_visual_indexes"]))
            self.spread = nn.Linear(
                width, config.feature_dim * (self.patch // 2) ** 2
            )  # a token covers that many cells
        self.fuse = nn.Conv2d(config.feature_dim, config.feature_dim, 3, padding=1)
        self.code = nn.Linear(2 * width, config.code_dim)
        point_dim = config.feature_dim + 3 + 6 * config.n_frequencies
        self.enter = nn.Linear(point_dim, config.hidden_dim)
        self.enter_code = nn.Linear(config.code_dim, config.hidden_dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.hidden_dim, config.hidden_dim),
                nn.ReLU(),
                nn.Linear(config.hidden_dim, config.hidden_dim),
            )
            for _ in range(config.n_blocks)
        )
        self.leave = nn.Linear(config.hidden_dim, 4)

    def encode(self, images: Tensor) -> Features:
        """Pictures [B, 3, S, S] in [0, 1] → features."""
        if self.config.tower is not None:
            return self.read(self.tokens(images))
        maps = self._maps(images)
        x = maps[-1]
        code = F.relu(self.code(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)))
        local = self.lateral[-1](maps[-1])
        for conv, fine in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            local = conv(fine) + F.interpolate(local, scale_factor=2, mode="nearest")
        return Features(self.fuse(F.relu(local)), code)

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images * 2 - 1
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def tokens(self, images: Tensor) -> Tensor:
        """What the tower says of pictures [B, 3, S, S]: tokens [B, N, E], its last ones beside its deepstack features."""
        side = images.shape[-1] // self.patch
        patches = F.unfold(images * 2 - 1, self.patch, stride=self.patch).transpose(1, 2).flatten(0, 1)
        grid = torch.tensor([[1, side, side]], device=images.device).expand(len(images), -1)
        seen = self.tower(patches, grid_thw=grid, return_dict=True)
        return torch.cat([seen.pooler_output, *seen.deepstack_features], dim=-1).unflatten(0, (len(images), -1))

    def read(self, tokens: Tensor) -> Features:
        """Tokens [B, N, E] of a tower, whoever ran it, → features."""
        side = math.isqrt(tokens.shape[1])
        local = F.pixel_shuffle(self.spread(tokens).transpose(1, 2).unflatten(2, (side, side)), self.patch // 2)
        code = F.relu(self.code(torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)))
        return Features(self.fuse(F.relu(local)), code)

    def summary(self, images: Tensor) -> Tensor:
        """Means [B, C] of what the encoder computes of pictures [B, 3, S, S]: of each stage's maps, or of the tokens."""
        if self.config.tower is not None:
            return self.tokens(images).mean(1)
        return torch.cat([x.mean((2, 3)) for x in self._maps(images)], dim=1)

    def query(self, features: Features, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points [B, P, 3] → truncated signed distance [B, P] (negative inside) and RGB in [0, 1] [B, P, 3]."""
        uv = self.config.camera.project(points)[:, :, None]  # [B, P, 1, 2]
        local = F.grid_sample(features.local.float(), uv, padding_mode="border", align_corners=False)
        octaves = math.pi * 2.0 ** torch.arange(self.config.n_frequencies, device=points.device)
        waves = (points[..., None] * octaves / 2).flatten(-2)  # [B, P, 3 * frequencies]
        x = torch.cat([local[..., 0].transpose(1, 2), points, waves.sin(), waves.cos()], dim=-1)
        x = self.enter(x) + self.enter_code(features.code)[:, None]
        for block in self.blocks:
            x = x + block(F.relu(x))
        distance, rgb = self.leave(F.relu(x)).float().split([1, 3], dim=-1)
        return distance[..., 0] * self.config.truncation, rgb.sigmoid()


def save_network(folder: Path, network: SDFNetwork, facts: dict) -> None:
    """Write ``model.safetensors`` (fp16) and ``config.json`` (architecture and ``facts``), each whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    content = {"class": "SDFNetwork", "network": network.config.model_dump(mode="json"), **facts}
    text = json.dumps(content, indent=1) + "\n"
    for name, data in (("model.safetensors", save(weights)), ("config.json", text.encode())):
        (folder / f".{name}").write_bytes(data)
        (folder / f".{name}").replace(folder / name)


def load_network(folder: Path) -> tuple[SDFNetwork, dict]:
    """The network in float32, ready to be asked, and its ``config.json``.

    Raises:
        UserError: the folder is not one of ``save_network``, or weights and configuration do not fit each other.
    """
    remedy = "train one with: python ttd/train_lift.py --config configs/lift/train_tiny.yaml"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no lifter here ({name} is missing); {remedy}")
    try:
        content = json.loads((folder / "config.json").read_text())
        network = SDFNetwork(SDFNetworkConfig.model_validate(content["network"]))
        weights = load_file(folder / "model.safetensors")
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: not a readable lifter ({error}); {remedy}") from error
    want, have = network.state_dict(), weights
    wrong = sorted(set(want) ^ set(have)) + sorted(k for k in set(want) & set(have) if want[k].shape != have[k].shape)
    if wrong:
        raise UserError(f"{folder}: weights and config.json do not fit, in {', '.join(wrong[:5])}; {remedy}")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network.eval().requires_grad_(False), content
