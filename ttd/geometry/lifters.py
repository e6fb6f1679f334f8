"""All lifters by name: their configurations as one choice, and the lifter behind a configuration."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from ttd.geometry.depth_lifter import DepthConfig, DepthLifter
from ttd.geometry.external_lifter import ExternalConfig, ExternalLifter
from ttd.geometry.lifter import Lifter
from ttd.geometry.oracle_lifter import OracleConfig, OracleLifter
from ttd.geometry.sdf_lifter import SDFLifter, SDFLifterConfig
from ttd.geometry.shap_e import ShapEConfig, ShapELifter

AnyLifterConfig = SDFLifterConfig | ShapEConfig | DepthConfig | ExternalConfig | OracleConfig
LifterConfig = Annotated[AnyLifterConfig, Field(discriminator="name")]

LIFTERS: dict[type, Any] = {
    SDFLifterConfig: SDFLifter,
    ShapEConfig: ShapELifter,
    DepthConfig: DepthLifter,
    ExternalConfig: ExternalLifter,
    OracleConfig: OracleLifter,
}


def prepare_lifter(config: AnyLifterConfig, device: torch.device | str = "cpu") -> Lifter:
    """The lifter behind a configuration, its weights on ``device``.

    Raises:
        UserError: weights are missing, a worker does not start, or a licence is not accepted.
    """
    return LIFTERS[type(config)].prepare(config, device=device)
