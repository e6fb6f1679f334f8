"""Contrastive alignment: the EEG of a picture should point at the CLIP embedding of that picture.

Symmetric InfoNCE (Radford et al., 2021, arXiv:2103.00020) between EEG embeddings and precomputed targets, over the
batch of all ranks, with gradients through the gathering. Several samples of one image are all positives (Khosla et al.,
2020, arXiv:2004.11362), never negatives of each other.

The space. Targets are brought to unit length; cosines are taken after subtracting their training mean (uncentred
cosines favour pictures that resemble every picture), and, in the space "half_whitened", after scaling each principal
direction of the training targets by its variance to the power -1/4: the spectrum of CLIP's embeddings is uneven, and a
plain cosine reads only its few large directions. The ridge baseline stands in the same space.

Shapes: B batch of one rank, G batch of all ranks, C channels, T samples, K width of the CLIP embedding, M images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.config import Config, UserError, write_json
from ttd.encoders import Encoder, load_encoder, save_encoder
from ttd.encoders.transfer import load_strictly

FORMAT = 1


class ContrastiveConfig(Config):
    head: ClipHeadConfig = ClipHeadConfig()
    target: str = "clip"
    """Name of the target in the shards."""
    target_space: Literal["centred", "half_whitened"] = "half_whitened"
    """Where cosines are taken; see the module's text."""
    cosine_weight: float = Field(default=0.0, ge=0)
    """Weight of 1 − cosine to the own target beside InfoNCE: on few pictures it keeps the contrast from over-fitting
    (measured on a simulated study, 1,000 pictures: validation cosine 0.12 without, 0.17 with 5)."""


