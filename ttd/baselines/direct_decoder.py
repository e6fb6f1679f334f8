"""EEG straight to pixels: an encoder's features through transposed convolutions, trained by mean squared error.

After a public sketch of Brain3D (Balloni et al., 2026, arXiv:2604.08068): two layers of 1024 and 4096, reshaped to 256 maps of
4 × 4, and transposed convolutions that double the side and halve the maps until there are pixels. The sketch names 256 pixels and
ends at 64; here as many doublings are made as the pictures need. It stands beside the diffusion models as what a plain regression
gives: the mean of the pictures that an EEG leaves possible, so it is blurred, and without information in the EEG it is the mean
picture of the training part.

Shapes: n epochs, B batch, C channels, T samples, F numbers of all tokens of an epoch, S side of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ttd.config import Config
from ttd.seeding import key, torch_rng

START = 4
"""Side of the first maps."""
FIRST_MAPS, LEAST_MAPS = 256, 8
"""256, as in the sketch, halved with each doubling of the side; fewer than 8 would be few for three colours."""


class DirectDecoderConfig(Config):
    hidden: int = Field(default=1024, ge=1)
    """Width of the layer before the first maps."""
    steps: int = Field(default=600, ge=1)
    batch_size: int = Field(default=32, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    """Highest rate, of the first update; falls in a straight line to none."""
    weight_decay: float = Field(default=0.01, ge=0)


class DirectDecoder(nn.Module):
    """EEG [B, C, T] → pictures [B, 3, S, S] in [-1, 1].

    Args:
        encoder: EEG [B, C, T] → tokens, ``n_tokens`` of ``embed_dim`` numbers; it is trained along.
        picture_size: S, 8 or twice, four, eight times that and so on.

    Raises:
        ValueError: S is another number.
    """

    def __init__(self, encoder: nn.Module, *, picture_size: int, hidden: int = 1024):
        super().__init__()
        n_doublings = (picture_size // START).bit_length() - 1
        if n_doublings < 1 or START << n_doublings != picture_size:
            raise ValueError(f"picture_size={picture_size} is not 8, 16, 32, 64 or a further doubling")
        self.encoder, self.picture_size = encoder, picture_size
        sizes: Any = encoder  # a module's attributes have no types
        n_features = sizes.n_tokens * sizes.embed_dim
        n_first = FIRST_MAPS * START**2
        self.mapper = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_first), nn.ReLU())
        layers: list[nn.Module] = []
        maps = FIRST_MAPS
        for _ in range(n_doublings - 1):
            fewer = max(LEAST_MAPS, maps // 2)
            layers += [nn.ConvTranspose2d(maps, fewer, 4, stride=2, padding=1), nn.BatchNorm2d(fewer), nn.ReLU()]
            maps = fewer
        self.upsample = nn.Sequential(*layers, nn.ConvTranspose2d(maps, 3, 4, stride=2, padding=1), nn.Tanh())

    def pictures(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled per channel, to pictures [B, 3, S, S] in [-1, 1]."""
        maps = self.mapper(self.encoder(eeg).flatten(1)).unflatten(1, (FIRST_MAPS, START, START))
        return self.upsample(maps)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: "eeg" [B, C, T] and "picture" uint8 [B, 3, S, S]. The mean picture scores their variance."""
        return {"loss": F.mse_loss(self.pictures(batch["eeg"]).float(), from_uint8(batch["picture"]))}


def from_uint8(pictures: Tensor) -> Tensor:
    """Pictures uint8 [B, 3, S, S] as float in [-1, 1]."""
    return pictures.float() / 127.5 - 1.0


def fit_direct_decoder(
    encoder: nn.Module,
    eeg: Tensor,
    pictures: Tensor,
    config: DirectDecoderConfig,
    *,
    seed: int,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> DirectDecoder:
    """Train a decoder, and ``encoder`` with it, on pairs: EEG [n, C, T], scaled per channel, and pictures uint8 [n, 3, S, S].

    A fixed number of updates on batches drawn without replacement from one permutation after the other; the same seed and encoder
    give the same decoder. ``watch`` is handed the numbers of the updates and hands them on, for a progress bar.

    Raises:
        ValueError: not as many pictures as epochs, fewer than two, or pictures of a size that is not reached by doubling.
    """
    n = len(eeg)
    if len(pictures) != n or n < 2 or pictures.ndim != 4 or pictures.shape[2] != pictures.shape[3]:
        raise ValueError(f"need pairs of EEG and square pictures, got {list(eeg.shape)} and {list(pictures.shape)}")
    own = key(seed, "direct decoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own)
        model = DirectDecoder(encoder, picture_size=pictures.shape[-1], hidden=config.hidden).to(eeg.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        draw, order = torch_rng(own, "batches"), torch.empty(0, dtype=torch.long)
        for step in watch(range(config.steps)):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * (1 - step / config.steps)
            if len(order) < min(config.batch_size, n):
                order = torch.randperm(n, generator=draw)
            rows, order = order[: config.batch_size], order[config.batch_size :]
            optimizer.zero_grad()
            model({"eeg": eeg[rows], "picture": pictures[rows]})["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval()


@torch.no_grad()
def draw_pictures(model: DirectDecoder, eeg: Tensor, *, batch_size: int = 256) -> Tensor:
    """Pictures uint8 [n, 3, S, S] of EEG [n, C, T], scaled as the training's."""
    drawn = torch.cat([model.eval().pictures(some).float() for some in eeg.split(batch_size)])
    return ((drawn + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
