"""What the tiny describer is trained on, and its losses: the words of a description, and what each patch shows.

Cross-entropy on the tokens of the JSON alone learns the JSON at once and the picture late, so a second, dense loss asks
every visual token what its patch shows: nothing, the nearest or the farther solid, and of which kind, colour and size.
The head of that loss is thrown away after training. Pictures are spoilt as decoded ones are.

Letters: B pictures, S pixels, N visual tokens, L tokens of a description, D width of a visual token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from ttd.experiments.train_lift import DescriberTrainingConfig
from ttd.geometry.describer import refused_by_grammar
from ttd.geometry.description import to_text
from ttd.geometry.sdf_training import spoil
from ttd.seeding import key, torch_rng
from ttd.simulation.fit import fit
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.scenes import COLOURS, KINDS, SIZES, Scene, describe
from ttd.simulation.tiny_vlm import (
    ASSISTANT,
    END,
    IMAGE,
    IMAGE_SIZE,
    PATCH,
    START,
    STOP,
    TinyVLMConfig,
    grid_of,
    make_model,
    make_tokenizer,
    patches,
)  # fmt: skip

DENSE = {"slot": 3, "kind": len(KINDS), "colour": len(COLOURS), "size": len(SIZES)}
"""What a patch is asked, and how many answers there are; slot 0 is the table, 1 the nearest solid, 2 the farther one."""
DENSE_WEIGHT = 0.5  # beside 1 for the words, which are what is wanted
COVERED = 0.25  # of a patch; below it the patch counts as table
NUMBER_WEIGHT = 0.3  # an integer that is off by one is nearly right, and 14 of them would drown the words of an object
IGNORE = -100  # cross_entropy's word for "no target"


class DescriberPool(ScenePool):
    """Scenes and pictures, the tokens of their descriptions, and what each patch shows."""

    def __init__(self, seed: int, purpose: str, n_scenes: int):
        super().__init__(seed, purpose, n_scenes, IMAGE_SIZE)
        self.descriptions = [describe(scene) for scene in self.scenes]
        self.patch_labels = patch_labels(self.scenes, self.masks)
        tokenizer = make_tokenizer()
        texts = [to_text(d) + END for d in self.descriptions]
        refused = refused_by_grammar(tokenizer, texts)
        if refused:
            raise AssertionError(f"the grammar forbids {len(refused)} of {n_scenes} descriptions, first: {refused[0]}")
        tokens = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
        self.tokens = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=tokenizer.pad_token_id)

    def described(self, seed: int, step: int, batch_size: int) -> dict[str, Tensor]:
        """``image`` [B, 3, S, S] in [0, 1] of a step, by (seed, step), and what is asked of it (``asked``)."""
        rows, image = self.draw(batch_size, torch_rng(seed, "describer-batch", step))
        return {"image": image, **self.asked(rows)}

    def asked(self, rows: Tensor) -> dict[str, Tensor]:
        """``tokens`` [B, L] and ``patch_labels`` [B, N, 4] of rows [B] of the pool."""
        return {"tokens": self.tokens[rows], "patch_labels": self.patch_labels[rows]}


def patch_labels(scenes: list[Scene], mask: Tensor) -> Tensor:
    """Answers [B, N, 4] in the order of ``DENSE`` for masks int8 [B, S, S] that hold a solid's index, -1 on the table."""
    b, s, _ = mask.shape
    cells = mask.reshape(b, s // PATCH, PATCH, s // PATCH, PATCH).transpose(2, 3).reshape(b, -1, PATCH * PATCH)
    share = torch.stack([(cells == i).float().mean(-1) for i in range(2)], dim=-1)  # [B, N, 2]
    covered, shown = share.max(-1)
    table = torch.full((2, len(DENSE)), IGNORE)
    labels = torch.empty(b, cells.shape[1], len(DENSE), dtype=torch.long)
    for i, scene in enumerate(scenes):
        ranked = sorted(scene.solids, key=lambda s: -s.z)
        for j, solid in enumerate(scene.solids):
            answers = (1 + ranked.index(solid), KINDS.index(solid.kind), COLOURS.index(solid.colour))
            table[j] = torch.tensor([*answers, SIZES.index(solid.size)])
        labels[i] = table[shown[i]]
    background = torch.tensor([0, IGNORE, IGNORE, IGNORE])
    return torch.where((covered < COVERED)[..., None], background, labels)


class DescriberObjective(nn.Module):
    """The model and the head of the dense loss: ``forward(batch)`` returns losses by name, weighted by the term's ``weight``."""

    prompt: Tensor
    token_weight: Tensor

    def __init__(self, model: Qwen3VLForConditionalGeneration, *, weight: float = 1.0):
        super().__init__()
        self.model, self.weight = model, weight
        self.dense = nn.Linear(model.config.text_config.hidden_size, sum(DENSE.values()))
        tokenizer = make_tokenizer()
        n = model.config.vision_config.num_position_embeddings
        prompt = torch.tensor(tokenizer.convert_tokens_to_ids([START, *[IMAGE] * n, STOP, ASSISTANT]))
        vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        weights = [NUMBER_WEIGHT if token.lstrip("-").isdigit() else 1.0 for token in vocabulary]
        weights[tokenizer.pad_token_id] = 0.0
        self.register_buffer("prompt", prompt, persistent=False)
        self.register_buffer("token_weight", torch.tensor(weights), persistent=False)

    def forward(self, batch: dict[str, Tensor], *, words: bool = True) -> dict[str, Tensor]:
        """Losses of ``image`` [B, 3, S, S] in [0, 1], ``tokens`` [B, L] and ``patch_labels`` [B, N, 4].

        Without ``words`` only the vision tower is asked, at a third of the cost.
        """
        return self.describe(batch, self.look(batch["image"]), words=words)

    def look(self, images: Tensor) -> Any:
        """What the vision tower says of pictures [B, 3, S, S]."""
        core: Any = self.model.model
        return core.get_image_features(patches(images), grid_of(len(images)), return_dict=True)

    def describe(self, batch: dict[str, Tensor], seen: Any, *, words: bool) -> dict[str, Tensor]:
        """The losses of what the tower has ``seen``."""
        answers = self.dense(torch.stack(seen.pooler_output).float()).float().split(list(DENSE.values()), dim=-1)
        named = {
            name: F.cross_entropy(answer.transpose(1, 2), batch["patch_labels"][..., i], ignore_index=IGNORE)
            for i, (name, answer) in enumerate(zip(DENSE, answers, strict=True))
        }
        loss = DENSE_WEIGHT * torch.stack(list(named.values())).sum()
        if words:
            named["words"] = self._words(batch["tokens"], seen)
            loss = loss + named["words"]
        return {"loss": self.weight * loss} | {name: value.detach() for name, value in named.items()}

    def _words(self, tokens: Tensor, seen: Any) -> Tensor:
        """Weighted cross-entropy of the description, per weight that a picture decides."""
        core: Any = self.model.model
        b = len(tokens)
        ids = torch.cat([self.prompt.expand(b, -1), tokens[:, :-1]], dim=1)
        kinds = (ids[:1] == self.model.config.image_token_id).int()  # the same prompt everywhere: one row says it all
        positions, _ = core.get_rope_index(ids[:1], kinds, image_grid_thw=grid_of(1))
        hidden = core(
            input_ids=ids, position_ids=positions.expand(-1, b, -1), image_grid_thw=grid_of(b),
            mm_encoder_outputs={"image": seen}, use_cache=False,
        ).last_hidden_state[:, len(self.prompt) - 1 :]  # fmt: skip
        logits = self.model.lm_head(hidden).float()
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return (losses * self.token_weight[tokens]).sum() / (b * 10)


def fresh_model(seed: int) -> Qwen3VLForConditionalGeneration:
    """The tiny describer before training."""
    torch.manual_seed(key(seed, "describer-start"))
    model = make_model(TinyVLMConfig())
    model.set_attn_implementation("eager")  # on a CPU a third faster to train than the fused kernel at these sizes
    return model


def train(
    config: DescriberTrainingConfig,
    folder: Path,
    *,
    seed: int,
    n_scenes: int,
    log: Callable[[dict], None],
    weight: float = 1.0,
    round_trip: Callable[[Tensor], Tensor] | None = None,
    identity: str = "",
    save_every: int = 100,
) -> Qwen3VLForConditionalGeneration:
    """A describer from fresh weights, or from the states in ``folder``; ``weight`` is that of the loss."""
    model = fresh_model(seed)

    @cache
    def pool() -> DescriberPool:  # rendered only if a step is left to do
        return DescriberPool(seed, "describer-train", n_scenes)

    train_stages(
        DescriberObjective(model, weight=weight), lambda *drawn: pool().described(*drawn), config, folder, seed=seed,
        log=log, round_trip=round_trip, identity=identity, save_every=save_every,
    )  # fmt: skip
    return model


def train_stages(
    objective: DescriberObjective,
    draw: Callable[[int, int, int], dict[str, Tensor]],
    config: DescriberTrainingConfig,
    folder: Path,
    *,
    seed: int,
    log: Callable[[dict], None],
    round_trip: Callable[[Tensor], Tensor] | None,
    identity: str,
    save_every: int,
) -> None:
    """Train on ``draw(seed, step, batch size)``: first without the words, then with them; each stage resumes by itself."""
    for stage, fitting in (("sight", config.sight), ("words", config.words)):

        def loss_at(step: int, stage: str = stage, n: int = fitting.batch_size) -> tuple[Tensor, dict[str, float]]:
            batch = draw(key(seed, stage), step, n)
            batch["image"] = spoil(batch["image"], config.spoil, torch_rng(seed, f"spoil-{stage}", step), round_trip)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.mixed_precision):
                losses = objective(batch, words=stage == "words")
            loss = losses.pop("loss")
            return loss, {name: value.item() for name, value in losses.items()}

        fit(stage, objective, loss_at, fitting, folder, log=log, save_every=save_every, identity=identity)
