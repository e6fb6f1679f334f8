import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ttd.config import Config, StoppedError, UserError
from ttd.engine.accelerator import EngineConfig, make_accelerator
from ttd.engine.checkpoint import load_weights, step_folder
from ttd.engine.loop import TrainConfig, train
from ttd.engine.schedules import OptimConfig
from ttd.engine.state_files import _state_json
from ttd.engine.tracking import read_log
from ttd.seeding import randn


class Experiment(Config):
    output_dir: Path = Path("run")
    seed: int = 0
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig(lr=1e-2, warmup_steps=2)


class Objective(nn.Module):
    signal = signal.SIGUSR1

    def __init__(self, signal_at: int | None = None, nan_at: int | None = None, dropout: float = 0.2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 2), nn.Dropout(dropout)
            )
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.calls, self.signal_at, self.nan_at = 0, signal_at, nan_at

    def forward(self, batch):
        self.calls += 1
        if self.calls == self.signal_at:
            os.kill(os.getpid(), self.signal)
        loss = (self.frozen(self.body(batch["eeg"])) - batch["eeg"][:, :2]).square().mean()
        return {"loss": loss * float("nan") if self.calls == self.nan_at else loss, "twice": 2 * loss.detach()}


class Positions:
    """Four samples per micro-batch, each drawn by its position alone."""

    def batches(self, samples_seen):
        while True:
            position = torch.arange(samples_seen, samples_seen + 4)
            yield {"position": position, "eeg": randn(0, "test", position, (6,))}
            samples_seen += 4


def go(folder, objective=None, *, validate=None, fingerprint="data", seed=0, batch=8, optim=None, **changes):
    config = TrainConfig(**({"max_steps": 9, "log_every": 1, "checkpoint_every": 3} | changes))
    experiment = Experiment(output_dir=folder, train=config, seed=seed, **({"optim": optim} if optim else {}))
    accelerator = make_accelerator(EngineConfig(), global_batch_size=batch, micro_batch_size=4)
    objective = objective or Objective()
    result = train(
        accelerator,
        objective,
        experiment.optim,
        Positions(),
        config,
        folder,
        resolved=experiment,
        seed=seed,
        fingerprint=fingerprint,
        validate=validate,
    )
    return result, objective


def losses(folder):
    return {r["step"]: r["loss"] for r in read_log(folder) if r["event"] == "train"}


def tensors(folder):
    return {f: load_file(folder / f) for f in ("weights.safetensors", "moments.safetensors")}


def same(a, b):
    return (
        a.keys() == b.keys()
        and all(a[f].keys() == b[f].keys() for f in a)
        and all(torch.equal(a[f][n], b[f][n]) for f in a for n in a[f])
    )


@pytest.mark.parametrize("by", [signal.SIGUSR1, signal.SIGINT])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, by):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Objective, "signal", by)
    go(tmp_path / "straight")
    with pytest.raises(StoppedError, match="stopped at step 5 of 9"):
        go(tmp_path / "broken", Objective(signal_at=9))  # two micro-batches per step
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.signal(signal.SIGINT, before) == signal.default_int_handler
    go(tmp_path / "broken")
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    assert same(tensors(tmp_path / "broken/step-0000009"), tensors(tmp_path / "straight/step-0000009"))


def test_two_states_and_the_best_are_kept_and_hold_no_frozen_weight(tmp_path):
    values = iter([1.0, 5.0, 2.0, 3.0, 4.0])

    def validate(module):
        assert not module.training
        assert not torch.is_grad_enabled()
        return {"top1": next(values)}

    result, objective = go(tmp_path, validate=validate, validate_every=2, select="top1", checkpoint_every=2)
    assert (result.step, result.samples_seen) == (9, 72)
    assert (result.best_step, result.metrics) == (4, {"top1": 5.0})
    assert objective.training
    assert sorted(p.name for p in tmp_path.glob("*step*")) == ["step-0000004", "step-0000008", "step-0000009"]
    names = set(load_file(tmp_path / "step-0000004/weights.safetensors"))
    assert {"body.0.weight", "body.1.running_var"} <= names
    assert not any(n.startswith("frozen") for n in names)
    load_weights(step_folder(tmp_path, 4), objective)
    assert torch.equal(
        objective.body[1].running_mean, load_file(tmp_path / "step-0000004/weights.safetensors")["body.1.running_mean"]
    )


