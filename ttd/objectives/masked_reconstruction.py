"""Masked reconstruction: predict hidden stretches of the EEG from the rest (He et al., 2022, arXiv:2111.06377, in
time).

The hidden samples are filled with zeros, the mean of the scaled data, or with the guess of ``start``. The error is measured on
hidden time only, over all channels that the window has: an electrode that its cap lacks is zero in the input and counts nowhere.
With ``masking.patches`` the encoder mae is not given the hidden patches, and the decoder puts a learned token in their place.
Trivial predictors to stand beside it: ``ttd/baselines/interpolation.py``.

Shapes: B batch, C channels, T samples.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ttd import seeding
from ttd.baselines.component_filter import ComponentFilter
from ttd.baselines.interpolation import predict_linear
from ttd.config import Config, UserError
from ttd.encoders import Encoder
from ttd.encoders.decoder import DecoderConfig, MaskTokenDecoder, ReconstructionDecoder
from ttd.encoders.mae import MAEEncoder
from ttd.encoders.masking import MaskingConfig, electrode_mask, n_visible_patches, temporal_mask


class MaskedReconstructionConfig(Config):
    masking: MaskingConfig = MaskingConfig()
    decoder: DecoderConfig = DecoderConfig()
    sign_flip: bool = True
    """Flip the sign of half of the training windows: the background's polarity is arbitrary."""
    start: Literal["zero", "linear", "wiener"] = "zero"
    """What the decoder adds to: nothing, straight lines between the visible neighbours, or a linear filter fitted on the
    training windows (``baselines/component_filter.py``). Encoder and decoder then learn what the filter leaves."""
    fill: Literal["zero", "start"] = "zero"
    """What the encoder sees in hidden time: zeros, or what ``start`` puts there, which leaves no edges at the spans."""

    @model_validator(mode="after")
    def _something_to_fill_with(self) -> MaskedReconstructionConfig:
        if self.fill == "start" and self.start == "zero":
            raise ValueError("fill=start needs start=linear or start=wiener")
        return self


