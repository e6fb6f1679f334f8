"""Write self-contained pair tars (EEG, picture, targets, meta.json) for object stores and for other tools.

    python shards/materialise.py --config configs/shards/materialise_simulated.yaml

Copy the folder anywhere; train from there with data.remote.url, or read it with webdataset. Run the same command again: what is
there already is kept.
"""

from __future__ import annotations

import shutil

from ttd.config import Plan, UserError, run
from ttd.experiments.materialise import MaterialiseConfig


def check(config: MaterialiseConfig) -> Plan:
    from ttd.data.materialise import Pairs

    plan = Plan()
    if config.output_dir.resolve() == config.shards.resolve():
        plan.problems.append(f"output_dir={config.output_dir}: is the folder that is read; give another one")
    for name in config.targets:
        if name in ("eeg", "meta"):
            plan.problems.append(f"targets: {name!r} is the name of another member")
    for part in config.parts:
        try:
            pairs = Pairs(config.shards, part, config.targets, images=config.images)
        except UserError as error:
            plan.problems.append(str(error))
            continue
        n = len(pairs.index)
        size = sum(len(value) if isinstance(value, bytes) else value.nbytes for value in _large(pairs.members(0)))
        left_out = f", {len(pairs.index.quarantined)} in quarantine left out" if pairs.index.quarantined else ""
        plan.notes.append(f"{part}: {n} samples{left_out}, about {n * (size + 4096) / 1e9:.2f} GB")
    return plan


def _large(members: dict) -> list:
    return [value for name, value in members.items() if name != "meta.json"]


def main(config: MaterialiseConfig) -> None:
    from tqdm import tqdm

    from ttd.data.materialise import Pairs, materialise

    for part in config.parts:
        pairs = Pairs(config.shards, part, config.targets, images=config.images)
        folder = config.output_dir / part
        steps = materialise(folder, pairs, samples_per_shard=config.samples_per_shard, seed=config.seed)
        n = sum(1 for _ in tqdm(steps, total=len(pairs.index), desc=part, disable=None))
        print(f"{folder}: {n} samples" if n else f"{folder}: there already")
    if (config.shards / "split.json").is_file():  # what the parts may share, for verify
        shutil.copy(config.shards / "split.json", config.output_dir / "split.json")


if __name__ == "__main__":
    run(main, MaterialiseConfig, doc=__doc__, check=check)
