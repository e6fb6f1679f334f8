"""A sweep of a miniature study: two subjects, twelve pictures; every fit is the real entry, run inside this process."""

from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import ttd.sweep
from ttd.config import StoppedError, load_config, run
from ttd.data.splits import SplitManifest, read_ledger
from ttd.data.writer import ShardWriter
from ttd.experiments.sweep import SweepConfig

ROOT = Path(__file__).parents[2]
SFREQ, CAP, SUBJECTS = 128.0, ["O1", "Oz", "O2", "Pz"], ("01", "02")
PARTS = {"train": range(12), "validation": range(12, 20), "test": range(20, 32)}


def sha(image: int) -> str:
    return hashlib.sha256(str(image).encode()).hexdigest()


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """Paired shards whose patterns follow from the targets, and the experiments of a sweep over them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((32, 6)).astype(np.float32)
    patterns = (targets @ rng.standard_normal((6, 4 * 96))).reshape(32, 4, 96)
    for part, images in PARTS.items():
        with ShardWriter(tmp_path / "shards" / part, kind="paired") as writer:
            for subject in SUBJECTS:
                for i in images:
                    eeg = (10 * (patterns[i] + rng.standard_normal((4, 4, 96)))).astype(np.float16)
                    meta = {
                        "study": "Simulated", "subject": subject, "cap": "cap", "sessions": ["1"] * 4, "runs": [part] * 4,
                        "onsets": [0.0, 1.0, 2.0, 3.0], "image_id": f"i{i}", "image_sha256": sha(i),
                    }  # fmt: skip
                    writer.write(f"s{subject}-{i}", {"eeg.npy": eeg, "meta.json": meta})
            writer.finish({
                "study": "Simulated", "part": part, "sfreq": SFREQ, "tmin": -0.1, "n_times": 96, "simulated": True,
                "caps": {"cap": CAP}, "statistics": {"cap": {"mean": [0.0] * 4, "std": [20.0] * 4}},
                "normalise": "subject",
            })  # fmt: skip
    with ShardWriter(tmp_path / "shards/targets/clip", kind="target") as writer:
        for i in range(32):
            writer.write(sha(i), {"target.npy": targets[i]})
        writer.finish({"study": "Simulated"})
    SplitManifest(study="Simulated", by="given", assignments={part: [] for part in PARTS}).write(tmp_path / "shards")
    train = {"max_steps": 3, "validate_every": 3, "checkpoint_every": 3}
    encoder = {"embed_dim": 8, "depth": 0, "n_filters": 2, "whiten": False}
    small = {"encoder": encoder, "global_batch_size": 8, "train": train}
    pretrain = small | {"objective": {"masking": {"span": 8}, "decoder": {"width": 16, "depth": 1, "n_heads": 2}}}
    (tmp_path / "align.yaml").write_text(yaml.safe_dump({"data": {"time_jitter": 1}, **small}))
    (tmp_path / "pretrain.yaml").write_text(
        yaml.safe_dump(pretrain | {"data": {"repetitions": "all"}, "report": {"n_wiener": 1}})
    )
    sweep = {
        "output_dir": "sweep", "shards": "shards", "seeds": [0, 1], "subjects": list(SUBJECTS), "repetitions": [4, 1],
        "ways": [6, 12], "n_resamples": 100, "n_draws": 2, "reference": "ridge",
        "settings": {
            "plain": {"name": "ridge", "half_whitened": False}, "ridge": {"name": "ridge"},
            "network": {"name": "encoder", "align": {"config": "align.yaml"}},
            "once": {
                "name": "encoder", "seeds": [5], "modes": ["within subject"], "pretrain": {"config": "pretrain.yaml"},
                "align": {"config": "align.yaml", "fields": {"objective": {"subject_layers": True}}},
            },
        },
        "pairs": [["once", "network"]],
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The commands that a sweep starts, each run inside this process."""
    commands: list[str] = []

    def inside(command):
        commands.append(str(command[-1]))
        monkeypatch.setattr(sys, "argv", [str(part) for part in command[1:]])
        try:
            runpy.run_path(str(command[1]), run_name="__main__")
        except SystemExit as ended:
            return ended.code
        raise AssertionError("an entry ends with a status")

    monkeypatch.setattr(ttd.sweep, "run_step", inside)
    return commands


def config(*overrides: str) -> SweepConfig:
    return load_config(SweepConfig, [Path("sweep.yaml")], overrides)


