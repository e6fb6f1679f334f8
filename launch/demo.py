"""The whole chain on the simulated study, step by step, each skipped when nothing it depends on has changed.

    make demo
    make demo-older                           # and the paths of earlier work as rows beside it, below runs/demo/older/
    python launch/demo.py --study-seed 11     # another simulated study, calibrated first, below runs/study-11/

A step's fingerprint covers its command, its configuration files, the project's sources, the shipped weights and the step
before it; ``runs/demo/.steps/<step>.json`` holds the one that finished. A killed demo goes on where it was. Nothing here
imports torch, so a demo that is up to date answers at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ttd.config import STOPPED, fingerprint, interruptible, run_step, write_json

ROOT = Path(__file__).resolve().parent.parent
STEPS_DIR = Path("runs/demo/.steps")
RESULTS, OLDER_RESULTS = Path("runs/demo"), Path("runs/demo/older")


@dataclass
class Step:
    """One command of the chain: its name, what it is for, the script and its experiment file."""

    name: str
    purpose: str
    script: str
    config: str
    overrides: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / self.script), "--config", str(ROOT / self.config), *self.overrides]

    @property
    def shown(self) -> str:
        return " ".join(["python", self.script, "--config", self.config, *self.overrides])


CHAIN = [
    Step("simulate", "EEG of 4 people looking at scenes", "shards/build_simulated.py", "configs/shards/simulated.yaml"),
    Step("shards", "recordings to paired shards", "shards/build_paired.py", "configs/shards/simulated_paired.yaml"),
    Step(
        "windows",
        "recordings to unlabelled shards",
        "shards/build_unlabelled.py",
        "configs/shards/simulated_unlabelled.yaml",
    ),
    Step(
        "targets",
        "CLIP embeddings and VAE moments",
        "shards/precompute_targets.py",
        "configs/shards/simulated_targets.yaml",
    ),
    Step("pretrain", "masked reconstruction", "ttd/pretrain.py", "configs/pretrain/demo.yaml"),
    Step("align", "encoder aligned with CLIP", "ttd/align.py", "configs/align/demo.yaml"),
    Step("finetune", "bridge and LoRA", "ttd/finetune.py", "configs/finetune/demo.yaml"),
    Step("finetune-plain", "bridge without LoRA", "ttd/finetune.py", "configs/finetune/demo_without_lora.yaml"),
    Step("generate", "EEG to pictures", "ttd/generate.py", "configs/generate/demo.yaml"),
    Step("generate-plain", "EEG to pictures, no LoRA", "ttd/generate.py", "configs/generate/demo_without_lora.yaml"),
    Step("eval", "metrics, chance levels, controls", "ttd/eval.py", "configs/eval/demo.yaml"),
    Step("lift", "pictures to meshes", "ttd/lift.py", "configs/lift/demo.yaml"),
    Step("report", "one page", "ttd/report.py", "configs/report/demo.yaml"),
]


OLDER = [
    Step("finetune-sd15", "Stable Diffusion 1.5 by eLDM", "ttd/finetune.py", "configs/finetune/demo_sd15.yaml"),
    Step("generate-plms", "EEG to pictures, PLMS", "ttd/generate.py", "configs/generate/demo_sd15_plms.yaml"),
    Step("generate-ddim", "EEG to pictures, DDIM", "ttd/generate.py", "configs/generate/demo_sd15_ddim.yaml"),
    Step("generate-direct", "EEG straight to pixels", "ttd/generate.py", "configs/generate/demo_direct_decoder.yaml"),
    Step("eval-older", "the same table with these rows", "ttd/eval.py", "configs/eval/demo_older.yaml"),
    Step("report-older", "one page", "ttd/report.py", "configs/report/demo_older.yaml"),
]
"""What earlier work does; after the chain."""


CALIBRATION_PATHS = {
    "study": "configs/shards/simulated.yaml",
    "paired": "configs/shards/simulated_paired.yaml",
    "clip": "weights/tiny/clip",
}


def content_hash(paths: list[Path]) -> str:
    """One hash of names and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def fingerprints(chain: list[Step]) -> dict[str, str]:
    """What each step depends on, in the order of the chain."""
    sources = [p for folder in ("ttd", "shards") for p in (ROOT / folder).rglob("*.py")]
    weights = [
        p for p in (ROOT / "weights").rglob("*") if p.suffix in (".safetensors", ".json") and p.name != "figures.json"
    ]
    before, out = content_hash(sources + weights), {}
    for step in chain:
        before = fingerprint([before, step.shown, (ROOT / step.config).read_text()])
        out[step.name] = before
    return out


