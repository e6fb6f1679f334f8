"""Pictures drawn during fine-tuning: they compare from step to step, are those of the weights, and change no bit of training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_finetune import ROOT, align, arguments, build_shards, finetune, picture, weights

from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.diffusion.base import BaseConfig, load_base
from ttd.diffusion.sampler import SamplerConfig, sample
from ttd.engine.tracking import read_log
from ttd.objectives.finetuned import load_finetuned
from ttd.objectives.sample_grid import SampleGrid
from ttd.seeding import key

SIZE = 32
ROWS = [0, 3, 7]  # the first, the middle and the last of eight validation samples
FEW = ("samples.n=3", "samples.sampler.steps=3")


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_base) -> Path:
    """A folder with shards/, align/ and base/."""
    folder = tmp_path_factory.mktemp("place")
    write_base(folder / "base")
    build_shards(folder / "shards")
    align(folder / "align")
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """Four steps with a grid after the second and the fourth."""
    assert finetune(place, "run", *FEW, "train.tracking.to=[tensorboard]") == 0
    return place / "run"


def grid(folder: Path, step: int) -> np.ndarray:
    return np.array(Image.open(folder / "samples" / f"step-{step:07d}" / "validation-grid.png"))


def cell(pixels: np.ndarray, row: int, column: int) -> np.ndarray:
    return pixels[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]


def drawn_by_export(folder: Path, place: Path) -> tuple[int, np.ndarray]:
    """The step that was exported, and a row of pictures drawn from the export as ``ttd/generate.py`` loads it."""
    (step,) = (step for step in (2, 4) if f"Step {step} of 4" in (folder / "export" / "README.md").read_text())
    base = load_base(BaseConfig(path=str(place / "base")), with_vae=True)
    conditioner, _ = load_finetuned(folder / "export", base)
    reader = ShardReader.open(place / "shards" / "validation")
    (batch,) = evaluation_batches(reader, DataConfig(shards=place / "shards"), len(ROWS), indices=ROWS)
    with torch.no_grad():
        condition = conditioner(batch["eeg"])
    seeds = [key(0, "sample grid", row) for row in ROWS]
    images = sample(base, condition.context, condition.pooled, seeds=seeds, config=SamplerConfig(steps=3))
    return step, (images * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2).numpy()


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for rounding."""
    return int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def told(folder: Path) -> list[dict]:
    """Lines of the log without what time of day or machine decide."""
    timed = {"time", "step_s", "data_wait_s", "samples_per_second"}
    return [
        {k: v for k, v in line.items() if k not in timed} for line in read_log(folder) if line["event"] != "samples"
    ]


def test_a_grid_is_kept_at_every_validation_and_given_to_the_trackers(run):
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-0000002", "step-0000004"]
    lines = [line for line in read_log(run) if line["event"] == "samples"]
    assert [(line["step"], line["files"]) for line in lines] == [
        (step, [f"samples/step-000000{step}/validation-grid.png"]) for step in (2, 4)
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("validation/grid")] == [2, 4]


def test_shown_pictures_stand_above_what_is_drawn_from_their_eeg(run, place):
    index = ShardReader.open(place / "shards" / "validation").index
    first, second = grid(run, 2), grid(run, 4)
    assert first.shape == second.shape == (2 * SIZE, len(ROWS) * SIZE, 3)
    for column, row in enumerate(ROWS):
        number = int(index.column("image_id")[row].removeprefix("image-"))
        assert (cell(first, 0, column) == 16 * number).all(), picture(number)[:8]
    assert np.array_equal(first[:SIZE], second[:SIZE])
    assert not np.array_equal(first[SIZE:], second[SIZE:])  # two steps on, the weights are others


def test_the_grid_is_what_the_weights_of_that_step_draw(run, place):
    step, pixels = drawn_by_export(run, place)
    assert near(grid(run, step)[SIZE:], pixels)
    (other,) = {2, 4} - {step}
    assert not near(grid(run, other)[SIZE:], pixels)


