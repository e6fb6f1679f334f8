"""Compute the fixed targets of a study's images once: CLIP embeddings, VAE moments, the base's words for a caption.

    accelerate launch shards/precompute_targets.py shards=data/shards/simulated base=weights/tiny clip=weights/tiny/clip
    accelerate launch shards/precompute_targets.py shards=data/shards/X models.dinov2=facebook/dinov2-base \
        targets=[dinov2.pooled,dinov2.8-mean]

Run the same command again: targets that were made from the same images by the same model are kept, and a run that was
stopped continues. Layers of one model are computed together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttd.config import FailedItemsError, Plan, UserError, fingerprint, run
from ttd.experiments.targets import SIZE_IDS, TargetsConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ttd.data.reader import ShardReader

    Encode = Callable[[list[int]], dict[str, np.ndarray]]


def check(config: TargetsConfig) -> Plan:
    from ttd.data.index import ShardIndex
    from ttd.diffusion.targets import find_missing
    from ttd.diffusion.vision_targets import find_problem

    plan = Plan()
    for model, targets in config.by_model.items():
        if model in config.models:
            field, problem = f"models.{model}", find_problem(config.models[model], [layer_of(t) for t in targets])
        else:
            field = "clip" if model == "clip" else "base"
            problem = find_missing(config.clip) if model == "clip" else find_missing(config.base, "vae")
        plan.problems += [f"{field}: {problem}"] if problem else []
    plan.problems = list(dict.fromkeys(plan.problems))
    try:
        n_images = ShardIndex.read(config.shards / "images").n_samples
        plan.notes.append(f"{n_images} images, targets: {', '.join(config.targets)}")
    except UserError as error:
        plan.problems.append(str(error))
    return plan


def layer_of(target: str) -> str:
    return target.partition(".")[2]


def captions_of(config: TargetsConfig, images: ShardReader) -> list[str]:
    """What the text encoders are told about each image."""
    from ttd.diffusion.text_targets import caption_of, read_captions

    known = read_captions(config.captions) if config.captions else {}
    metas = [images.meta(i) for i in range(len(images))]
    return [caption_of(meta["image_id"], meta.get("concept"), known) for meta in metas]


def source_of(config: TargetsConfig, target: str, images: ShardReader) -> dict[str, Any]:
    """What a target is made from: kept in its index, so that it is known again."""
    from ttd.diffusion import vision_targets
    from ttd.diffusion.targets import METHOD, identity

    model = target.partition(".")[0]
    parts = {"clip": (config.clip,), "vae": (config.base, "vae"), "text": (config.base, "text_encoder_2")}
    source = {"target": target, "images": images.index.fingerprint, "method": METHOD}
    if model in config.models:
        return source | {"model": identity(config.models[model]), "method": vision_targets.METHOD}
    source["model"] = identity(*parts[model])
    if model == "vae":
        source["image_size"] = config.image_size
    if target == "text":
        source["captions"] = fingerprint(captions_of(config, images))
    return source


def encoder(config: TargetsConfig, model: str, targets: list[str], images: ShardReader, device: torch.device) -> Encode:
    """From rows of the images to every target that ``model`` gives."""
    from ttd.diffusion.targets import ClipTargets, VaeTargets
    from ttd.diffusion.text_targets import TextTargets
    from ttd.diffusion.vision_targets import VisionTargets

    if model == "text":
        of_captions, captions = TextTargets(config.base, device=device), captions_of(config, images)
        return lambda rows: {"text": of_captions([captions[i] for i in rows])}
    if model == "vae":
        of_images = VaeTargets(config.base, image_size=config.image_size, device=device)
        return lambda rows: dict(zip(("vae", SIZE_IDS), of_images([images.image(i) for i in rows]), strict=True))
    if model == "clip":
        embed = ClipTargets(config.clip, device=device)
        return lambda rows: {"clip": embed([images.image(i) for i in rows])}
    layers = VisionTargets(config.models[model], [layer_of(target) for target in targets], device=device)
    return lambda rows: {f"{model}.{k}": v for k, v in layers([images.image(i) for i in rows]).items()}


def main(config: TargetsConfig) -> None:
    import shutil

    import numpy as np

    from ttd.data.reader import ShardReader
    from ttd.data.targets import is_current, pack_targets
    from ttd.engine.accelerator import make_accelerator
    from ttd.engine.items import WAIT, Item, ItemsConfig, run_items

    accelerator = make_accelerator(timeout=WAIT)
    images = ShardReader.open(config.shards / "images")
    starts = range(0, len(images), config.batch_size)
    blocks = [Item(f"{i:08d}", range(i, min(i + config.batch_size, len(images)))) for i in starts]
    for model, targets in config.by_model.items():
        sources = {target: source_of(config, target, images) for target in targets}
        folders = {target: config.shards / "targets" / target for target in targets}
        wanted = [target for target in targets if not is_current(folders[target], sources[target])]
        for target in targets:
            if target not in wanted:
                accelerator.print(f"{folders[target]}: there already")
        if not wanted:
            continue
        encode, aside = (
            encoder(config, model, wanted, images, accelerator.device),
            folders[targets[0]].parent / f".{model}",
        )

        def work(items: list[Item], places: list[Path], encode: Encode = encode) -> list[dict]:
            for item, place in zip(items, places, strict=True):
                for target, values in encode(list(item.payload)).items():
                    np.save(place / f"{target}.npy", values, allow_pickle=False)
            return [{} for _ in items]

        inputs = [[sources[target] for target in wanted], config.batch_size]
        done = run_items(
            blocks, work, aside, inputs=inputs, config=ItemsConfig(batch_size=1), accelerator=accelerator, desc=model
        )
        if done.failed:
            names = ", ".join(str(folders[target]) for target in wanted)
            raise FailedItemsError(f"{names}: not written, blocks of images failed: {done.summary()}")
        if accelerator.is_main_process:
            for target in wanted:
                files = (aside / block.key / f"{target}.npy" for block in blocks)
                pack_targets(
                    folders[target],
                    images,
                    (np.load(file, allow_pickle=False) for file in files),
                    source=sources[target],
                )
            shutil.rmtree(aside)
        accelerator.wait_for_everyone()
        for target in wanted:
            accelerator.print(f"{folders[target]}: {len(images)} targets")


if __name__ == "__main__":
    run(main, TargetsConfig, doc=__doc__, check=check)