class TargetSpace(nn.Module):
    """CLIP embeddings → the unit vectors that cosines compare; fitted once on the training images, stored with the
    head."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    @classmethod
    def fit(cls, targets: Tensor, space: Literal["centred", "half_whitened"]) -> TargetSpace:
        """Fit on the targets of the training images [M, K], one row per image.

        Raises:
            ValueError: fewer than 2 images.
        """
        if len(targets) < 2:
            raise ValueError(f"need the targets of at least 2 training images, got {len(targets)}")
        targets = F.normalize(targets.double(), dim=1)
        mean, matrix = targets.mean(0), torch.eye(targets.shape[1], dtype=torch.double)
        if space == "half_whitened":
            variance, axes = torch.linalg.eigh(torch.cov(targets.T))
            floor = variance.max() * 1e-6  # directions without variance are not blown up
            matrix = (axes * variance.clamp(min=floor) ** -0.25) @ axes.T
        return cls(mean.float(), matrix.float())

    def forward(self, clip: Tensor) -> Tensor:
        """Map CLIP embeddings [M, K] to unit vectors [M, K]."""
        return F.normalize((F.normalize(clip.float(), dim=1) - self.mean) @ self.matrix, dim=1)


class Contrastive(nn.Module):
    """Encoder and CLIP head, trained by symmetric InfoNCE over all ranks.

    Args:
        encoder, head: what is trained.
        space: fitted on the training targets.
    """

    def __init__(self, config: ContrastiveConfig, *, encoder: Encoder, head: ClipHead, space: TargetSpace):
        super().__init__()
        self.config, self.encoder, self.head, self.space = config, encoder, head, space

    def embed(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to unit vectors [B, K] in the space of the targets."""
        return F.normalize(self.head(self.encoder(eeg)).float(), dim=1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: "eeg" [B, C, T], the target [B, K], "image" [B] (equal numbers: the same picture)."""
        own, target = self.embed(batch["eeg"]), self.space(batch[self.config.target])
        scale = self.head.scale()
        contrast, top1 = symmetric_info_nce(own, target, batch["image"], scale)
        cosine = (own * target).sum(1).mean()
        loss = contrast + self.config.cosine_weight * (1 - cosine)
        return {
            "loss": loss,
            "contrast": contrast.detach(),
            "cosine": cosine.detach(),
            "batch_top1": top1.detach(),
            "logit_scale": scale.detach(),
        }


def symmetric_info_nce(eeg: Tensor, target: Tensor, image: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's share of the loss over all ranks, and the fraction of its rows whose nearest target is their own.

    ``eeg`` and ``target`` are unit vectors [B, K], ``image`` [B] numbers pictures. Every row is compared with the G
    rows of all ranks; a row's positives share its weight equally. The mean of the shares over ranks is the loss of one
    process holding all G rows, and so are the gradients that DDP and ZeRO average. Chance of the fraction: 1 / G.
    """
    all_eeg, all_target, all_image = gather(eeg), gather(target), gather(image)  # [G, K], [G, K], [G]
    same = (image[:, None] == all_image[None]).float()  # [B, G]
    weight = same / same.sum(1, keepdim=True)
    logits = scale * eeg @ all_target.T  # [B, G]
    loss = -(weight * logits.log_softmax(1)).sum(1).mean()
    loss = loss - (weight * (scale * target @ all_eeg.T).log_softmax(1)).sum(1).mean()
    top1 = same.gather(1, logits.argmax(1, keepdim=True)).mean()
    return loss / 2, top1


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, [B, ...] → [G, ...], with gradients back to the rank they came from."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    if x.requires_grad:
        return torch.cat(torch.distributed.nn.functional.all_gather(x))
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


class Aligned(nn.Module):
    """An exported alignment: EEG → unit vectors beside those of pictures."""

    def __init__(self, encoder: Encoder, head: ClipHead, space: TargetSpace, target: str):
        super().__init__()
        self.encoder, self.head, self.space, self.target = encoder, head, space, target

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled by the training statistics, to unit vectors [B, K]."""
        return F.normalize(self.head(self.encoder(eeg)).float(), dim=1)

    def prepare_targets(self, clip: Tensor) -> Tensor:
        """Map CLIP embeddings [M, K] to the unit vectors [M, K] that ``forward`` is to be compared with by cosine."""
        return self.space(clip)


def save_aligned(folder: Path, objective: Contrastive) -> None:
    """Write ``encoder/`` and ``clip_head/`` (with the space of the targets) below ``folder``."""
    save_encoder(folder / "encoder", objective.encoder)
    head = folder / "clip_head"
    head.mkdir(parents=True, exist_ok=True)
    weights = {f"head.{n}": t for n, t in objective.head.state_dict().items()}
    weights |= {f"space.{n}": t for n, t in objective.space.state_dict().items()}
    save_file({n: t.detach().cpu().contiguous() for n, t in weights.items()}, head / "model.safetensors")
    write_json(
        head / "config.json",
        {
            "format": FORMAT,
            "head": objective.head.config.model_dump(mode="json"),
            "embed_dim": objective.head.embed_dim,
            "n_tokens": objective.head.n_tokens,
            "clip_dim": objective.head.clip_dim,
            "target": objective.config.target,
            "target_space": objective.config.target_space,
        },
    )


def load_aligned(folder: Path) -> Aligned:
    """Read what ``save_aligned`` wrote (the ``export`` folder of an alignment run), in evaluation mode.

    Raises:
        UserError: not an exported alignment, or weights that do not fit.
    """
    encoder = load_encoder(folder / "encoder")
    path = folder / "clip_head" / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no clip_head/config.json; give the export folder of an alignment run (ttd/align.py)"
        )
    facts = json.loads(path.read_text())
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{path}: head format {facts.get('format')!r} is not {FORMAT}; export it again with this version"
        )
    head = ClipHead(
        ClipHeadConfig.model_validate(facts["head"]),
        embed_dim=facts["embed_dim"],
        n_tokens=facts["n_tokens"],
        clip_dim=facts["clip_dim"],
    )
    k = facts["clip_dim"]
    aligned = Aligned(encoder, head, TargetSpace(torch.zeros(k), torch.eye(k)), facts["target"])
    weights = load_file(folder / "clip_head" / "model.safetensors")
    for name in ("head", "space"):
        part = {n.removeprefix(f"{name}."): t for n, t in weights.items() if n.startswith(f"{name}.")}
        load_strictly(getattr(aligned, name), part, source=str(folder / "clip_head"))
    return aligned.eval()
