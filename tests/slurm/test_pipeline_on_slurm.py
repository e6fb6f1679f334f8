"""``slurm/pipeline.sh``: from raw recordings to pictures, a table and solids, by jobs that wait for each other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import environment, losses, outcome, without_slurm

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1200)]

# The demo's experiments, cut down to seconds.
SETTINGS = """
SUBJECTS="01 02"
PAIRED=({d}/paired --config configs/shards/simulated_paired.yaml study.root={bids})
TARGETS=(--config configs/shards/simulated_targets.yaml shards={d}/paired captions={bids}/stimuli/scenes.json)
WINDOWS=({d}/unlabelled --config configs/shards/simulated_unlabelled.yaml study.root={bids} windows.n_times=256
  windows.max_windows=40)
SHORT=(train.max_steps=4 train.validate_every=2 train.checkpoint_every=2 train.log_every=1)
PRETRAIN=({d}/pretrain --config configs/pretrain/demo.yaml data.shards={d}/unlabelled report.n_wiener=1 "${{SHORT[@]}}")
ALIGN=({d}/align --config configs/align/demo.yaml data.shards={d}/paired global_batch_size=8 "${{SHORT[@]}}")
FINETUNE=({d}/finetune --config configs/finetune/demo.yaml start.run={d}/align data.shards={d}/paired global_batch_size=8
  objective.text_only_steps=2 samples.n=0 "${{SHORT[@]}}")
GENERATE=({d}/generate --config configs/generate/demo.yaml finetune={d}/finetune shards={d}/paired n_items=4 candidates=1
  clip=null controls=[shuffled] sampler.steps=2 items.batch_size=2)
EVAL=({d}/eval --config configs/eval/demo.yaml shards={d}/paired study={bids} retrieval.run={d}/align
  "pictures={{runs: {{LoRA: {d}/generate, no LoRA: null}}, compare: []}}")
LIFT=({d}/lift --config configs/lift/demo.yaml generate={d}/generate study={bids} n_items=2 routes=[plain]
  scoring.n_controls=1)
