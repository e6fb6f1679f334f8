"""Encoders: EEG [B, C, T] → tokens [B, N, E]. Build one from its configuration, save it, load it for another cap."""

from __future__ import annotations

from ttd.encoders.base import Encoder
from ttd.encoders.build import EncoderConfig, build_encoder
from ttd.encoders.inceptsad import InceptSADConfig
from ttd.encoders.transfer import load_encoder, read_encoder_facts, save_encoder

__all__ = [
    "Encoder",
    "EncoderConfig",
    "InceptSADConfig",
    "build_encoder",
    "load_encoder",
    "read_encoder_facts",
    "save_encoder",
]
