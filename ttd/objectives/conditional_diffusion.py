"""Conditional diffusion: the UNet learns to denoise a picture's latents given what the EEG of that picture says.

Loss = diffusion + ``clip_weight`` × CLIP + ``text_weight`` × text. Diffusion: mean squared error in the base's own
prediction type (ε or v), weighted by min-SNR-γ (Hang et al., 2023, arXiv:2303.09556). CLIP: InfoNCE from the EEG's
embedding to the picture's own against a bank of precomputed training embeddings drawn by key (seed, step), so it depends
on neither the number of ranks nor accumulation; equal pictures are no negatives. Or 1 - cosine to the own one alone.
Condition dropout zeroes context and pooled condition of whole samples, the unconditional side of guidance (Ho & Salimans,
2022, arXiv:2207.12598).

Text: squared error of the condition to the base's own words for the picture (``ttd.diffusion.text_targets``); those words
may also stand in for the EEG's condition before the UNet, and be all that is learned at first.

Every random number here belongs to a sample's global position: the same positions give the same losses in any order. (Dropout
is the loop's, keyed per micro-batch.)

Shapes: B batch, C channels, T times, h, w latent size, K embeddings in the bank, M of them drawn, F their width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ttd import seeding
from ttd.bridge.conditioner import Condition, EEGConditioner
from ttd.config import Config
from ttd.diffusion.base import Base
from ttd.diffusion.text_targets import split_states
from ttd.objectives.contrastive import TargetSpace

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class ConditionalDiffusionConfig(Config):
    condition_dropout: float = 0.1
    """Share of training samples that are denoised without a condition; 0 makes guidance meaningless."""
    min_snr_gamma: float | None = 5.0
    """Cap γ of the signal-to-noise weight; null weighs all noise levels alike."""
    clip_weight: float = 0.5
    """Weight of the CLIP loss beside the diffusion loss."""
    clip_loss: Literal["infonce", "cosine"] = "infonce"
    """``cosine``: DreamDiffusion's, 1 − the cosine to the picture's own embedding, without any negative; taken here in the space
    of the alignment, where pictures are told apart, the original's on the embeddings as they are. The share whose own target is
    the nearest is told either way."""
    n_negatives: int = 1024
    """Training embeddings M that stand against a sample's own, drawn anew each step."""
    text_weight: float = Field(default=0.0, ge=0)
    """Weight of the squared error of context and pooled condition to the base's own words for the picture (target ``text``),
    in units of their variance. Needs as many queries as the captions have tokens."""
    text_only_steps: int = Field(default=0, ge=0)
    """Steps at the start that learn those words alone, without the UNet: far cheaper than learning them through it."""
    words_share: float = Field(default=0.0, ge=0, le=1)
    """Share of training samples whose UNet is given those words instead of the EEG's condition: the adapters learn the look of
    the study without unlearning what a condition means, which uncertain conditions would teach them."""
    gradient_checkpointing: bool | None = None
    """Recompute the UNet's activations in the backward pass: a third more time, a fraction of the memory. Null: where memory
    would not hold them (``ttd.diffusion.memory``)."""


def min_snr_weight(scheduler: DDPMScheduler, t: Tensor, gamma: float | None) -> Tensor:
    """Weight [B] of the squared error at noise levels t [B]: min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v."""
    if gamma is None:
        return torch.ones(len(t), device=t.device)
    alpha = scheduler.alphas_cumprod.to(t.device)[t]
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr)


