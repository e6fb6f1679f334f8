import json

import pytest

from ttd.config import UserError
from ttd.engine.accelerator import Batches, EngineConfig, check_launch, make_accelerator, micro_batch


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        monkeypatch.delenv(name, raising=False)


def test_accumulation_is_derived_and_printed_as_a_product():
    accelerator = make_accelerator(EngineConfig(), global_batch_size=24, micro_batch_size=4)
    assert accelerator.ttd == Batches(world=1, micro=4, accumulation=6)
    assert str(accelerator.ttd) == "global batch 24 = 4 micro × 1 ranks × 6 accumulation"
    assert accelerator.gradient_accumulation_steps == 6


def test_the_environment_cannot_change_the_accumulation(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    (problem,) = check_launch(EngineConfig(), 24, 4)
    assert "gradient_accumulation_steps=8 of the launch file contradicts global_batch_size=24, which gives 6" in problem
    with pytest.raises(UserError, match="accumulation is derived"):
        make_accelerator(EngineConfig(), global_batch_size=24, micro_batch_size=4)


def test_a_batch_that_does_not_divide_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    (problem,) = check_launch(EngineConfig(), 32, 4)
    assert "global_batch_size=32 is not a multiple of 4 (micro batch) × 3 (ranks); choose a multiple of 12" in problem
    assert check_launch(EngineConfig(), 36, 4) == []
    assert micro_batch(36, None, 3) == 12


def test_half_precision_and_fsdp_of_the_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert ["fp16" in p or "FSDP" in p for p in check_launch(EngineConfig(), 8)] == [True, True]
    assert len(check_launch(EngineConfig(mixed_precision="bf16"), 8)) == 1


def test_a_micro_batch_fixed_in_the_deepspeed_file_is_taken(monkeypatch, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 2}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    assert micro_batch(32, None, 4) == 2
    assert micro_batch(32, 8, 4) == 8
    path.write_text("{")
    assert "DeepSpeed configuration cannot be read" in check_launch(EngineConfig(), 8)[0]


def test_processes_that_did_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # without the rest of a launcher's environment accelerate sees one process
    with pytest.raises((UserError, ValueError), match=r"launcher started 2 processes|MASTER_ADDR"):
        make_accelerator(EngineConfig(), global_batch_size=8)
