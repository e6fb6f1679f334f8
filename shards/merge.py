"""Join the portions of a study, built subject by subject, into the shards that one build of the whole would have made.

    python shards/build_paired.py --config X.yaml only_subjects='["01"]' output_dir=data/X.subjects/01     # and so on
    python shards/merge.py inputs=data/X.subjects output_dir=data/X

Afterwards ``build_paired.py --config X.yaml output_dir=data/X`` finds its shards built, and the portions may be deleted. The
folder appears whole or not at all; running the same command again finds it and stops.
"""

from __future__ import annotations

from ttd.config import Plan, run
from ttd.data import merging, portions
from ttd.data.ingest import free_mb
from ttd.experiments.shards import MergeConfig
from ttd.pages import quality


def check(config: MergeConfig) -> Plan:
    """Look at every portion and at what they make up together; say what will be linked, copied and written."""
    plan = Plan()
    root, inputs = config.output_dir.resolve(), config.inputs.resolve()
    if inputs == root or inputs in root.parents:
        plan.problems.append(f"output_dir={config.output_dir}: lies in inputs={config.inputs}; give a folder beside it")
        return plan
    builds, problems = portions.find(config.inputs)
    if portions.is_merged(config.output_dir, builds):
        plan.notes.append(f"{config.output_dir}: already merged, nothing to do")
        return plan
    plan.problems += problems
    found, damaged = portions.read(builds) if builds else ([], [])
    plan.problems += damaged
    if not plan.problems:
        plan.problems += portions.problems(found)
    if plan.problems:
        return plan
    indexes = [index for portion in found for index in portion.parts.values()]
    shards_mb = sum(shard.size for index in indexes for shard in index.facts.shards) / 1e6
    pictures = merging.pictures(found)
    pictures_mb = sum(int(index.size[i].sum()) for index, i in pictures.values()) / 1e6
    linked, free = merging.same_disk(found, config.output_dir), free_mb(config.output_dir)
    need_mb = pictures_mb + (0 if linked else shards_mb)
    if need_mb > free:
        plan.problems.append(f"output_dir={config.output_dir}: needs {need_mb:.0f} MB, {free:.0f} MB are free")
    plan.notes.append(
        f"{len(found)} portions with {sum(map(len, indexes))} samples: {shards_mb:.0f} MB of shards to verify and "
        f"{'link' if linked else 'copy (they lie on another disk)'}, {len(pictures)} pictures of {pictures_mb:.0f} MB to write"
    )
    return plan


def main(config: MergeConfig) -> None:
    """Verify and link the tars, write the indexes over them, the split, the pictures and the quality page."""
    builds, _ = portions.find(config.inputs)
    if not portions.is_merged(config.output_dir, builds):
        from ttd.engine.tracking import progress, talk  # imports torch, which merged shards do not need

        talk()
        found, _ = portions.read(builds)
        samples = merging.merge(found, config.output_dir, progress)
        counts = ", ".join(f"{n} {part}" for part, n in samples.items())
        print(f"{config.output_dir}: samples {counts} of {len(found)} portions")
    print(f"quality: {quality.write(config.output_dir)}")


if __name__ == "__main__":
    run(main, MergeConfig, doc=__doc__, check=check)