def info_nce(predicted: Tensor, target: Tensor, bank: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE of predicted [B, F] to its own target [B, F] against a bank [M, F]; all rows of length 1.

    Bank rows equal to the own target are left out (the same picture is no negative).

    Returns:
        The mean loss, and the fraction whose own target is nearer than every other (chance: 1 / (M + 1)).
    """
    with torch.autocast(predicted.device.type, enabled=False):  # in bfloat16 similar pictures look equal
        own = (predicted * target).sum(-1, keepdim=True)  # [B, 1]
        same = target @ bank.T > 1 - 1e-5  # [B, M]
        others = (logit_scale * predicted @ bank.T).masked_fill(same, -torch.inf)
        logits = torch.cat([logit_scale * own, others], dim=1)
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, labels), (logits.argmax(1) == 0).float().mean()


class ConditionalDiffusion(nn.Module):
    """The one module that is trained: conditioner and UNet (frozen but for its adapters).

    Args:
        conditioner: EEG → condition.
        base: gives UNet, noise schedule and the scale of the latents; its VAE stays outside.
        space: where alignment compares embeddings.
        bank: CLIP embeddings [K, F] of the training pictures.
        global_batch_size: turns a position into a step, the key of the bank's draw.
        text_bank: text states [K, L·D + P] of the training pictures, for ``text_weight``: their spread is the unit.
        seed: of latents, noise levels, noise, condition dropout and bank.

    Raises:
        ValueError: the base predicts neither ε nor v.
    """

    def __init__(
        self,
        config: ConditionalDiffusionConfig,
        *,
        conditioner: EEGConditioner,
        base: Base,
        space: TargetSpace,
        bank: Tensor,
        global_batch_size: int,
        seed: int,
        text_bank: Tensor | None = None,
    ):
        super().__init__()
        prediction = base.noise_scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {prediction!r} of the base: can train epsilon and v_prediction")
        self.config, self.base, self.seed, self.global_batch_size = config, base, seed, global_batch_size
        self.conditioner, self.unet, self.space = conditioner, base.unet, space
        self.bank: Tensor
        self.register_buffer("bank", space(bank), persistent=False)
        self.text_spread: Tensor
        parts = () if text_bank is None else self._text(text_bank.float())
        spread = torch.tensor([float(part.std(0).square().mean()) for part in parts])
        self.register_buffer("text_spread", spread, persistent=False)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: "eeg" [B, C, T], "vae" moments [B, 8, h, w] and "vae.size-ids" [B, 6], "clip" [B, F],
        "position" [B], and, with ``text_weight``, "text" states [B, L·D + P]. In ``text_only_steps`` there is no "diffusion"."""
        positions = batch["position"].cpu()
        target = self.space(batch["clip"])  # [B, F], of length 1
        condition = self.conditioner(batch["eeg"])
        predicted = F.normalize(condition.clip.float(), dim=-1)
        clip, top1 = info_nce(predicted, target, self._negatives(positions), self.conditioner.clip_head.scale())
        if self.config.clip_loss == "cosine":  # the zero: every engine counts the same steps for the unused logit scale
            clip = 1 - (predicted * target).sum(-1).mean() + 0.0 * clip
        loss, told = self.config.clip_weight * clip, {"clip": clip, "clip_top1": top1}
        if self.config.text_weight:
            told["text"] = self._text_loss(condition, batch["text"].float())
            loss = loss + self.config.text_weight * told["text"]
        if not self.training or int(positions[0]) // self.global_batch_size >= self.config.text_only_steps:
            given = self._dropped(self._worded(condition, batch, positions), positions)
            told["diffusion"] = self._diffusion_loss(batch["vae"].float(), batch["vae.size-ids"], positions, *given)
            loss = loss + told["diffusion"]
        else:  # adapters get zero gradients, so that every engine counts the same steps for them and states are complete
            loss = loss + 0.0 * sum(p.sum() for p in self.unet.parameters() if p.requires_grad)
        return {"loss": loss} | {name: value.detach() for name, value in told.items()}

    def _text(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return split_states(states, context_dim=self.base.context_dim, pooled_dim=self.base.pooled_dim)

    def _text_loss(self, condition: Condition, states: Tensor) -> Tensor:
        """Mean squared error to the text states [B, L·D + P] over their variance, context and pooled alike; 2 at chance."""
        errors = [
            (own.float() - words).square().mean() / spread
            for own, words, spread in zip(condition[:2], self._text(states), self.text_spread, strict=True)
        ]
        return torch.stack(errors).sum()

    def _worded(self, condition: Condition, batch: dict[str, Tensor], positions: Tensor) -> Condition:
        """The condition, with the base's own words in ``words_share`` of the samples of a training batch."""
        if not self.training or not self.config.words_share:
            return condition
        drawn = seeding.rand(self.seed, "words", positions).lt(self.config.words_share).to(condition.pooled.device)
        context, pooled = self._text(batch["text"].to(condition.pooled))
        return condition._replace(
            context=torch.where(drawn[:, None, None], context, condition.context),
            pooled=torch.where(drawn[:, None], pooled, condition.pooled),
        )

    def _dropped(self, condition: Condition, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Context and pooled condition, zeros for the samples that are denoised without any."""
        context, pooled = condition.context, condition.pooled
        if self.training and self.config.condition_dropout:
            drawn = seeding.rand(self.seed, "condition dropout", positions)
            keep = drawn.ge(self.config.condition_dropout).to(context)  # [B]
            context, pooled = context * keep[:, None, None], pooled * keep[:, None]
        return context, pooled

    def _diffusion_loss(
        self, moments: Tensor, size_ids: Tensor, positions: Tensor, context: Tensor, pooled: Tensor
    ) -> Tensor:
        scheduler = self.base.noise_scheduler
        mean, logvar = moments.chunk(2, dim=1)  # [B, 4, h, w] each
        std = (0.5 * logvar.clamp(-30, 20)).exp()  # bounds of diffusers' DiagonalGaussianDistribution
        shape = tuple(mean.shape[1:])
        latents = self.base.scale(mean + std * seeding.randn(self.seed, "latents", positions, shape).to(mean))
        noise = seeding.randn(self.seed, "noise", positions, shape).to(mean)
        level = seeding.rand(self.seed, "noise level", positions) * scheduler.config.num_train_timesteps
        t = level.long().to(mean.device)  # [B]
        noisy = scheduler.add_noise(latents, noise, t)
        v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, t) if v else noise
        predicted = self.base.predict(noisy, t, context, pooled, size_ids)
        error = (predicted - target).square().mean(dim=(1, 2, 3))  # [B]
        return (min_snr_weight(scheduler, t, self.config.min_snr_gamma) * error).mean()

    def _negatives(self, positions: Tensor) -> Tensor:
        """The bank [M, F] of this step: all of it, or ``n_negatives`` drawn by key (seed, step)."""
        if len(self.bank) <= self.config.n_negatives:
            return self.bank
        step = int(positions[0]) // self.global_batch_size
        drawn = torch.randperm(len(self.bank), generator=seeding.torch_rng(self.seed, "bank", step))
        return self.bank[drawn[: self.config.n_negatives].to(self.bank.device)]
