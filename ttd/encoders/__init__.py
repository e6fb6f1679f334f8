"""Encoders: EEG [B, C, T] → tokens [B, N, E]. Build one from its configuration, save it, load it for another cap."""

from __future__ import annotations

from collections.abc import Sequence

from ttd.encoders.inceptsad import InceptSADConfig, InceptSADEncoder
from ttd.encoders.transfer import load_encoder, read_encoder_facts, save_encoder

__all__ = ["Encoder", "EncoderConfig", "build_encoder", "load_encoder", "read_encoder_facts", "save_encoder"]

Encoder = InceptSADEncoder  # a second encoder makes these two unions, told apart by ``name``
EncoderConfig = InceptSADConfig


def build_encoder(
    config: EncoderConfig, *, n_times: int, sfreq: float, ch_names: Sequence[str], n_chans: int | None = None
) -> Encoder:
    """Construct the encoder that ``config.name`` names, for data of ``n_times`` samples at ``sfreq`` Hz on
    ``ch_names``.

    Raises:
        ValueError: ``n_chans`` is given and differs from the number of names, or the epoch is shorter than one token.
    """
    if n_chans is not None and n_chans != len(ch_names):
        raise ValueError(f"n_chans={n_chans}, but {len(ch_names)} channel names are given")
    return InceptSADEncoder(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
