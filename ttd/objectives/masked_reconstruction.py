"""Masked reconstruction: predict hidden stretches of the EEG from the rest (He et al., 2022, arXiv:2111.06377, in
time).

The hidden samples are filled with zeros, the mean of the scaled data; the error is measured on hidden time only, over
all channels. Trivial predictors to stand beside it: ``ttd/baselines/interpolation.py``.

Shapes: B batch, C channels, T samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttd import seeding
from ttd.config import Config
from ttd.encoders import Encoder
from ttd.encoders.decoder import DecoderConfig, ReconstructionDecoder
from ttd.encoders.masking import MaskingConfig, temporal_mask


class MaskedReconstructionConfig(Config):
    masking: MaskingConfig = MaskingConfig()
    decoder: DecoderConfig = DecoderConfig()
    sign_flip: bool = True
    """Flip the sign of half of the training windows: the background's polarity is arbitrary."""


class MaskedReconstruction(nn.Module):
    """Encoder on the visible EEG, light decoder, mean squared error on the hidden time.

    Args:
        config: masking, decoder, augmentation.
        encoder: what is being trained; the decoder is built for its tokens.
        seed: of masks and flips.
    """

    def __init__(self, config: MaskedReconstructionConfig, *, encoder: Encoder, seed: int):
        super().__init__()
        self.config, self.seed, self.encoder = config, seed, encoder
        self.decoder = ReconstructionDecoder(
            config.decoder,
            embed_dim=encoder.embed_dim,
            n_tokens=encoder.n_tokens,
            n_chans=len(encoder.ch_names),
            n_times=encoder.n_times,
        )

    def mask(self, positions: Tensor) -> Tensor:
        """Hidden samples [B, T] of the windows at these global positions [B]; the same ones whenever asked."""
        return temporal_mask(self.config.masking, self.encoder.n_times, positions, seed=self.seed)

    def reconstruct(self, eeg: Tensor, mask: Tensor) -> Tensor:
        """Predict all of the EEG [B, C, T] from what ``mask`` [B, T] leaves visible."""
        return self.decoder(self.encoder(eeg.masked_fill(mask[:, None], 0.0)))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: "eeg" [B, C, T] scaled per channel, "position" [B]."""
        eeg = batch["eeg"]
        if self.training and self.config.sign_flip:
            flip = seeding.rand(self.seed, "sign flip", batch["position"]) < 0.5
            eeg = eeg * torch.where(flip, -1.0, 1.0).to(eeg)[:, None, None]
        mask = self.mask(batch["position"]).to(eeg.device)
        loss = masked_mse(self.reconstruct(eeg, mask).float(), eeg, mask)
        return {"loss": loss, "zero": masked_mse(torch.zeros_like(eeg), eeg, mask).detach()}


def masked_mse(predicted: Tensor, eeg: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden samples of all channels: [B, C, T], [B, C, T], bool [B, T] → scalar.

    Predicting zero scores the hidden part's variance, about 1 for scaled data.
    """
    error = (predicted - eeg).square().mean(1)  # [B, T]
    return (error * mask).sum() / mask.sum()
