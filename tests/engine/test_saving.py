"""What a run leaves on the disk when writing fails, is slow, or the disk changes what was written."""

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_loop import Experiment, Objective, go, losses, same, tensors
from torch import nn

from ttd.config import StoppedError, UserError, run
from ttd.engine import state_files, writing
from ttd.engine.checkpoint import newest_checkpoint
from ttd.engine.state_files import damage

FILES = ("weights.safetensors", "moments.safetensors", "state.json")


class Doing(Objective):
    """An objective with 100 kB of weights that does something at one of its calls; two calls make a step."""

    def __init__(self, at=None, do=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.body = nn.Sequential(nn.Linear(6, 2500), nn.BatchNorm1d(2500), nn.GELU(), nn.Linear(2500, 2))
        self.at, self.do = at, do

    def forward(self, batch):
        if self.calls + 1 == self.at:
            self.do()
        return super().forward(batch)


def states(folder):
    return sorted(p.name for p in folder.iterdir() if "step-" in p.name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Nine steps with nothing in their way, and the state after the third."""
    folder = tmp_path_factory.mktemp("straight")
    go(folder, Doing(), max_steps=3)
    shutil.copytree(folder / "step-0000003", folder / "third")
    go(folder, Doing())
    return folder


@pytest.fixture
def small_files():
    """A call after which no file can grow beyond 40 kB, as on a full disk; undone afterwards."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        for thread in threading.enumerate():
            if thread.name == "states":
                thread.join()  # the state before it is written still
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("full_in_step", "left"), [(5, ["step-0000003"]), (8, ["step-0000003", "step-0000006"])])
def test_a_full_disk_ends_the_run_with_an_error_and_the_states_before_are_whole(
    straight, tmp_path, small_files, capsys, full_in_step, left
):
    objective = Doing(at=2 * full_in_step, do=small_files)
    with pytest.raises(SystemExit, match="2"):
        run(lambda config: go(tmp_path, objective), Experiment, doc=None, argv=[f"output_dir={tmp_path}"])
    failed = 6 if full_in_step == 5 else 9
    printed = capsys.readouterr().err
    assert f"step-000000{failed}: not saved: " in printed
    assert "File too large" in printed
    assert "earlier states are untouched" in printed
    assert states(tmp_path) == left
    assert newest_checkpoint(tmp_path) == tmp_path / left[-1]

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    go(tmp_path, Doing())
    assert losses(tmp_path) == losses(straight)
    assert same(tensors(tmp_path / "step-0000009"), tensors(straight / "step-0000009"))


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 800 kB: two states, not three."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_file_system_without_space_left_keeps_the_states_it_has(tiny_disk):
    with pytest.raises((UserError, OSError), match="No space left"):  # OSError: the log's next line came first
        go(tiny_disk, Doing())
    assert states(tiny_disk) == ["step-0000003", "step-0000006"]
    assert newest_checkpoint(tiny_disk) == tiny_disk / "step-0000006"


def test_training_goes_on_while_a_state_is_written_and_does_not_change_it(straight, tmp_path, monkeypatch):
    two_steps_later, seen = threading.Event(), []

    def slow(folder, snapshot):
        if folder.name == "step-0000003":
            seen.append(two_steps_later.wait(timeout=60))
        state_files.write_state(folder, snapshot)
        if folder.name == "step-0000003":
            shutil.copytree(folder, tmp_path / "third")

    monkeypatch.setattr(writing, "write_state", slow)
    go(tmp_path, Doing(at=10, do=two_steps_later.set))
    assert seen == [True]
    assert same(tensors(tmp_path / "third"), tensors(straight / "third"))
    assert same(tensors(tmp_path / "step-0000009"), tensors(straight / "step-0000009"))


def test_a_stopped_run_has_written_its_last_state(tmp_path, monkeypatch):
    def slow(folder, snapshot):
        threading.Event().wait(0.3)
        state_files.write_state(folder, snapshot)

    monkeypatch.setattr(writing, "write_state", slow)
    with pytest.raises(StoppedError):
        go(tmp_path, Doing(at=7, do=lambda: signal.raise_signal(signal.SIGTERM)))
    assert states(tmp_path) == ["step-0000003", "step-0000004"]
    assert damage(tmp_path / "step-0000004") is None


def test_an_error_in_training_waits_for_the_state_that_is_being_written(tmp_path, monkeypatch, caplog):
    def fail():
        failing.set()
        raise RuntimeError("in the model")

    def slow(folder, snapshot):
        assert failing.wait(timeout=60)
        state_files.write_state(folder, snapshot)
        raise OSError("after all")

    failing = threading.Event()
    monkeypatch.setattr(writing, "write_state", slow)
    with pytest.raises(RuntimeError, match="in the model"):
        go(tmp_path, Doing(at=9, do=fail))
    assert states(tmp_path) == ["step-0000003"]
    assert "step-0000003: not saved: after all" in caplog.text
    assert not [t for t in threading.enumerate() if t.name == "states"]


def test_a_state_that_reads_back_wrong_is_refused_before_an_older_one_is_removed(tmp_path, monkeypatch):
    publish = state_files._publish

    def bad_disk(aside, folder):
        publish(aside, folder)
        if folder.name == "step-0000009":
            flip(folder / "moments.safetensors", 5000, 1)

    monkeypatch.setattr(state_files, "_publish", bad_disk)
    message = "step-0000009: not saved: read back after writing: moments.safetensors is not what was written"
    with pytest.raises(UserError, match=message):
        go(tmp_path)
    assert states(tmp_path) == ["step-0000003", "step-0000006"]
    assert not any(damage(tmp_path / name) for name in states(tmp_path))


def test_a_weight_that_is_not_finite_reaches_no_state(tmp_path):
    def overflow():
        objective.body[1].running_var[3] = float("inf")  # no loss and no gradient shows it

    objective = Doing(at=10, do=overflow)
    with pytest.raises(UserError, match=r"step-0000006: not saved: not finite: body.1.running_var; earlier"):
        go(tmp_path, objective)
    assert states(tmp_path) == ["step-0000003"]


def test_a_run_that_went_back_behind_damaged_states_keeps_its_own(tmp_path):
    go(tmp_path)
    (tmp_path / ".step-0000004.partial").mkdir()
    flip(tmp_path / "step-0000009/state.json", 20, 1)
    with pytest.raises(StoppedError, match="stopped at step 7 of 9"):
        go(tmp_path, Objective(signal_at=1))
    assert states(tmp_path) == ["step-0000006", "step-0000007"]


def test_a_state_of_schema_1_is_refused_with_the_way_on_and_not_taken_for_damage(tmp_path):
    go(tmp_path, max_steps=3)
    path = tmp_path / "step-0000003/state.json"
    content = json.loads(path.read_text()) | {"schema": 1}
    del content["sha256"]  # they did not hash state.json
    path.write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(UserError, match="checkpoint schema 1, this version reads 2; finish the run"):
        go(tmp_path, max_steps=5)


def flip(path, at, by):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= by
    path.write_bytes(content)


@pytest.fixture
def two_states(tmp_path):
    """States after steps 3 and 6, and a copy of the second to put back."""
    go(tmp_path, max_steps=6)
    shutil.copytree(tmp_path / "step-0000006", tmp_path / "sound")
    return tmp_path, tmp_path / "step-0000006", tmp_path / "sound"


def test_each_of_200_changed_bytes_is_found_and_the_state_before_is_taken(two_states):
    folder, newest, sound = two_states
    rng = random.Random(0)
    for i in range(200):
        name = FILES[i % 3]
        flip(newest / name, rng.randrange(1 << 30), rng.randrange(1, 256))
        assert newest_checkpoint(folder) == folder / "step-0000003", name
        shutil.copy(sound / name, newest / name)
        assert newest_checkpoint(folder) == newest


@pytest.mark.parametrize("name", FILES)
def test_cut_missing_and_exchanged_files_are_found_and_the_state_before_is_taken(two_states, name):
    folder, newest, sound = two_states
    whole = (sound / name).read_bytes()
    for content in (*(whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1)), whole + b"\n", None):
        (newest / name).unlink()
        if content is not None:
            (newest / name).write_bytes(content)
        assert newest_checkpoint(folder) == folder / "step-0000003"
        (newest / name).write_bytes(whole)
    if name != "state.json":  # that one says itself of which step it is
        shutil.copy(folder / "step-0000003" / name, newest / name)
        assert newest_checkpoint(folder) == folder / "step-0000003"


@pytest.mark.slow
def test_runs_killed_at_20_instants_go_on_to_the_same_bits():
    script = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"
    done = subprocess.run([sys.executable, script, "20"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "R1 20 kills" in done.stdout