def up_to_date(step: Step, wanted: str) -> bool:
    """Whether the step finished with this fingerprint."""
    marker = STEPS_DIR / f"{step.name}.json"
    return marker.is_file() and json.loads(marker.read_text())["fingerprint"] == wanted


def another_study(seed: int) -> list[Step]:
    """The chain for another study seed: the gain is calibrated first, since it moves with the anatomy."""
    calibrated = Path("runs/calibration/calibration.json")
    calibrate = [sys.executable, str(ROOT / "shards/calibrate_simulated.py"), f"output_dir={calibrated.parent}"]
    calibrate += [f"seed={seed}", "check_files=false"]
    calibrate += [f"{key}={ROOT / path}" for key, path in CALIBRATION_PATHS.items()]
    status = 0 if calibrated.is_file() else run_step(calibrate)
    if status:
        print(f"demo: calibration ended with status {status}; the same command goes on here", file=sys.stderr)
        sys.exit(status)
    gain = json.loads(calibrated.read_text())["gain"]
    simulate = replace(CHAIN[0], overrides=[f"seed={seed}", f"brain.gain={gain}"])
    return [simulate, *CHAIN[1:]]


def main() -> int:
    """Run what is not up to date; end with the table and the path of the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study-seed", type=int, help="simulate and read another study, below runs/study-SEED/")
    parser.add_argument("--older", action="store_true", help="the older paths as well, as rows of the same table")
    given = parser.parse_args()
    seed = given.study_seed
    env = {"OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1)), "TOKENIZERS_PARALLELISM": "false"}
    env["TRANSFORMERS_VERBOSITY"] = "error"  # it tells of processors that nothing here uses
    os.environ.update({**env, **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    chain, folder = CHAIN, ROOT
    if seed is not None:  # the paths of the experiments are relative: another folder is another demo
        folder = ROOT / f"runs/study-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "weights").exists():
            (folder / "weights").symlink_to(ROOT / "weights", target_is_directory=True)
    os.chdir(folder)
    if seed is not None:
        chain = another_study(seed)
    chain, results = (chain + OLDER, OLDER_RESULTS) if given.older else (chain, RESULTS)
    wanted, began = fingerprints(chain), time.monotonic()
    for number, step in enumerate(chain, 1):
        head = f"[{number}/{len(chain)}] {step.name}: {step.purpose}"
        if up_to_date(step, wanted[step.name]):
            print(f"{head} - up to date", flush=True)
            continue
        print(f"{head}\n    {step.shown}", flush=True)
        start = time.monotonic()
        status = run_step(step.command)
        if status:
            print(f"demo: step {step.name} ended with status {status}; the same command goes on here", file=sys.stderr)
            return status
        seconds = time.monotonic() - start
        write_json(STEPS_DIR / f"{step.name}.json", {"fingerprint": wanted[step.name], "seconds": round(seconds, 1)})
        print(f"    {seconds:.0f} s", flush=True)
    print(f"\n{(results / 'eval/table.md').read_text().rstrip()}\n\nall of it comes from a simulation")
    print(f"{time.monotonic() - began:.0f} s; report: {folder.relative_to(ROOT) / results / 'report/index.html'}")
    return 0


if __name__ == "__main__":
    try:
        with interruptible():
            sys.exit(main())
    except KeyboardInterrupt:
        print("demo: stopped; the same command goes on", file=sys.stderr)
        sys.exit(STOPPED)
