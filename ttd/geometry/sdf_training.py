"""Training of the signed-distance network: losses, spoilt pictures, and a plain loop that resumes.

Clamped-L1 on the distance (Park et al., 2019, arXiv:1901.05103, eq. 4, with the target clamped and the answer not, so
that a wrong far answer still has a gradient) and L1 on the colour of points near the surface: the term ``representation``.
Beside it, where its weight is not 0, the term ``image`` of ``ttd.geometry.reprojection``. Pictures are spoilt as decoded ones
are: put through an autoencoder, blurred, resampled, noisy, off in colour.

Letters: B pictures, S pixels, P points per picture.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ttd.config import Config, UserError, fingerprint
from ttd.geometry.reprojection import reprojection
from ttd.geometry.sdf_network import Features, SDFNetwork
from ttd.seeding import torch_rng

logger = logging.getLogger(__name__)
COLOUR_RANGE = 0.05  # scene units; colour is asked of points nearer to the surface than this
COLOUR_WEIGHT = 0.5
WARMUP = 100
ROUND_TRIP_SHARE = 0.5  # of the spoilt pictures; the others keep their fine detail


class SDFTrainingConfig(Config):
    steps: int = 5000
    """Updates of the weights."""
    batch_size: int = 32
    """Pictures per step."""
    n_points: int = 512
    """Points per picture and step."""
    n_rays: int = Field(default=16, ge=1)
    """Rays per picture and step, of the image term; one costs as much as 32 points."""
    lr: float = 2e-3
    """Highest rate, after the warm-up; it then falls to 1 % along a cosine."""
    weight_decay: float = 1e-3
    spoil: float = 0.6
    """Share of the pictures that are spoilt as a decoded picture is."""
    mixed_precision: bool = True
    """bfloat16 where autocast allows it; 2.7 times as fast on a CPU with AVX-512-bf16."""
    checkpoint_every: int = 200
    """Steps between saved states."""


def spoil(
    images: Tensor, share: float, generator: torch.Generator, round_trip: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Pictures [B, 3, S, S] in [0, 1], a ``share`` of them blurred or resampled, noisy and off in colour.

    Before that ``round_trip``, an autoencoder there and back, is done to half of the share.
    """
    if round_trip is not None:
        rows = (torch.rand(len(images), generator=generator) < share * ROUND_TRIP_SHARE).nonzero()[:, 0]
        if len(rows):
            images = images.index_copy(0, rows, round_trip(images[rows]))
    spoilt = []
    for image in images:
        u = torch.rand(6, generator=generator)
        if u[0] < share:
            if u[1] < 0.5:  # lose detail: down to 20-48 pixels and back
                small = int(20 + 28 * u[2])
                image = F.interpolate(image[None], size=small, mode="area")
                image = F.interpolate(image, size=images.shape[-1], mode="bilinear")[0]
            else:  # Gaussian blur
                sigma = 0.3 + 1.2 * float(u[2])
                taps = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
                kernel = torch.outer(taps, taps) / taps.sum() ** 2
                padded = F.pad(image[None], (3, 3, 3, 3), mode="replicate")
                image = F.conv2d(padded, kernel.expand(3, 1, 7, 7), groups=3)[0]
            gain = 1 + 0.15 * (2 * torch.rand(3, 1, 1, generator=generator) - 1) * u[3]
            noise = torch.randn(image.shape, generator=generator) * 0.06 * u[4]
            image = (image * gain + 0.06 * (2 * u[5] - 1) + noise).clamp(0, 1)
        spoilt.append(image)
    return torch.stack(spoilt)


