"""Two real processes through the files in ``launch/``; every test has a deadline."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ttd.engine.tracking import read_log

ROOT = Path(__file__).parents[2]
TOY = "tests/distributed/toy_train.py"
DEADLINE_S = 240

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(2 * DEADLINE_S)]


def launch(config: str | Path, output_dir: Path, *overrides: str, ranks: int = 2) -> str:
    """Run the toy on ranks through ``launch/<config>.yaml``, or another file; returns what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TTD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [str(config) if isinstance(config, Path) else f"launch/{config}.yaml"]
    command += ["--num_processes", str(ranks), "--main_process_port", "0"]
    averaged = [] if config == "zero3" else ["optim.ema_decay=0.7"]
    command += [TOY, f"output_dir={output_dir}", *averaged, *overrides]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=DEADLINE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end after {DEADLINE_S} s:\n{process.communicate()[0][-3000:]}")


def losses(folder: Path) -> list[float]:
    return [r["loss"] for r in read_log(folder) if r["event"] == "train"]


def seen(folder: Path, rank: int) -> list[list[int]]:
    return [json.loads(line) for line in (folder / f"seen-{rank}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Eight uninterrupted steps under DDP and ZeRO-2, two ranks, two micro-batches per step."""
    folders = {}
    for config in ("ddp", "zero2"):
        folders[config] = tmp_path_factory.mktemp(config)
        printed = launch(config, folders[config], "micro_batch_size=2")
        assert '"world": 2' in printed, printed[-3000:]
        assert "global batch 8 = 2 micro × 2 ranks × 2 accumulation" in printed
    return folders


def test_ddp_and_zero2_have_the_same_losses_on_two_ranks(runs):
    environments = {k: json.loads((f / "environment.json").read_text()) for k, f in runs.items()}
    assert {k: (e["world_size"], e["engine"]) for k, e in environments.items()} == {
        "ddp": (2, "MULTI_CPU"),
        "zero2": (2, "DEEPSPEED"),
    }
    ddp, zero2 = losses(runs["ddp"]), losses(runs["zero2"])
    assert len(ddp) == 8
    assert ddp == pytest.approx(zero2, rel=0, abs=1e-6)


def test_zero2_sends_each_updates_gradient_once_however_many_micro_batches_it_has(runs):
    """697 trainable weights; what DeepSpeed would do by itself is to send them after each of the two."""
    for rank in (0, 1):
        sent = json.loads((runs["zero2"] / f"sent-{rank}.json").read_text())
        assert [calls for calls, numbers in sent if numbers == 697] == [2, 4, 6, 8, 10, 12, 14, 16]


def test_each_rank_saw_other_samples_and_together_all_of_them(runs):
    for folder in runs.values():
        mine = [[p for step in seen(folder, rank) for p in step] for rank in (0, 1)]
        assert mine[0] == list(range(0, 64, 2))
        assert mine[1] == list(range(1, 64, 2))


@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_a_signal_to_one_rank_stops_both_and_the_resumed_run_is_the_same_bit_for_bit(runs, config, tmp_path):
    launch(config, tmp_path, "micro_batch_size=2", "stop_after=5")  # rank 1 alone, in the third step
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["status"], outcome["message"]) == (75, "stopped at step 3 of 8; the same command resumes")
    launch(config, tmp_path, "micro_batch_size=2")
    assert json.loads((tmp_path / "outcome.json").read_text())["status"] == 0
    assert losses(tmp_path) == losses(runs[config])
    for name in ("weights.safetensors", "moments.safetensors"):
        resumed, straight = (load_file(f / "step-0000008" / name) for f in (tmp_path, runs[config]))
        assert resumed.keys() == straight.keys()
        assert all(torch.equal(resumed[key], straight[key]) for key in resumed)


def test_a_state_that_rank_0_cannot_write_is_the_same_error_on_both_ranks(tmp_path):
    launch("ddp", tmp_path, "micro_batch_size=2", "full_after=1")  # the state after step 4; the ranks meet at step 8
    errors = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "step-0000004: not saved: " in errors[0]
    assert "File too large" in errors[0]
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["status"], outcome["message"]) == (2, errors[0])
    assert not [*tmp_path.glob("*step-*")]


