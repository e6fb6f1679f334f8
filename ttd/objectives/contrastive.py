"""Contrastive alignment: the EEG of a picture should point at the CLIP embedding of that picture.

Symmetric InfoNCE (Radford et al., 2021, arXiv:2103.00020) between EEG embeddings and precomputed targets, over the
batch of all ranks, with gradients through the gathering. Several samples of one image are all positives (Khosla et al.,
2020, arXiv:2004.11362), never negatives of each other.

The space. Targets are brought to unit length; cosines are taken after subtracting their training mean (uncentred
cosines favour pictures that resemble every picture), and, in the space "half_whitened", after scaling each principal
direction of the training targets by its variance to the power -1/4: the spectrum of CLIP's embeddings is uneven, and a
plain cosine reads only its few large directions. The ridge baseline stands in the same space.

Subjects. Where asked for, each subject's channels pass a linear map of its own first (``ttd/encoders/subjects.py``).

Shapes: B batch of one rank, G batch of all ranks, C channels, T samples, K width of the CLIP embedding, M images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.bridge.linear_readout import LinearReadout
from ttd.config import Config, UserError, write_json
from ttd.encoders import Encoder, load_encoder, save_encoder
from ttd.encoders.subjects import SubjectLayers
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
    linear_ms: float | None = Field(default=None, gt=0)
    """Average the network's embedding with that of a ridge on the means of bins this long, fitted to the training part before the
    network is trained; needs no epochs and helps most on few pictures. None where null."""
    subject_layers: bool = False
    """Give every training subject a linear map of the channels before the encoder, the identity at first; a subject that
    was not trained on gets the mean of all."""


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
        with torch.autocast(clip.device.type, enabled=False):  # in bfloat16 similar pictures look equal
            return F.normalize((F.normalize(clip.float(), dim=1) - self.mean) @ self.matrix, dim=1)


class Contrastive(nn.Module):
    """Encoder and CLIP head, trained by symmetric InfoNCE over all ranks.

    Args:
        encoder, head, layers: what is trained; ``layers`` where ``config.subject_layers`` asks for them.
        space: fitted on the training targets.
    """

    def __init__(
        self,
        config: ContrastiveConfig,
        *,
        encoder: Encoder,
        head: ClipHead,
        space: TargetSpace,
        layers: SubjectLayers | None = None,
    ):
        super().__init__()
        if config.subject_layers != (layers is not None):
            raise ValueError(f"subject_layers={config.subject_layers}, but layers={layers}")
        self.config, self.encoder, self.head, self.space, self.layers = config, encoder, head, space, layers

    def embed(self, eeg: Tensor, place: Tensor | None = None) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to unit vectors [B, K] in the space of the targets; see ``Aligned``."""
        return _embed(eeg, place, self.layers, self.encoder, self.head)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: "eeg" [B, C, T], the target [B, K], "image" [B] (equal numbers: the same picture), and
        with subject layers "subject" [B]."""
        place = None if self.layers is None else self.layers.place[batch["subject"]]
        own, target = self.embed(batch["eeg"], place), self.space(batch[self.config.target])
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
    all_eeg, all_target, all_image = gather(eeg, target, image)  # [G, K], [G, K], [G]
    same = (image[:, None] == all_image[None]).float()  # [B, G]
    weight = same / same.sum(1, keepdim=True)
    with torch.autocast(eeg.device.type, enabled=False):  # a hundred times a cosine in bfloat16 is off by up to 0.2
        logits = scale * eeg @ all_target.T  # [B, G]
        loss = -(weight * logits.log_softmax(1)).sum(1).mean()
        loss = loss - (weight * (scale * target @ all_eeg.T).log_softmax(1)).sum(1).mean()
    top1 = same.gather(1, logits.argmax(1, keepdim=True)).mean()
    return loss / 2, top1


def gather(*rows: Tensor) -> tuple[Tensor, ...]:
    """Rows of all ranks in rank order, each [B, ...] → [G, ...], with gradients back to the rank they came from."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    return _Gather.apply(*rows)