def test_a_finished_run_started_again_does_nothing_and_a_longer_one_goes_on(tmp_path):
    go(tmp_path, max_steps=4)
    objective = Objective()
    assert go(tmp_path, objective, max_steps=4)[0].step == 4
    assert objective.calls == 0
    assert go(tmp_path, max_steps=6)[0].step == 6


def test_another_experiment_or_other_data_are_refused_by_name(tmp_path):
    go(tmp_path, max_steps=3)
    with pytest.raises(UserError, match=r"another experiment.*\n  seed: 0 there, 1 now"):
        go(tmp_path, max_steps=3, seed=1)
    with pytest.raises(UserError, match=r"other data .fingerprint data, now else"):
        go(tmp_path, max_steps=5, fingerprint="else")


def test_a_damaged_state_is_passed_over_with_a_message(tmp_path, caplog):
    go(tmp_path)
    whole = losses(tmp_path)
    path = tmp_path / "step-0000009/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    go(tmp_path)
    assert "step-0000009: damaged: weights.safetensors is not what was written" in caplog.text
    assert losses(tmp_path) == whole
    for folder in tmp_path.glob("step-*"):
        (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match="no state is intact"):
        go(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    with pytest.raises(
        UserError, match=r"step 5: the loss of the samples at positions \[36, 37, 38, 39\] is not finite"
    ):
        go(tmp_path, Objective(nan_at=10))
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-0000003"]
    assert all(v.isfinite().all() for v in load_file(tmp_path / "step-0000003/weights.safetensors").values())


def test_weights_that_do_not_fit_are_named(tmp_path):
    go(tmp_path, max_steps=1)
    other = Objective()
    other.body[3] = nn.Linear(8, 3)
    with pytest.raises(UserError, match=r"body.3.weight is \(2, 8\) but the model wants \(3, 8\)"):
        load_weights(step_folder(tmp_path, 1), other)


def test_a_state_of_another_schema_is_refused(tmp_path):
    go(tmp_path, max_steps=1)
    path = tmp_path / "step-0000001/state.json"
    content = json.loads(path.read_text()) | {"schema": 9}
    content.pop("sha256")
    path.write_bytes(_state_json(content))
    with pytest.raises(UserError, match="checkpoint schema 9, this version reads 2"):
        go(tmp_path, max_steps=2)


def test_accumulated_micro_batches_give_the_mean_loss_and_one_update(tmp_path):
    go(tmp_path, Objective(dropout=0.0), max_steps=1)
    objective = Objective(dropout=0.0)
    expected = [objective({"eeg": randn(0, "test", torch.arange(i, i + 4), (6,))})["loss"].item() for i in (0, 4)]
    first = read_log(tmp_path)[1]
    assert first["loss"] == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert first["twice"] == pytest.approx(2 * first["loss"], rel=1e-6)
    assert first["lr"] == pytest.approx(5e-3)
    assert first["samples_seen"] == 8
    moments = load_file(tmp_path / "step-0000001/moments.safetensors")
    assert moments["step.body.0.weight"].item() == 1
    norm = math.sqrt(sum(v.square().sum().item() for n, v in moments.items() if n.startswith("exp_avg."))) * 10
    assert norm == pytest.approx(
        min(1.0, first["grad_norm"]), rel=1e-4
    )  # the first moment is 0.1 × the clipped gradient


def test_a_selection_without_its_metric_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train.select='top1': there is no validation part"):
        go(tmp_path, select="top1")
    with pytest.raises(UserError, match=r"train.select='top1': validation gives top5"):
        go(tmp_path / "b", select="top1", validate=lambda module: {"top5": 1.0}, max_steps=1)


def test_a_secret_in_the_experiment_reaches_no_file_of_the_run_and_does_not_hinder_resuming(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-1234567")
    folder = tmp_path / "run-canary-1234567"  # the folder's own name is no file's content
    go(folder, max_steps=3)
    assert go(folder, max_steps=4)[0].step == 4
    assert "[redacted]" in (folder / "config.yaml").read_text()
    assert not [path for path in folder.rglob("*") if path.is_file() and b"canary-1234567" in path.read_bytes()]
