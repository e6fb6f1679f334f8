"""The demo's VAE: an ``AutoencoderKL`` with factor 4, trained on both looks.

First half of the steps on 32 × 32 crops round a foreground pixel, second half on whole pictures: twice the pictures per
second, most of them object. Foreground pixels count five times, since the table flatters every average.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ttd.seeding import numpy_rng, torch_rng
from ttd.simulation.base_data import Pictures

FOREGROUND_WEIGHT = 5.0
KL_WEIGHT = 1e-4


def make_vae() -> AutoencoderKL:
    """Factor 4, 64 px → [4, 16, 16]; at most 16 channels at full resolution, where the cost is."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


class VaeLoss:
    """``loss_at(step)`` for ``fit``: batches keyed by the step."""

    def __init__(self, vae: AutoencoderKL, parts: list[Pictures], *, batch_size: int, steps: int, seed: int) -> None:
        self.vae, self.batch_size, self.steps, self.seed = vae, batch_size, steps, seed
        self.image = np.concatenate([p.image for p in parts])
        self.mask = np.concatenate([p.mask for p in parts])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pictures in [-1, 1] [B, 3, h, w] and pixel weights [B, 1, h, w]."""
        rng, crops = numpy_rng(self.seed, "vae", step), step < self.steps // 2
        rows = rng.integers(len(self.image), size=2 * self.batch_size if crops else self.batch_size)
        image, mask = self.image[rows], self.mask[rows]
        if crops:
            pieces = []
            for i in range(len(rows)):
                ys, xs = np.nonzero(mask[i] >= 0)
                k = rng.integers(len(ys))
                y, x = (int(np.clip(v[k] - 16 + rng.integers(-8, 9), 0, 32)) for v in (ys, xs))
                pieces.append((image[i, y : y + 32, x : x + 32], mask[i, y : y + 32, x : x + 32]))
            image, mask = (np.stack(v) for v in zip(*pieces, strict=True))
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 127.5 - 1
        weight = 1 + (FOREGROUND_WEIGHT - 1) * torch.from_numpy(mask >= 0).float()[:, None]
        return pixels, weight

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, weight = self.batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch_rng(self.seed, "vae-noise", step))
            decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - pixels
        squared = (error**2 * weight).mean()
        loss = (error.abs() * weight).mean() + 2 * squared + KL_WEIGHT * posterior.kl().float().mean()
        return loss, {"l2": squared.item()}


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKL) -> None:
    """Set the posterior's variance to next to nothing: the UNet is trained on the means, so that is what ``sample()`` must give.

    In training the variance regularises the latents; afterwards its noise (as large as the latents' own spread) would only
    blur what every reader of the VAE samples.
    """
    half = vae.quant_conv.out_channels // 2
    vae.quant_conv.weight[half:] = 0
    vae.quant_conv.bias[half:] = -20.0  # a standard deviation of e^-10


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures [N, 3, 64, 64] in [0, 1] through the VAE and back, with the latents' means."""
    out = [vae.decode(vae.encode(b * 2 - 1).latent_dist.mean).sample for b in images.split(50)]
    return (torch.cat(out) / 2 + 0.5).clamp(0, 1)


def foreground_psnr(images: Tensor, reconstructed: Tensor, mask: np.ndarray) -> float:
    """PSNR in dB over the solids' pixels alone, all pictures together (peak 1)."""
    on = torch.from_numpy(mask >= 0)[:, None].expand_as(images)
    return float(-10 * torch.log10(((images - reconstructed)[on] ** 2).mean()))


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: Tensor) -> float:
    """The scaling factor that gives latents unit variance, as SDXL's VAE config means it."""
    latents = torch.cat([vae.encode(b * 2 - 1).latent_dist.mean for b in images.split(100)])
    return float(1 / latents.std())
