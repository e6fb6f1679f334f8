"""Lifter and describer trained at once on one vision tower: the describer's, whose tokens the signed-distance head reads.

The loss is the sum of the three terms, each with its weight, and one optimiser moves everything. As the describer alone, the
pair first learns without the words. Each half is then saved as a model of its own, with its own copy of the tower.

Letters: B pictures, N visual tokens, E what the tower says of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from ttd.experiments.train_lift import DescriberTrainingConfig
from ttd.geometry.camera import Camera
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig
from ttd.geometry.sdf_training import SDFTrainingConfig, losses
from ttd.seeding import key
from ttd.simulation.describer_training import DescriberObjective, DescriberPool, fresh_model, train_stages
from ttd.simulation.render import EYE, HALF_FOV, TARGET
from ttd.simulation.tiny_vlm import IMAGE_SIZE

TOWER_FIELDS = (
    "hidden_size", "intermediate_size", "depth", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size",
    "out_hidden_size", "num_position_embeddings", "deepstack_visual_indexes",
)  # fmt: skip
"""What makes a tower, of a ``Qwen3VLVisionConfig``."""


class JointObjective(DescriberObjective):
    """The describer's objective and the lifter's on one look at the picture: ``forward(batch)`` returns losses by name.

    ``terms`` are the weights of ``representation``, ``image`` and ``description``; a term of weight 0 is not computed.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, terms: Mapping[str, float]):
        super().__init__(model, weight=terms["description"])
        tower = {name: getattr(model.config.vision_config, name) for name in TOWER_FIELDS}
        camera = Camera(eye=EYE, target=TARGET, half_fov=HALF_FOV)
        self.terms, self.lifter = terms, SDFNetwork(SDFNetworkConfig(camera=camera, image_size=IMAGE_SIZE, tower=tower))
        core: Any = model.model
        self.lifter.tower = core.visual

    def forward(self, batch: dict[str, Tensor], *, words: bool = True) -> dict[str, Tensor]:
        """Losses of a batch of ``DescriberObjective`` with the points and rays of ``ttd.geometry.sdf_training.losses``."""
        seen = self.look(batch["image"])
        tokens = torch.cat([torch.stack(part) for part in (seen.pooler_output, *seen.deepstack_features)], dim=-1)
        named = losses(self.lifter, self.lifter.read(tokens), batch, self.terms)
        if self.terms["description"]:
            told = self.describe(batch, seen, words=words)
            loss = named["loss"] + told.pop("loss")
            named |= {f"told_{name}": value for name, value in told.items()} | {"loss": loss}
        return named


def train_joint(
    config: DescriberTrainingConfig,
    sdf: SDFTrainingConfig,
    folder: Path,
    *,
    terms: Mapping[str, float],
    seed: int,
    n_scenes: int,
    log: Callable[[dict], None],
    round_trip: Callable[[Tensor], Tensor] | None = None,
    identity: str = "",
    save_every: int = 100,
) -> tuple[Qwen3VLForConditionalGeneration, SDFNetwork]:
    """Describer and lifter from fresh weights, or from the states in ``folder``; of ``sdf`` its points and rays alone count."""
    model = fresh_model(seed)
    torch.manual_seed(key(seed, "lifter-start"))
    objective = JointObjective(model, terms)
    n_rays = sdf.n_rays if terms["image"] else 0

    @cache
    def pool() -> DescriberPool:  # rendered only if a step is left to do
        return DescriberPool(seed, "joint-train", n_scenes)

    def draw(seed: int, step: int, n: int) -> dict[str, Tensor]:
        batch = pool().batch(seed, step, n, sdf.n_points, n_rays)
        return batch | pool().asked(batch["rows"])

    train_stages(
        objective, draw, config, folder, seed=seed, log=log, round_trip=round_trip, identity=identity,
        save_every=save_every,
    )  # fmt: skip
    return model, objective.lifter