def test_one_command_fits_all_and_compares_them_in_one_table(place, started):
    ttd.sweep.main(config())
    assert len(started) == 2 * 3 + 2  # seeds × (all, without 01, without 02); a pretraining and its alignment
    content = json.loads((place / "sweep/table.json").read_text())
    found = {(f["setting"], f["mode"], f["key"]): f for f in content["figures"]}
    assert found["ridge", "within subject", "4/6/1"]["value"] > 0.6  # chance 1/6
    assert found["ridge", "subject left out", "4/6/1"]["value"] > 0.5
    assert found["ridge", "within subject", "4/6/1/control"]["value"] < 0.35
    assert found["network", "subject left out", "1/12/5"]["seeds"] == 2
    assert found["network", "subject left out", "1/12/5"]["sd"] is not None
    assert found["once", "within subject", "1/12/5"]["sd"] is None
    assert ("once", "subject left out", "4/6/1") not in found
    pairs = {(d["first"], d["second"], d["mode"]) for d in content["differences"]}
    assert pairs == {
        ("plain", "ridge", "within subject"), ("plain", "ridge", "subject left out"),
        ("network", "ridge", "within subject"), ("network", "ridge", "subject left out"),
        ("once", "ridge", "within subject"), ("once", "network", "within subject"),
    }  # fmt: skip
    table = (place / "sweep/table.md").read_text()
    assert "simulated study" in table
    assert "not which picture" in table  # the left-out subject's channels are whitened by its own recordings
    left_out = yaml.safe_load((place / "sweep/fits/network/without-02/seed-1/align/config.yaml").read_text())
    assert (left_out["seed"], left_out["data"]["leave_out"]) == (1, ["02"])
    once = yaml.safe_load((place / "sweep/fits/once/all/seed-5/align/config.yaml").read_text())
    assert once["pretrained"] == "sweep/fits/once/all/seed-5/pretrain"
    assert len(read_ledger(place / "shards")) == 1

    started.clear()
    ttd.sweep.main(config())
    assert started == []  # everything was finished, and the same table again
    assert (place / "sweep/table.md").read_text() == table

    ttd.sweep.main(config("settings.network.align.fields={train: {max_steps: 4}}", "subjects=[]"))
    assert len(started) == 2  # the changed setting alone
    assert "Subject left out" not in (place / "sweep/table.md").read_text()


def test_a_fit_that_stops_ends_the_sweep_and_the_same_command_goes_on_there(place, started, monkeypatch):
    with monkeypatch.context() as once:
        once.setattr(ttd.sweep, "run_step", lambda command: 75)
        with pytest.raises(StoppedError, match="fits/network/all/seed-0 align ended with status 75"):
            ttd.sweep.main(config())
    short = config("subjects=[]", "seeds=[0]", "settings.once.modes=[subject left out]")
    ttd.sweep.main(short)
    assert len(started) == 1


def test_a_job_array_has_one_task_per_fit_and_a_task_runs_its_own_alone(place, started, capsys):
    ttd.sweep.main(config("launch=slurm"))
    script = (place / "sweep/array.sh").read_text()
    assert "#SBATCH --array=0-6" in script
    subprocess.run(["bash", "-n", "sweep/array.sh"], check=True)
    assert 'python ttd/sweep.py --config "sweep/config.yaml" "task=$SLURM_ARRAY_TASK_ID"' in script
    asked = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert not any("partition" in line or "account" in line for line in asked)  # the site's, given to sbatch
    ttd.sweep.main(load_config(SweepConfig, [place / "sweep/config.yaml"], ["task=3"]))
    assert started == ["sweep/fits/network/without-01/seed-1/align.yaml"]
    assert not (place / "sweep/table.md").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("settings.network.align.fields.train.max_stepz=3", "settings.network.align.train.max_stepz: unknown key"),
        ("reference=best", "'best' is none of the settings network, once, plain, ridge"),
        ("shards=nowhere", "nowhere holds no shards"),
        ("task=7", "there are 7 fits"),
        ("before=[{script: shards/build.py, config: align.yaml}]", "shards/build.py is no script"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(place, capsys, more, words):
    with pytest.raises(SystemExit) as ended:
        run(ttd.sweep.main, SweepConfig, doc=None, check=ttd.sweep.check, argv=["--config", "sweep.yaml", more])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not (place / "sweep").exists()


def test_the_full_protocol_asks_for_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    protocol = load_config(SweepConfig, [ROOT / "configs/sweep/simulated_protocol.yaml"])
    assert ttd.sweep.check(protocol).problems == []
    counts = {name: sum(fit.setting == name for fit in protocol.fits()) for name in protocol.settings}
    assert counts == {
        "plain ridge": 0, "half-whitened ridge": 0, "nice": 21, "nice and ridge": 3, "inceptsad original": 1,
        "inceptsad default": 21, "inceptsad default without ridge": 3, "inceptsad default, pretrained": 21,
    }  # fmt: skip
    beside = {fit.setting for fit in protocol.fits() if fit.steps["align"]["objective"]["linear_ms"]}
    assert beside == {"nice and ridge", "inceptsad default", "inceptsad default, pretrained"}
    steps = next(fit for fit in protocol.fits() if fit.setting == "inceptsad original").steps["align"]
    assert (steps["encoder"]["embed_dim"], steps["encoder"]["depth"], steps["train"]["max_steps"]) == (128, 2, 1000)


@pytest.mark.slow
def test_a_sweep_of_real_processes_makes_the_same_table(place):
    command = [sys.executable, str(ROOT / "ttd/sweep.py"), "--config", "sweep.yaml", "subjects=[]", "seeds=[0]"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    content = json.loads((place / "sweep/table.json").read_text())
    assert {s["setting"]: s["fits"] for s in content["cpu_s"]} == {"network": 1, "once": 1}
    assert all(s["mean"] > 0 for s in content["cpu_s"])