declare -A options=(
  [pretrain]="--nodes=2 --gpus-per-node=2" [finetune]="--nodes=2 --gpus-per-node=2"
  [generate]="--array=0-1" [lift]="--array=0-1"
)
"""


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    """Two simulated people, 52 pictures."""
    folder = tmp_path_factory.mktemp("study") / "bids"
    sizes = [f"{part}.{name}" for part in ("train", "validation", "test") for name in ("n_images", "repetitions")]
    sizes = [f"{name}={n}" for name, n in zip(sizes, (24, 2, 8, 2, 10, 2), strict=True)]
    command = [sys.executable, "shards/build_simulated.py", "--config", "configs/shards/simulated.yaml"]
    subprocess.run(
        [*command, f"output_dir={folder}", "n_subjects=2", *sizes], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def words_of(settings: Path, name: str) -> list[str]:
    """One array of the settings, as bash reads it: the folder, then the rest."""
    script = f'. "{settings}"; printf "%s\\n" "${{{name}[@]}}"'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


def chain_without_slurm(settings: Path) -> None:
    """The same chain on this machine, with as many ranks where something is trained."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def alone(script: str, name: str, *more: str) -> None:
        done = subprocess.run(
            [sys.executable, script, *words_of(settings, name)[1 if more else 0 :], *more],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def folder(name: str) -> str:
        return f"output_dir={words_of(settings, name)[0]}"

    alone("shards/build_paired.py", "PAIRED", folder("PAIRED"))
    alone("shards/build_unlabelled.py", "WINDOWS", folder("WINDOWS"))
    alone("shards/precompute_targets.py", "TARGETS")
    for name, ranks in (("PRETRAIN", 4), ("ALIGN", 1), ("FINETUNE", 4)):
        run_dir, *words = words_of(settings, name)
        without_slurm(f"ttd/{name.lower()}.py", Path(run_dir), words, ranks=ranks)
    for name in ("GENERATE", "EVAL", "LIFT"):
        alone(f"ttd/{name.lower()}.py", name, folder(name))


def write_settings(folder: Path, bids: Path) -> Path:
    folder.mkdir()
    (folder / "settings.sh").write_text(SETTINGS.format(d=folder, bids=bids))
    return folder / "settings.sh"


def test_the_chain_ends_as_without_slurm_though_a_task_of_an_array_failed_at_first(submit, slurm, bids, tmp_path):
    settings = write_settings(tmp_path / "cluster", bids)
    env = submit.env | {"SBATCH_OUTPUT": str(submit.logs / "%j.out")}

    def pipeline() -> dict[str, list[str]]:
        printed = slurm.on("ctl", "slurm/pipeline.sh", str(settings), env=env, cwd=ROOT)
        jobs: dict[str, list[str]] = {}
        for name, job in re.findall(r"^(\w+) +job (\d+)", printed, re.M):
            jobs.setdefault(name, []).append(job)
        assert f"scancel {jobs['paired'][0]} " in printed
        return jobs

    signals = sorted((bids / "sub-02").rglob("*.eeg"))[-1]  # the test run, which the windows leave alone
    whole = signals.read_bytes()
    signals.write_bytes(whole[:1000])  # as a transfer that broke off
    jobs = pipeline()
    assert list(jobs) == [
        "paired",
        "merge",
        "targets",
        "windows",
        "pretrain",
        "align",
        "finetune",
        "generate",
        "eval",
        "lift",
    ]
    submit.wait(f"{jobs['paired'][0]}_0", 120)
    submit.wait(f"{jobs['paired'][0]}_1", 120, states=("FAILED",))
    for job in (jobs["targets"][0], jobs["align"][0], jobs["eval"][0]):
        submit.wait(job, 30, states=("CANCELLED",))
    assert str(signals) in "".join(path.read_text() for path in submit.logs.glob("*.out"))

    signals.write_bytes(whole)
    out_dir, *words = words_of(settings, "PAIRED")
    words = ["sbatch", "--parsable", "--array=1", "slurm/build_shards.sh", "build_paired", out_dir, "01 02", *words]
    task = slurm.on("ctl", *words, env=env, cwd=ROOT).strip()
    submit.wait(f"{task}_1", 120)
    jobs = pipeline()
    for name in ("pretrain", "align", "finetune", "generate", "eval", "lift"):
        for job in jobs[name]:
            for task in (f"{job}_0", f"{job}_1") if name in ("generate", "lift") else (job,):
                submit.wait(task, 300)

    expected = write_settings(tmp_path / "alone", bids)
    chain_without_slurm(expected)
    ours, theirs = tmp_path / "cluster", tmp_path / "alone"
    for name in ("pretrain", "finetune"):
        assert (environment(ours / name)["world_size"], environment(ours / name)["engine"]) == (4, "DEEPSPEED")
        assert losses(ours / name) == pytest.approx(losses(theirs / name), abs=1e-6, rel=0)
        assert len(losses(ours / name)) == 4
    for name in ("generate", "eval", "lift"):
        assert outcome(ours / name)["status"] == 0
    pictures = [path.relative_to(theirs) for path in sorted(theirs.glob("generate/items/*/picture.png"))]
    assert len(pictures) == 16  # 2 people, 4 pictures, each with its control
    assert all((ours / path).read_bytes() == (theirs / path).read_bytes() for path in pictures)
    assert (ours / "eval/table.md").read_text() == (theirs / "eval/table.md").read_text()
    assert (
        json.loads((ours / "lift/lift.json").read_text())["rows"]
        == json.loads((theirs / "lift/lift.json").read_text())["rows"]
    )

    # and the fine-tuning once more under DDP
    run_dir, *words = words_of(settings, "FINETUNE")
    job = submit(
        "--nodes=2", "--gpus-per-node=2", "slurm/finetune.sh", f"{run_dir}-ddp", *words, TTD_LAUNCH="launch/ddp.yaml"
    )
    submit.wait(job, 240)
    run_dir, *words = words_of(expected, "FINETUNE")
    without_slurm("ttd/finetune.py", Path(f"{run_dir}-ddp"), words, config="ddp")
    assert (environment(ours / "finetune-ddp")["world_size"], environment(ours / "finetune-ddp")["engine"]) == (
        4,
        "MULTI_CPU",
    )
    assert losses(ours / "finetune-ddp") == pytest.approx(losses(theirs / "finetune-ddp"), abs=1e-6, rel=0)