def test_no_bit_of_training_depends_on_the_grids(run, place):
    """Not with dropout in the encoder either: that is what a spent random number would change."""
    for name, n in (("drawn", 3), ("none", 0)):
        more = ("conditioner.freeze=[]", "optim.ema_decay=0.5", f"samples.n={n}", "samples.sampler.steps=3")
        assert finetune(place, name, *more) == 0
    assert not (place / "none" / "samples").exists()
    assert (place / "drawn" / "samples" / "step-0000004" / "validation-grid.png").is_file()
    drawn, none = told(place / "drawn"), told(place / "none")
    assert drawn == none
    assert [line["step"] for line in drawn if line["event"] == "train"] == [1, 2, 3, 4]
    states = [weights(place / name / f"step-{step:07d}") for name in ("drawn", "none") for step in (4,)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_averaged_weights_draw_where_an_average_is_kept(run, place):
    """The export then holds the average, and what is exported is what drew."""
    assert finetune(place, "average", *FEW, "optim.ema_decay=0.5", "train.select=null") == 0
    assert finetune(place, "plain", *FEW, "train.select=null") == 0
    _, pixels = drawn_by_export(place / "average", place)
    assert near(grid(place / "average", 4)[SIZE:], pixels)
    assert not near(grid(place / "plain", 4)[SIZE:], pixels)


def test_a_resumed_run_draws_the_same_grids(run, place):
    assert finetune(place, "resumed", *FEW, "train.max_steps=2") == 0
    assert finetune(place, "resumed", *FEW) == 0
    for step in (2, 4):
        assert np.array_equal(grid(place / "resumed", step), grid(run, step))


def test_pictures_of_several_subjects_and_at_most_all_there_are(place):
    assert finetune(place, "many", "samples.n=50", "samples.sampler.steps=2", "train.max_steps=1") == 0
    assert grid(place / "many", 1).shape == (2 * SIZE, 8 * SIZE, 3)  # both subjects' four pictures


def test_rows_of_eight_with_white_where_none_is_left():
    class Untrained:
        class Base:
            vae_factor = 8

        base = Base()

    shown = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 4, 4)
    grids = SampleGrid(SamplerConfig(), eeg=torch.zeros(10, 1, 2), shown=shown, seeds=range(10))
    grids.draw = lambda objective: shown + 100  # type: ignore[method-assign]
    pixels = grids(Untrained())["grid"]  # type: ignore[arg-type]
    assert pixels.shape == (16, 32, 3)
    assert pixels[::4, ::4, 0].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7], [100, 101, 102, 103, 104, 105, 106, 107],
        [8, 9, *[255] * 6], [108, 109, *[255] * 6],
    ]  # fmt: skip


def test_one_epoch_picture_and_seed_each_are_needed():
    with pytest.raises(ValueError, match="3 epochs, 2 pictures and 3 seeds"):
        SampleGrid(SamplerConfig(), eeg=torch.zeros(3, 1, 2), shown=torch.zeros(2, 3, 4, 4), seeds=[0, 1, 2])


def test_without_pictures_the_start_is_refused_unless_none_are_drawn(place, capsys):
    shutil.copytree(place / "shards", place / "bare", ignore=shutil.ignore_patterns("images"))
    assert finetune(place, "refused", f"data.shards={place / 'bare'}", "samples.n=8") == 2
    assert "samples.n=8:" in (said := capsys.readouterr().err)
    assert "has no pictures to show beside them; build it, or set samples.n=0" in said
    assert finetune(place, "without", f"data.shards={place / 'bare'}", "samples.n=0", "train.max_steps=1") == 0


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_under_every_engine_two_ranks_draw_what_they_export(run, place, engine):
    name = f"two-{engine}"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", f"launch/{engine}.yaml", "--num_processes", "2", "--main_process_port", "0"]
    command += ["ttd/finetune.py", *arguments(place, name), *FEW]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TTD_"))}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads((place / name / "environment.json").read_text())["world_size"] == 2
    step, pixels = drawn_by_export(place / name, place)
    assert near(grid(place / name, step)[SIZE:], pixels)
    assert grid(place / name, 4).shape == grid(run, 4).shape
