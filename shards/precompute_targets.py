"""Compute the fixed targets of a study's images once: CLIP embeddings and VAE moments, joined to the EEG by sha256.

    accelerate launch shards/precompute_targets.py shards=data/shards/simulated base=weights/tiny clip=weights/tiny/clip

Run the same command again: targets that were made from the same images by the same model are kept, and a run that was
stopped continues.
"""

from __future__ import annotations

from pathlib import Path

from ttd.config import FailedItemsError, Plan, UserError, run
from ttd.experiments.targets import TargetsConfig


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


def main(config: TargetsConfig) -> None:
    import shutil

    import numpy as np
    import torch
    from accelerate import Accelerator

    from ttd.data.reader import ShardReader
    from ttd.data.targets import is_current, pack_targets
    from ttd.diffusion.targets import METHOD, ClipTargets, VaeTargets, identity
    from ttd.engine.items import Item, ItemsConfig, run_items

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    images = ShardReader.open(config.shards / "images")
    starts = range(0, len(images), config.batch_size)
    blocks = [Item(f"{i:08d}", range(i, min(i + config.batch_size, len(images)))) for i in starts]
    for name in config.targets:
        folder, aside = config.shards / "targets" / name, config.shards / "targets" / f".{name}.blocks"
        model = identity(config.clip) if name == "clip" else identity(config.base, "vae")
        source = {"target": name, "images": images.index.fingerprint, "model": model, "method": METHOD}
        if name == "vae":
            source["image_size"] = config.image_size
        if is_current(folder, source):
            accelerator.print(f"{folder}: there already")
            continue

        encode: ClipTargets | VaeTargets
        if name == "clip":
            encode = ClipTargets(config.clip, device=accelerator.device)
        else:
            encode = VaeTargets(config.base, image_size=config.image_size, device=accelerator.device)

        def work(items: list[Item], folders: list[Path], encode: ClipTargets | VaeTargets = encode) -> list[dict]:
            for item, place in zip(items, folders, strict=True):
                np.save(place / "targets.npy", encode([images.image(i) for i in item.payload]), allow_pickle=False)
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