def losses(
    network: SDFNetwork, features: Features, batch: dict[str, Tensor], terms: Mapping[str, float]
) -> dict[str, Tensor]:
    """The weighted sum ``loss`` of the terms whose weight is not 0, and what they are made of, by name.

    ``representation`` reads ``points`` [B, P, 3], ``distance`` [B, P] and ``rgb`` [B, P, 3]; ``image`` reads what
    ``ttd.geometry.reprojection.reprojection`` does. ``features`` are those of the pictures.
    """
    loss, named = torch.zeros(()), dict[str, Tensor]()
    if terms["representation"]:
        distance, rgb = network.query(features, batch["points"])
        limit = network.config.truncation
        sdf = F.l1_loss(distance, batch["distance"].clamp(-limit, limit)) / limit
        near = (batch["distance"].abs() < COLOUR_RANGE).float()
        colour = ((rgb - batch["rgb"]).abs().mean(-1) * near).sum() / near.sum().clamp(min=1)
        loss = loss + terms["representation"] * (sdf + COLOUR_WEIGHT * colour)
        named |= {"sdf": sdf, "colour": colour}
    if terms["image"]:
        seen = reprojection(network, features, batch)
        loss = loss + terms["image"] * (seen["silhouette"] + seen["tint"])
        named |= seen
    return {"loss": loss} | {name: value.detach() for name, value in named.items()}


def lr_at(step: int, config: SDFTrainingConfig) -> float:
    """The learning rate of a step: linear warm-up, then a cosine to 1 %."""
    if step < WARMUP:
        return config.lr * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, config.steps - WARMUP)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def fit(
    network: SDFNetwork,
    draw: Callable[[int], dict[str, Tensor]],
    config: SDFTrainingConfig,
    folder: Path,
    *,
    seed: int,
    identity: dict,
    terms: Mapping[str, float],
    round_trip: Callable[[Tensor], Tensor] | None = None,
    report: Callable[[dict], None] = lambda line: None,
) -> None:
    """Train ``network`` on ``draw(step)`` for the steps that are left, from the newest state in ``folder``.

    ``identity`` names what else decides the result (data, architecture, autoencoder); a state of another one, or of other
    ``terms`` (weights by name, see ``losses``), is refused.

    Raises:
        UserError: ``folder`` holds the state of another experiment.
    """
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    path = folder / "state.safetensors"
    who = fingerprint(
        {"training": config.model_dump(exclude={"checkpoint_every"}), "seed": seed, "terms": dict(terms), **identity}
    )
    start = _resume(path, network, optimizer, who)
    if start:
        logger.info("resumed at step %d of %d", start, config.steps)
    network.train()
    clock, sums = time.monotonic(), dict[str, float]()
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config)
        batch = draw(step)
        batch["image"] = spoil(batch["image"], config.spoil, torch_rng(seed, "spoil", step), round_trip)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.mixed_precision):
            named = losses(network, network.encode(batch["image"]), batch, terms)
        named["loss"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in named.items():
            sums[name] = sums.get(name, 0.0) + value.item()

        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            n = (step % config.checkpoint_every) + 1
            rate = n / (time.monotonic() - clock)
            report(
                {"step": step + 1, "of": config.steps, "steps_per_s": round(rate, 2)}
                | {k: v / n for k, v in sums.items()}
            )
            clock, sums = time.monotonic(), {}
            _save(path, network, optimizer, step + 1, who)
    network.eval()


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, who: str) -> None:
    """Weights and moments by parameter name in one file, whole or absent."""
    tensors = dict(network.state_dict())
    for name, parameter in network.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}:{name}"] = optimizer.state[parameter][moment]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(save(tensors, metadata={"facts": json.dumps({"step": step, "experiment": who})}))
    aside.replace(path)


def _resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, who: str) -> int:
    """Load the state if there is one; the step to go on from."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        if facts["experiment"] != who:
            raise UserError(f"{path}: belongs to another experiment; give another output_dir or remove the file")
        network.load_state_dict({name: file.get_tensor(name) for name in network.state_dict()})
        for name, parameter in network.named_parameters():
            state = {moment: file.get_tensor(f"{moment}:{name}") for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(facts["step"])), **state}
    return facts["step"]
