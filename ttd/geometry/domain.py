"""Whether a picture is of the kind that an embedded network was trained on.

A picture's features are the means of all activation maps of the network's encoder. Those of training pictures lie near
a plane of a few dimensions; the distance from it is the statistic (the residual of ViM, Wang et al., 2022,
arXiv:2203.10807). It is simple, and it knows only what the encoder sees: it tells photographs and blank or noisy
pictures from tables with solids, not one arrangement of solids from another.

Letters: N pictures, C features, R dimensions of the plane, S pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ttd.config import UserError
from ttd.geometry.sdf_network import SDFNetwork
from ttd.geometry.sdf_training import spoil
from ttd.seeding import torch_rng

logger = logging.getLogger(__name__)
FILE = "domain.safetensors"
N_DIMENSIONS = 16  # with 32, unseen scenes leave the plane; with 8, photographs come near it: benchmarks/lift_cost_*.md
QUANTILE = 0.999  # of the training pictures' distances
MARGIN = 1.25  # decoded pictures reach 0.85 of that quantile, photographs start at 1.74


class Domain:
    """The plane of the training pictures: ``mean`` [C], ``plane`` [R, C] with orthonormal rows, and the ``limit``."""

    def __init__(self, mean: Tensor, plane: Tensor, limit: float):
        self.mean, self.plane, self.limit = mean, plane, limit

    @classmethod
    def fit(cls, features: Tensor) -> Domain:
        """From the features [N, C] of training pictures."""
        x = features.double()
        mean = x.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov(x.T))
        domain = cls(mean.float(), vectors[:, -N_DIMENSIONS:].T.float().contiguous(), 0.0)
        domain.limit = MARGIN * torch.quantile(domain.distance(features), QUANTILE).item()
        return domain

    def distance(self, features: Tensor) -> Tensor:
        """Distance [N] of features [N, C] from the plane; above ``limit`` a picture is outside."""
        x = features - self.mean
        return (x - x @ self.plane.T @ self.plane).norm(dim=1)

    def save(self, folder: Path) -> None:
        """Write ``domain.safetensors`` beside the weights, and into it the hash of the weights that it belongs to."""
        facts = {"limit": self.limit, "weights": _hash(folder)}
        data = save({"mean": self.mean, "plane": self.plane}, metadata={"facts": json.dumps(facts)})
        (folder / f".{FILE}").write_bytes(data)
        (folder / f".{FILE}").replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Domain | None:
        """The domain of the weights in ``folder``; ``None``, and a line in the log, where none was measured.

        Raises:
            UserError: the file is damaged, or belongs to other weights.
        """
        path = folder / FILE
        if not path.is_file():
            logger.warning("%s: no %s, so pictures outside of the lifter's domain are not recognised", folder, FILE)
            return None
        remedy = "measure it anew by training with ttd/train_lift.py, or remove the file"
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
                domain = cls(file.get_tensor("mean"), file.get_tensor("plane"), float(facts["limit"]))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable domain ({error}); {remedy}") from error
        if facts["weights"] != _hash(folder):
            raise UserError(f"{path}: belongs to other weights than {folder / 'model.safetensors'}; {remedy}")
        return domain


@torch.no_grad()
def features(network: SDFNetwork, images: Tensor) -> Tensor:
    """Features [N, C] of pictures [N, 3, S, S] in [0, 1]: the means of all that the encoder computes of them."""
    return network.summary(images)


def measure(
    network: SDFNetwork, images: Tensor, *, seed: int, round_trip: Callable[[Tensor], Tensor] | None = None
) -> Domain:
    """The domain of a network from training pictures uint8 [N, 3, S, S], each as it is and spoilt as in training.

    ``round_trip``: the autoencoder that is among the spoiling, see ``ttd.geometry.sdf_training.spoil``.
    """
    parts = []
    for i, some in enumerate(images.split(128)):
        clean = some.float() / 255
        spoilt = spoil(clean, 1.0, torch_rng(seed, "domain", i), round_trip)
        parts += [features(network, clean), features(network, spoilt)]
    return Domain.fit(torch.cat(parts))


def _hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
