import json
import subprocess
import sys
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pytest
from PIL import Image

from ttd.config import UserError
from ttd.experiments.shards import BuildPairedConfig
from ttd.experiments.simulated import BrainConfig, PartConfig, SimulatedConfig, is_finished
from ttd.simulation import study as study_module
from ttd.simulation.brain import Brain, standardised_features
from ttd.simulation.render import labels, render
from ttd.simulation.scenes import draw_scene
from ttd.simulation.study import draw_stimuli, plan_sessions, presentation_order, read_scenes, write_study

ROOT = Path(__file__).parents[2]


def small(folder: Path, **changes) -> SimulatedConfig:
    parts = {
        "train": PartConfig(n_images=12, repetitions=3),
        "validation": PartConfig(n_images=4, repetitions=2),
        "test": PartConfig(n_images=6, repetitions=4),
    }
    return SimulatedConfig(**{"output_dir": folder, "n_subjects": 2, **parts, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> SimulatedConfig:
    config = small(tmp_path_factory.mktemp("study") / "bids")
    write_study(config)
    return config


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_mne_bids_reads_what_was_simulated_to_half_an_int16_step(written):
    stimuli, _ = draw_stimuli(written)
    brain = Brain(written.brain, seed=written.seed, subject=2, sfreq=written.sfreq)
    for session in plan_sessions(written, 2):
        path = mne_bids.BIDSPath(
            root=written.output_dir, subject="02", task="things", run=f"{session.run:02d}", datatype="eeg", suffix="eeg"
        )
        raw = mne_bids.read_raw_bids(path, verbose="ERROR")
        assert raw.info["sfreq"] == 250
        assert tuple(raw.ch_names) == brain.ch_names
        drive = standardised_features([s.scene for s in stimuli if s.part == session.part])[session.image]
        truth = brain.record(drive, session.onset, session.n_times, run=session.noise_run)
        assert np.abs(raw.get_data() * 1e6 - truth).max() <= 0.05 + 1e-3
        assert raw.annotations.onset == pytest.approx(session.onset / 250, abs=1e-6)
        assert raw.annotations.description.tolist() == [
            [s for s in stimuli if s.part == session.part][i].concept for i in session.image
        ]


def test_markers_and_event_table_name_the_same_samples(written):
    for vhdr in written.output_dir.rglob("*.vhdr"):
        raw = mne.io.read_raw_brainvision(vhdr, verbose="ERROR")
        events = vhdr.with_name(vhdr.name.replace("_eeg.vhdr", "_events.tsv")).read_text().splitlines()
        column = events[0].split("\t").index("sample")
        table = [int(row.split("\t")[column]) for row in events[1:]]
        markers = [o for o, d in zip(raw.annotations.onset, raw.annotations.description, strict=True) if "S" in d]
        assert np.rint(np.array(markers) * 250).astype(int).tolist()[-len(table) :] == table


def test_parts_share_no_picture_no_scene_and_no_recording(written):
    scenes = read_scenes(written.output_dir)
    seeds = [scene["seed"] for scene in scenes.values()]
    assert len(set(seeds)) == len(seeds) == 22
    for events in written.output_dir.rglob("*_events.tsv"):
        parts = {row.split("\t")[7] for row in events.read_text().splitlines()[1:]}
        assert len(parts) == 1


def test_the_stimuli_are_the_scenes_they_name(written):
    scenes = read_scenes(written.output_dir)
    for facts in list(scenes.values())[:5]:
        scene = draw_scene(facts["seed"], facts["n_solids"])
        rendered = render([scene], look="study", size=64)
        picture = np.asarray(Image.open(written.output_dir / "stimuli" / facts["file"]))
        assert np.array_equal(picture, rendered.image[0])
        assert facts["labels"] == labels(scene, rendered.mask[0])
        assert facts["concept"] == f"{facts['labels']['colour']}_{facts['labels']['kind']}"
        assert facts["caption"].count("a ") >= len(scene.solids)


def test_the_dataset_says_that_it_is_simulated(written):
    facts = json.loads((written.output_dir / "dataset_description.json").read_text())
    assert facts["Simulated"] is True
    assert "SIMULATION" in (written.output_dir / "README").read_text()


def test_every_block_shows_each_picture_once_and_none_follows_itself():
    for seed in range(50):
        order = presentation_order(np.random.default_rng(seed), 3, 10)
        assert (np.diff(order) != 0).all()
        assert (np.sort(order.reshape(10, 3), axis=1) == [0, 1, 2]).all()


def test_calibration_scenes_occur_in_no_study(tmp_path):
    shipped, calibration = (
        {s.scene.seed for s in draw_stimuli(small(tmp_path, scenes=space))[0]} for space in ("study", "calibration")
    )
    assert not shipped & calibration


def test_an_interrupted_study_is_completed_to_the_same_bytes(written, tmp_path, monkeypatch):
    config = small(tmp_path / "bids")
    real, calls = study_module.write_brainvision, []

    def dies_in_the_fourth(*arguments, **keywords):
        calls.append(1)
        real(*arguments, **keywords)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(study_module, "write_brainvision", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        write_study(config)
    assert not is_finished(config)
    assert len(list(config.output_dir.rglob("sub-*/eeg/*.vhdr"))) == 3
    write_study(config)
    assert len(calls) == 4 + 3
    assert is_finished(config)
    mine, theirs = bytes_of(config.output_dir), bytes_of(written.output_dir)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == ["config.yaml"]  # it names the folder


def test_another_study_in_the_folder_is_refused(written):
    with pytest.raises(UserError, match="holds another simulated study \\(different: seed\\)"):
        write_study(small(written.output_dir, seed=1))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        write_study(small(tmp_path))


def test_a_finished_study_is_recognised_without_torch(written, tmp_path):
    overrides = [
        f"{key}={json.dumps(value)}" for key, value in written.model_dump(mode="json").items() if value is not None
    ]
    code = (
        "import sys; sys.argv = ['build_simulated.py', *sys.argv[1:]]; import runpy\n"
        "try: runpy.run_path('shards/build_simulated.py', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert 'torch' not in sys.modules and 'mne' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *overrides], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr


def test_a_dry_run_states_the_costs_and_writes_nothing(tmp_path):
    command = [sys.executable, "shards/build_simulated.py", f"output_dir={tmp_path / 'bids'}", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "MB on disk" in done.stderr
    assert not (tmp_path / "bids").exists()


def paired(folder: Path) -> BuildPairedConfig:
    return BuildPairedConfig.model_validate(
        {"output_dir": folder / "paired", "study": {"name": "bids", "root": folder}, "preprocessing": {"sfreq": 125}}
    )


@pytest.mark.slow
def test_the_specific_snr_in_the_files_is_within_a_tenth_of_the_request(tmp_path):
    """Repetitions of a picture share nothing but its response: their covariance over pictures is its power."""
    still = BrainConfig(gain=0.4, subject_spread=0, common_jitter_s=0, component_jitter_s=0, amplitude_spread=0)
    parts = {"train": PartConfig(n_images=500, repetitions=4)}
    config = small(tmp_path / "bids", n_subjects=1, brain=still, **parts)
    write_study(config)
    (vhdr,) = config.output_dir.rglob("*run-01_eeg.vhdr")
    data = mne.io.read_raw_brainvision(vhdr, verbose="ERROR").get_data() * 1e6
    (session, *_) = plan_sessions(config, 1)
    order = np.argsort(session.image, kind="stable")
    epochs = np.stack([data[:, onset : onset + 150] for onset in session.onset[order]]).reshape(500, 4, 63, 150)
    residual = epochs - epochs.mean(axis=1, keepdims=True)
    noise = (residual**2).sum(axis=(0, 1)) / (500 * 3)  # [C, T]
    power = epochs.mean(axis=1).var(axis=0, ddof=1) - noise / 4
    ratio = np.sqrt(np.maximum(power.mean(axis=-1), 0)) / np.sqrt(noise.mean(axis=-1))
    assert np.sort(ratio)[-5:].mean() == pytest.approx(0.4, rel=0.1)


@pytest.mark.slow
def test_a_calibrated_study_decodes_from_its_files(tmp_path):
    """Gain found from recordings in memory; the level is then read from int16 files through the ingestion."""
    from ttd.experiments.simulated import CalibrationConfig
    from ttd.simulation.calibration import calibrate

    parts = {"train": PartConfig(n_images=300, repetitions=4), "test": PartConfig(n_images=100, repetitions=8)}
    study = small(tmp_path / "bids", validation=PartConfig(n_images=60, repetitions=4), **parts)
    config = CalibrationConfig(output_dir=tmp_path / "calibration", n_draws=2, tolerance=0.03, target=0.35)

    def colours(images: np.ndarray) -> np.ndarray:  # stands for the CLIP: coarse picture, squashed
        coarse = images.reshape(len(images), 4, 16, 4, 16, 3).mean(axis=(2, 4)).reshape(len(images), -1)
        return np.tanh(coarse / 128 - 0.6)

    said: list[str] = []
    found = calibrate(config, study, paired(tmp_path), colours, said.append)
    assert found["top1"] == pytest.approx(0.35, abs=0.03)
    assert found["files"]["top1"] == pytest.approx(0.35, abs=0.12)
    assert found["files"]["shuffled"] <= 0.05
    assert found["files"]["top1"] > found["files_4_repetitions"]["top1"] >= found["files_1_repetition"]["top1"] - 0.02
    assert not (config.output_dir / "check").exists()