@pytest.mark.parametrize(
    ("config", "what", "words"),
    [
        ("ddp", "gradient", "the gradient (of finite losses) is not finite"),
        # Pass 11 is the first of step 6: rank 1 has every second of the samples 40 to 47, two at a time.
        ("zero2", "loss", "the loss of the samples at positions [41, 43] is not finite"),
    ],
)
def test_what_is_not_finite_on_one_rank_stops_both_at_that_step(tmp_path, config, what, words):
    launch(config, tmp_path, "micro_batch_size=2", f"infinite=[{what}, 11]")
    errors = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"step 6: {words}; all ranks stopped")
    assert [p.name for p in tmp_path.glob("*step-*")] == ["step-0000004"]
    state = load_file(tmp_path / "step-0000004" / "weights.safetensors")
    assert all(value.isfinite().all() for value in state.values())


def test_a_state_of_two_zero2_ranks_goes_on_in_one_process(runs, tmp_path):
    """The checkpoint belongs to no engine: the last four steps again, from ZeRO-2's state, without a launcher."""
    shutil.copytree(runs["zero2"], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "step-0000008")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, TOY, f"output_dir={tmp_path}", "optim.ema_decay=0.7"]
    subprocess.run(command, cwd=ROOT, env=environment, timeout=DEADLINE_S, check=True)
    assert losses(tmp_path) == pytest.approx(losses(runs["zero2"]), rel=0, abs=1e-5)


@pytest.mark.slow
def test_without_accumulation_all_engines_have_equal_losses_and_zero1_and_zero2_equal_bits(tmp_path):
    """With accumulation ZeRO-2 sums over ranks first and over micro-batches then, DDP the other way round."""
    stage_1 = (ROOT / "launch/deepspeed/zero2.json").read_text().replace('"stage": 2', '"stage": 1')
    (tmp_path / "zero1.json").write_text(stage_1)
    launcher = (ROOT / "launch/zero2.yaml").read_text().replace("launch/deepspeed/zero2.json", f"{tmp_path}/zero1.json")
    (tmp_path / "zero1.yaml").write_text(launcher)
    states = {}
    for name, config in (("ddp", "ddp"), ("zero1", tmp_path / "zero1.yaml"), ("zero2", "zero2")):
        assert '"world": 2' in launch(config, tmp_path / name)
        files = (tmp_path / name / "step-0000008" / f"{file}.safetensors" for file in ("weights", "moments"))
        states[name] = {key: value for file in files for key, value in load_file(file).items()}
    assert losses(tmp_path / "ddp") == losses(tmp_path / "zero1") == losses(tmp_path / "zero2")
    trained = {f"body.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    moments = {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq", "step", "ema") for name in trained}
    assert set(states["ddp"]) == trained | moments | {"running"}  # nothing of the frozen layer
    for key, value in states["ddp"].items():
        assert torch.equal(states["zero1"][key], states["zero2"][key])
        assert torch.allclose(states["zero2"][key], value, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "ranks"), [("ddp", 2), ("ddp", 4), ("zero2", 4)])
def test_a_state_of_two_zero2_ranks_goes_on_under_another_engine_or_on_more_ranks(runs, tmp_path, config, ranks):
    shutil.copytree(runs["zero2"], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "step-0000008")
    assert f'"world": {ranks}' in launch(config, tmp_path, "micro_batch_size=2", ranks=ranks)
    assert losses(tmp_path) == pytest.approx(losses(runs["zero2"]), rel=0, abs=1e-6)


@pytest.mark.slow
def test_zero3_has_the_same_losses_and_resumes(runs, tmp_path):
    launch("zero3", tmp_path, "micro_batch_size=2", "stop_after=5")
    assert json.loads((tmp_path / "outcome.json").read_text())["status"] == 75
    launch("zero3", tmp_path, "micro_batch_size=2")
    assert json.loads((tmp_path / "outcome.json").read_text())["status"] == 0
    assert losses(tmp_path) == pytest.approx(losses(runs["zero2"]), rel=0, abs=1e-6)
