"""Configuration of ``ttd/import_original.py``: a checkpoint of TTD-net or DreamDiffusion, and what its tensors do not tell."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ttd.config import Config


class ImportOriginalConfig(Config):
    output_dir: Path
    checkpoint: Path
    """TTD-net's ``checkpoint_best.pth`` (pretraining) or ``latest.pth`` (fine-tuning), or DreamDiffusion's ``checkpoint.pth``
    (pretraining); which one it is, its tensors tell. It is read without running what is in it."""
    ch_names: list[str] = Field(min_length=1)
    """Electrodes in the order of the data it was trained on."""
    sfreq: float = Field(gt=0)
    """Rate in Hz at which its filters saw the data: 160 for the original's pretraining, 512 for its fine-tuning."""
    n_times: int | None = Field(default=None, ge=1)
    """Samples of an epoch; a pretraining checkpoint tells it, a fine-tuning one does not (512 there)."""
    n_heads: int | None = Field(default=None, ge=1)
    """Heads of the encoder, where the checkpoint's configuration does not tell: 8 in the original's pretraining, 16 in its
    fine-tuning."""
    decoder_heads: int | None = Field(default=None, ge=1)
    """Heads of the decoder of pretraining. Without it those of the original: 8 in TTD-net's; in DreamDiffusion's as the
    checkpoint's configuration tells, 16."""
    resampler_heads: int = Field(default=8, ge=1)
    """Heads of the resampler of fine-tuning."""
    target: str = "clip"
    """Name of the pictures' embeddings it was trained towards: CLIP ViT-L/14 in the original."""
