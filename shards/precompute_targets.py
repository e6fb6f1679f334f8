"""Compute the fixed targets of a study's images once: CLIP embeddings, VAE moments, the base's words for a caption.

    accelerate launch shards/precompute_targets.py shards=data/shards/simulated base=weights/tiny clip=weights/tiny/clip

Run the same command again: targets that were made from the same images by the same model are kept, and a run that was
stopped continues.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ttd.config import FailedItemsError, Plan, UserError, fingerprint, run
from ttd.experiments.targets import TargetsConfig

if TYPE_CHECKING:
    import numpy as np

    from ttd.data.reader import ShardReader


def check(config: TargetsConfig) -> Plan:
    from ttd.data.index import ShardIndex
    from ttd.diffusion.targets import find_missing

    plan = Plan()
    missing = {"clip": find_missing(config.clip), "base": find_missing(config.base, "vae")}
    wanted = {"clip" if name == "clip" else "base" for name in config.targets}
    plan.problems += [f"{field}: {problem}" for field, problem in missing.items() if problem and field in wanted]
    try:
        n_images = ShardIndex.read(config.shards / "images").n_samples
        plan.notes.append(f"{n_images} images, targets: {', '.join(config.targets)}")
    except UserError as error:
        plan.problems.append(str(error))
    return plan


def _encode_images(encode: Callable[[list[bytes]], np.ndarray], images: ShardReader, rows: list[int]) -> np.ndarray:
    return encode([images.image(i) for i in rows])


def _encode_captions(encode: Callable[[list[str]], np.ndarray], captions: list[str], rows: list[int]) -> np.ndarray:
    return encode([captions[i] for i in rows])


def main(config: TargetsConfig) -> None:
    import shutil

    import numpy as np
    import torch
    from accelerate import Accelerator

    from ttd.data.reader import ShardReader
    from ttd.data.targets import is_current, pack_targets
    from ttd.diffusion.targets import METHOD, ClipTargets, VaeTargets, identity
    from ttd.diffusion.text_targets import TextTargets, caption_of, read_captions
    from ttd.engine.items import Item, ItemsConfig, run_items

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    images = ShardReader.open(config.shards / "images")
    starts = range(0, len(images), config.batch_size)
    blocks = [Item(f"{i:08d}", range(i, min(i + config.batch_size, len(images)))) for i in starts]
    for name in config.targets:
        folder, aside = config.shards / "targets" / name, config.shards / "targets" / f".{name}.blocks"
        parts = {"clip": (config.clip,), "vae": (config.base, "vae"), "text": (config.base, "text_encoder_2")}
        model = identity(*parts[name])
        source = {"target": name, "images": images.index.fingerprint, "model": model, "method": METHOD}
        if name == "vae":
            source["image_size"] = config.image_size
        captions: list[str] = []
        if name == "text":
            known = read_captions(config.captions) if config.captions else {}
            metas = [images.meta(i) for i in range(len(images))]
            captions = [caption_of(meta["image_id"], meta.get("concept"), known) for meta in metas]
            source["captions"] = fingerprint(captions)
        if is_current(folder, source):
            accelerator.print(f"{folder}: there already")
            continue

        encode: Callable[[list[int]], np.ndarray]
        if name == "text":
            of_captions = TextTargets(config.base, device=accelerator.device)
            encode = partial(_encode_captions, of_captions, captions)
        elif name == "clip":
            encode = partial(_encode_images, ClipTargets(config.clip, device=accelerator.device), images)
        else:
            of_images = VaeTargets(config.base, image_size=config.image_size, device=accelerator.device)
            encode = partial(_encode_images, of_images, images)

        def work(
            items: list[Item], folders: list[Path], encode: Callable[[list[int]], np.ndarray] = encode
        ) -> list[dict]:
            for item, place in zip(items, folders, strict=True):
                np.save(place / "targets.npy", encode(list(item.payload)), allow_pickle=False)
            return [{} for _ in items]

        inputs = [source, config.batch_size]
        done = run_items(
            blocks, work, aside, inputs=inputs, config=ItemsConfig(batch_size=1), accelerator=accelerator, desc=name
        )
        if done.failed:
            raise FailedItemsError(f"{folder}: not written, blocks of images failed: {done.summary()}")
        if accelerator.is_main_process:
            files = (aside / block.key / "targets.npy" for block in blocks)
            pack_targets(folder, images, (np.load(file, allow_pickle=False) for file in files), source=source)
            shutil.rmtree(aside)
        accelerator.wait_for_everyone()
        accelerator.print(f"{folder}: {len(images)} targets")


if __name__ == "__main__":
    run(main, TargetsConfig, doc=__doc__, check=check)
