"""Which encoder a configuration names, and its construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from ttd.encoders.base import Encoder, EncoderBase
from ttd.encoders.brain3d import Brain3DConfig, Brain3DEncoder
from ttd.encoders.braindecode_models import BraindecodeConfig, BraindecodeEncoder
from ttd.encoders.inceptsad import InceptSADConfig, InceptSADEncoder
from ttd.encoders.mae import MAEConfig, MAEEncoder
from ttd.encoders.nice import NiceConfig, NiceEncoder

KINDS: dict[str, tuple[type[EncoderBase], type[Encoder]]] = {
    "inceptsad": (InceptSADConfig, InceptSADEncoder),
    "nice": (NiceConfig, NiceEncoder),
    "mae": (MAEConfig, MAEEncoder),
    "brain3d": (Brain3DConfig, Brain3DEncoder),
    "braindecode": (BraindecodeConfig, BraindecodeEncoder),
}


def config_class(content: dict[str, Any]) -> type[EncoderBase]:
    """The configuration that ``content["name"]`` names; without a name, inceptsad.

    Raises:
        ValueError: there is no encoder of this name.
    """
    name = str(content.get("name", "inceptsad"))
    if name.partition(":")[0] not in KINDS:
        raise ValueError(f"no encoder {name!r}; there are inceptsad, nice, mae, brain3d and braindecode:<ClassName>")
    return KINDS[name.partition(":")[0]][0]


def _by_name(content: Any) -> Any:
    """Read a section of YAML as the one configuration it names, so that mistakes are told for that one alone."""
    return config_class(content).model_validate(content) if isinstance(content, dict) else content


EncoderConfig = Annotated[
    InceptSADConfig | NiceConfig | MAEConfig | Brain3DConfig | BraindecodeConfig, BeforeValidator(_by_name)
]


def construct(config: EncoderBase, *, n_times: int, sfreq: float, ch_names: Sequence[str]) -> Encoder:
    """The encoder of a configuration, with the weights it starts with."""
    (kind,) = (encoder for known, encoder in KINDS.values() if isinstance(config, known))
    return kind(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)


def build_encoder(
    config: EncoderBase, *, n_times: int, sfreq: float, ch_names: Sequence[str], n_chans: int | None = None
) -> Encoder:
    """Construct the encoder that ``config.name`` names, for data of ``n_times`` samples at ``sfreq`` Hz on ``ch_names``;
    published weights, where the configuration gives some, are loaded.

    Raises:
        ValueError: ``n_chans`` is given and differs from the number of names, or the encoder cannot read such data.
        UserError: its package is not installed, or published weights do not fit.
    """
    if n_chans is not None and n_chans != len(ch_names):
        raise ValueError(f"n_chans={n_chans}, but {len(ch_names)} channel names are given")
    encoder = construct(config, n_times=n_times, sfreq=sfreq, ch_names=ch_names)
    if isinstance(encoder, BraindecodeEncoder) and encoder.config.weights is not None:
        encoder.load_published(encoder.config.weights)
    return encoder
