"""The image term of lifting: the field as the camera of the picture sees it, against the picture.

The signed distance becomes opacity along a ray as in NeuS (Wang et al., 2021, arXiv:2106.10689, eq. 13): between two samples
light is lost by the fall of a sigmoid of the distance, so a ray that enters a solid ends there and one that leaves it is not
stopped. The field has no light and the picture has, so colours are compared at unit length, which shading leaves as it is.

Letters: B pictures, R rays per picture, N samples per ray.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttd.geometry.camera import Camera
from ttd.geometry.sdf_network import Features, SDFNetwork

N_SAMPLES = 32  # 0.07 scene units apart; the thinnest solid, a small torus, is 0.19 thick
SHARPNESS = 50.0  # per scene unit: an edge is blurred over 0.02, half a pixel of 64 in the middle of the scene


def crossing(camera: Camera, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays with unit ``directions`` [..., 3] enter and leave the cube [-1, 1]^3: distances [...] from the eye.

    A ray that misses the cube leaves it where it enters it.
    """
    eye = directions.new_tensor(camera.eye)
    a, b = (-1 - eye) / directions, (1 - eye) / directions
    enter = torch.minimum(a, b).amax(-1).clamp(min=0)
    return enter, torch.maximum(torch.maximum(a, b).amin(-1), enter)


def see(network: SDFNetwork, features: Features, directions: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor]:
    """What rays from the eye meet: opacity [B, R] in [0, 1] and RGB times opacity [B, R, 3].

    Args:
        network, features: of the pictures; the field is that of ``network.query``.
        directions: unit vectors [B, R, 3].
        jitter: of the samples along each ray, [B, R] in [0, 1), in steps between two samples.
    """
    camera = network.config.camera
    enter, leave = (x[..., None] for x in crossing(camera, directions))
    along = (
        enter + (leave - enter) * (torch.arange(N_SAMPLES, device=directions.device) + jitter[..., None]) / N_SAMPLES
    )  # [B, R, N]
    points = directions.new_tensor(camera.eye) + along[..., None] * directions[..., None, :]
    distance, rgb = network.query(features, points.flatten(1, 2))
    distance, rgb = distance.view(along.shape), rgb.view(*along.shape, 3)
    lost = F.logsigmoid(SHARPNESS * distance).diff(dim=-1).clamp(max=0).cumsum(-1)
    left = torch.cat([torch.ones_like(lost[..., :1]), lost.exp()], dim=-1)  # light that is left at each sample
    share = left[..., :-1] - left[..., 1:]
    colour = (share[..., None] * (rgb[..., :-1, :] + rgb[..., 1:, :]) / 2).sum(-2)
    return 1 - left[..., -1], colour


def reprojection(network: SDFNetwork, features: Features, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean squared errors of the rays of a batch, by name.

    ``silhouette``: opacity against ``covered`` [B, R] (1 on a solid). ``tint``: the colour at unit length against that of
    ``pixels`` [B, R, 3], over the rays with ``inner`` [B, R] = 1, whose pixel shows one solid alone.
    """
    opacity, colour = see(network, features, batch["directions"], batch["jitter"])
    error = (F.normalize(colour, dim=-1) - F.normalize(batch["pixels"], dim=-1)).square().mean(-1)
    inner = batch["inner"]
    return {
        "silhouette": (opacity - batch["covered"]).square().mean(),
        "tint": (error * inner).sum() / inner.sum().clamp(min=1),
    }
