"""Score EEG → image retrieval and generated pictures on the test part, with intervals and controls.

    python ttd/eval.py --config configs/eval/demo.yaml
    accelerate launch ttd/eval.py --config configs/eval/demo.yaml     # networks look at pictures on all ranks

Opens the test part; the ledger beside the split manifest counts it. Writes metrics.json, table.md and table.tex, and for the
report items.jsonl (every picture's scores), retrieval.jsonl (what stands nearest each prediction) and occlusion.json (which times
and electrodes matter). Run the same command again to resume: what a network saw in a picture is kept.
"""

from __future__ import annotations

from PIL import Image

from ttd.config import Plan, fingerprint, run, write_json, write_lines
from ttd.data.index import ShardIndex
from ttd.data.splits import open_test
from ttd.diffusion.targets import find_missing
from ttd.engine.accelerator import make_accelerator
from ttd.engine.items import WAIT
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.evaluation.features import Features
from ttd.evaluation.occlusion import occlude
from ttd.evaluation.pictures import Items, mean_items, mean_picture, read_items, score_pictures, unlike_runs
from ttd.evaluation.retrieval import PARTS, TestPart, retrieve, unlike_targets
from ttd.experiments.eval import EvalConfig
from ttd.metrics.networks import find_missing as find_weights_missing
from ttd.metrics.published import published_markdown
from ttd.metrics.row import Row
from ttd.metrics.table import write_results


def check(config: EvalConfig) -> Plan:
    """Everything that is to be scored must be there."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    for name in PARTS:
        if not (config.shards / name / "index.json").is_file():
            plan.problems.append(f"shards: {config.shards / name} holds no shards; build them first")
    for folder in config.retrieval.runs:
        if not (folder / "export" / "encoder").is_dir():
            plan.problems.append(f"retrieval.run: {folder} holds no export/encoder; run ttd/align.py to its end")
    for name, folders in config.pictures.folders.items():
        for folder in folders:
            if not (folder / "manifest.jsonl").is_file():
                plan.problems.append(
                    f"pictures.runs.{name}: {folder} holds no manifest.jsonl; run ttd/generate.py first"
                )
    if config.pictures.runs:
        missing = find_missing(str(config.pictures.clip))
        plan.problems += [f"pictures.clip: {missing}"] if missing else []
        judge = config.pictures.judge
        if judge is not None and not (judge / "config.json").is_file():
            plan.problems.append(
                f"pictures.judge: {judge} holds no judge; train one with ttd/train_base.py, or give null"
            )
        for name in ("targets/clip", "images"):
            if not (config.shards / name / "index.json").is_file():
                plan.problems.append(
                    f"shards: {config.shards} lacks {name}; make them with shards/precompute_targets.py"
                )
    if not plan.problems:
        plan.problems += unlike_runs(config) + unlike_targets(config.retrieval.runs)
    for name in config.pictures.networks if config.pictures.runs else ():
        missing_weights = find_weights_missing(
            "alexnet_2" if name == "lpips" else name, config.pictures.network_weights
        )
        plan.problems += [f"pictures.networks: {missing_weights}"] if missing_weights else []
    if not config.retrieval.run and not config.pictures.runs:
        plan.problems.append("retrieval.run or pictures.runs: nothing to score; name an alignment or a generation run")
    plan.notes.append("evaluation: opens the test part once; about a minute on two cores for the demo, 1 GB of memory")
    return plan


def main(config: EvalConfig) -> None:
    accelerator = make_accelerator(timeout=WAIT)
    open_run_folder(config.output_dir, config, main=accelerator.is_main_process, world_size=accelerator.num_processes)
    manifests = read_items(config)
    items = [item for seeds in manifests.values() for one in seeds for item in one]
    mean: Items = []
    if items:
        if accelerator.is_main_process:
            with Image.open(items[0]["path"]) as picture:
                mean_picture(config, picture.width)
        accelerator.wait_for_everyone()
        mean = mean_items(items, config.output_dir / "mean_picture.png")
    features = Features(config, accelerator)
    features.make([item[name] for item in [*items, *mean] for name in ("path", "shown_path")])
    if accelerator.is_main_process:  # all else takes seconds
        write_table(config, manifests, mean, features)


def write_table(config: EvalConfig, manifests: dict[str, list[Items]], mean: Items, features: Features) -> None:
    """Open the test part, score everything, and leave the tables and what the report shows."""
    opened = open_test(config.shards, who="eval", config_hash=fingerprint(config))
    facts = ShardIndex.read(config.shards / "train").facts
    labels = {"study": facts.study, "channels": len(next(iter(facts.caps.values()))), "inductive": True}
    rows: list[Row] = []
    notes = []
    if config.retrieval.runs:
        part = TestPart(config)
        retrieved = retrieve(config, part, labels)
        rows += retrieved.rows
        write_lines(config.output_dir / "retrieval.jsonl", retrieved.nearest)
        if config.retrieval.occlusion:
            write_json(config.output_dir / "occlusion.json", occlude(config, part))
    else:
        notes.append("retrieval: not run (retrieval.run is not given)")
    if manifests:
        of_pictures, records = score_pictures(config, manifests, mean, features, labels)
        rows += of_pictures
        write_lines(config.output_dir / "items.jsonl", records)
    else:
        notes.append("generated pictures: not run (pictures.runs is empty)")
    heading = f"{facts.study}: test part" + (" (simulated study)" if facts.simulated else "")
    more = {"simulated": facts.simulated, "test_part_opened": opened, "not_run": notes, "study": facts.study}
    others = published_markdown(facts.study, sorted({row.metric for row in rows}))
    write_results(config.output_dir, rows, heading=heading, facts=more, published=others)
    print((config.output_dir / "table.md").read_text())
    print(f"{config.output_dir}: table.md, table.tex, metrics.json")


if __name__ == "__main__":
    run(main, EvalConfig, doc=__doc__, check=check)