class MaskedReconstruction(nn.Module):
    """Encoder on the visible EEG, light decoder, mean squared error on the hidden time.

    Args:
        config: masking, decoder, augmentation.
        encoder: what is being trained; the decoder is built for its tokens.
        seed: of masks and flips.
        component_filter: what ``start: wiener`` adds to; no weight of this module.

    Raises:
        ValueError: ``start: wiener`` without a filter.
        UserError: masking by patches that are not the encoder's (see ``leaves_out_patches``).
    """

    def __init__(
        self,
        config: MaskedReconstructionConfig,
        *,
        encoder: Encoder,
        seed: int,
        component_filter: ComponentFilter | None = None,
    ):
        super().__init__()
        if config.start == "wiener" and component_filter is None:
            raise ValueError("start=wiener needs a component_filter; fit one on the training windows")
        self.config, self.seed, self.encoder, self.component_filter = config, seed, encoder, component_filter
        sizes = {"embed_dim": encoder.embed_dim, "n_tokens": encoder.n_tokens,
                 "n_chans": len(encoder.ch_names), "n_times": encoder.n_times}  # fmt: skip
        self.decoder: MaskTokenDecoder | ReconstructionDecoder
        if leaves_out_patches(config, encoder):
            self.decoder = MaskTokenDecoder(config.decoder, patch_samples=config.masking.span, **sizes)
        else:
            self.decoder = ReconstructionDecoder(config.decoder, **sizes)
        if config.start != "zero":
            nn.init.zeros_(self.decoder.predict.weight)  # nothing is added before something is learnt

    def mask(self, positions: Tensor) -> Tensor:
        """Hidden samples [B, T] of the windows at these global positions [B]; the same ones whenever asked."""
        return temporal_mask(self.config.masking, self.encoder.n_times, positions, seed=self.seed)

    def start(self, visible: Tensor, mask: Tensor) -> Tensor:
        """What the decoder adds to [B, C, T]: ``visible`` [B, C, T] with a guess in the time hidden by ``mask`` [B, T]."""
        if self.config.start == "linear":
            return predict_linear(visible, mask)
        if self.config.start == "wiener":
            assert self.component_filter is not None
            return self.component_filter.predict(visible, mask)
        return torch.zeros_like(visible)

    def reconstruct(self, eeg: Tensor, mask: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Predict all of the EEG [B, C, T] from what ``mask`` [B, T] and ``dropped`` electrodes [B, C] leave visible."""
        visible = eeg.masked_fill(mask[:, None], 0.0)
        if dropped is not None:
            visible = visible.masked_fill(dropped[:, :, None], 0.0)
        if self.config.start == "zero":
            return self._decoded(visible, mask)
        start = self.start(visible, mask)
        return start + self._decoded(start if self.config.fill == "start" else visible, mask)

    def _decoded(self, seen: Tensor, mask: Tensor) -> Tensor:
        """What encoder and decoder make of ``seen`` [B, C, T]; of its visible patches alone where hidden ones are left out."""
        if isinstance(self.decoder, ReconstructionDecoder):
            return self.decoder(self.encoder(seen))
        assert isinstance(self.encoder, MAEEncoder)
        n, masking = self.encoder.n_tokens, self.config.masking
        hidden = mask[:, : n * masking.span : masking.span]  # [B, N]
        kept = hidden.int().argsort(dim=1, stable=True)[:, : n_visible_patches(masking, n)]
        return self.decoder(self.encoder.encode_visible(seen, kept), kept)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: "eeg" [B, C, T] scaled per channel, "position" [B], and where caps differ "present" [B, C]."""
        eeg, present = batch["eeg"], batch.get("present")
        if self.training and self.config.sign_flip:
            flip = seeding.rand(self.seed, "sign flip", batch["position"]) < 0.5
            eeg = eeg * torch.where(flip, -1.0, 1.0).to(eeg)[:, None, None]
        mask, dropped = self.mask(batch["position"]).to(eeg.device), None
        if self.training and self.config.masking.electrodes:
            there = torch.ones(eeg.shape[:2], dtype=torch.bool) if present is None else present.cpu()
            dropped = electrode_mask(self.config.masking, there, batch["position"], seed=self.seed).to(eeg.device)
        counted = hidden_samples(mask, present, dropped)
        loss = masked_mse(self.reconstruct(eeg, mask, dropped).float(), eeg, counted)
        return {"loss": loss, "zero": masked_mse(torch.zeros_like(eeg), eeg, counted).detach()}


def leaves_out_patches(config: MaskedReconstructionConfig, encoder: Encoder) -> bool:
    """Whether hidden patches are left out of the encoder's input, rather than filled.

    Raises:
        UserError: they would be, but are not as long as the encoder's, or are to be filled.
    """
    if not config.masking.patches or not isinstance(encoder, MAEEncoder):
        return False
    span, patch = config.masking.span, encoder.config.patch_samples
    if span != patch:
        raise UserError(
            f"objective.masking.span={span}: the encoder's patches have {patch} samples; with masking.patches give span={patch}"
        )
    if config.fill == "start":
        raise UserError(
            "objective.fill=start: hidden patches are left out of the input, nothing is filled; take fill=zero"
        )
    return True


def hidden_samples(mask: Tensor, present: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
    """What counts: hidden time [B, T] where all channels are alike, else [B, C, T] of the electrodes that are present
    [B, C], with all the time of those that were dropped [B, C]."""
    if present is None and dropped is None:
        return mask
    counted = mask[:, None] if dropped is None else mask[:, None] | dropped[:, :, None]
    return counted if present is None else counted & present[:, :, None]


def masked_mse(predicted: Tensor, eeg: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden samples: [B, C, T], [B, C, T], bool [B, T] (of all channels) or [B, C, T] → scalar.

    Where windows differ in electrodes each counts the same, whatever its cap: then the mean over ranks and micro-batches is
    that over the global batch. Predicting zero scores the hidden part's variance, about 1 for scaled data.
    """
    error = (predicted - eeg).square()
    if mask.ndim == 3:
        return ((error * mask).sum((1, 2)) / mask.sum((1, 2))).mean()
    return (error.mean(1) * mask).sum() / mask.sum()