class _Gather(torch.autograd.Function):
    """One message each way for all tensors: their bytes side by side, and the sum over ranks of the gradients of one's own
    rows."""

    @staticmethod
    def forward(ctx: Any, *rows: Tensor) -> tuple[Tensor, ...]:
        flat = [x.contiguous().view(len(x), -1).view(torch.uint8) for x in rows]
        mine = torch.cat(flat, 1)  # [B, bytes]
        theirs = mine.new_empty(dist.get_world_size() * len(mine), mine.shape[1])
        dist.all_gather_into_tensor(theirs, mine)
        parts = theirs.split([x.shape[1] for x in flat], 1)
        out = tuple(p.contiguous().view(x.dtype).view(-1, *x.shape[1:]) for p, x in zip(parts, rows, strict=True))
        ctx.mark_non_differentiable(*(o for o, needed in zip(out, ctx.needs_input_grad, strict=True) if not needed))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [g for g, needed in zip(gradients, ctx.needs_input_grad, strict=True) if needed]
        total = torch.cat([g.flatten(1) for g in wanted], 1)  # [G, numbers]
        mine = total.new_empty(len(total) // dist.get_world_size(), total.shape[1])
        dist.reduce_scatter_tensor(mine, total)
        parts = iter(mine.split([g[0].numel() for g in wanted], 1))
        return tuple(
            next(parts).reshape(-1, *g.shape[1:]) if needed else None
            for g, needed in zip(gradients, ctx.needs_input_grad, strict=True)
        )


def _embed(eeg: Tensor, place: Tensor | None, layers: SubjectLayers | None, encoder: Encoder, head: ClipHead) -> Tensor:
    own = eeg
    if layers is not None:
        own = layers(eeg, torch.full((len(eeg),), -1, device=eeg.device) if place is None else place)
    return F.normalize(head(encoder(own), eeg).float(), dim=1)


class Aligned(nn.Module):
    """An exported alignment: EEG → unit vectors beside those of pictures."""

    def __init__(
        self,
        encoder: Encoder,
        head: ClipHead,
        space: TargetSpace,
        target: str,
        target_space: Literal["centred", "half_whitened"],
        layers: SubjectLayers | None = None,
    ):
        super().__init__()
        self.encoder, self.head, self.space, self.layers = encoder, head, space, layers
        self.target, self.target_space = target, target_space

    def forward(self, eeg: Tensor, place: Tensor | None = None) -> Tensor:
        """Map EEG [B, C, T], scaled by the training statistics, to unit vectors [B, K].

        ``place`` [B] are the subjects' layers, from ``layers.places(names)``; without it everyone gets their mean.
        """
        return _embed(eeg, place, self.layers, self.encoder, self.head)

    def as_objective(self) -> Contrastive:
        """The same parts as what is trained, and what ``save_aligned`` writes."""
        config = ContrastiveConfig(
            head=self.head.config,
            target=self.target,
            target_space=self.target_space,
            subject_layers=self.layers is not None,
        )
        return Contrastive(config, encoder=self.encoder, head=self.head, space=self.space, layers=self.layers)

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
    layers = objective.layers
    weights |= {f"layers.{n}": t for n, t in layers.state_dict().items()} if layers is not None else {}
    save_file({n: t.detach().cpu().contiguous() for n, t in weights.items()}, head / "model.safetensors")
    write_json(
        head / "config.json",
        {
            "format": FORMAT,
            "head": objective.head.config.model_dump(mode="json"),
            "embed_dim": objective.head.embed_dim,
            "n_tokens": objective.head.n_tokens,
            "clip_dim": objective.head.clip_dim,
            "linear": None if objective.head.linear is None else objective.head.linear.sizes,
            "target": objective.config.target,
            "target_space": objective.config.target_space,
            **({"subjects": layers.subjects} if layers is not None else {}),
        },
    )


def load_aligned(folder: Path, *, subject_layers: bool = False) -> Aligned:
    """Read what ``save_aligned`` wrote (the ``export`` folder of an alignment run), in evaluation mode.

    ``subject_layers`` says that the caller passes the EEG through all of ``forward``, so that layers count.

    Raises:
        UserError: not an exported alignment, weights that do not fit, or subject layers that would be left out.
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
        linear=LinearReadout(**facts["linear"], clip_dim=facts["clip_dim"]) if facts.get("linear") else None,
    )
    k, subjects = facts["clip_dim"], facts.get("subjects")
    if subjects and not subject_layers:
        raise UserError(
            f"{folder}: was aligned with a layer per subject, which this step does not apply; align it again with "
            "objective.subject_layers=false"
        )
    layers = SubjectLayers(subjects, len(encoder.ch_names)) if subjects else None
    space = TargetSpace(torch.zeros(k), torch.eye(k))
    aligned = Aligned(encoder, head, space, facts["target"], facts["target_space"], layers)
    weights = load_file(folder / "clip_head" / "model.safetensors")
    for name in ("head", "space", *(["layers"] if subjects else [])):
        part = {n.removeprefix(f"{name}."): t for n, t in weights.items() if n.startswith(f"{name}.")}
        load_strictly(getattr(aligned, name), part, source=str(folder / "clip_head"))
    return aligned.eval()
