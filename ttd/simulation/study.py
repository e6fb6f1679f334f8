"""The simulated study as a BIDS dataset on disk, read back like any other.

One recording per subject and part of the split (run 1 training, 2 validation, 3 test), so that no raw sample is shared
between parts. The signals are int16 BrainVision by pybv; the sidecars are written here, because mne-bids would convert
the signals to float32. A recording exists whole or not at all: it is written aside and renamed, its header last.

    <output_dir>/dataset_description.json  README  participants.tsv  config.yaml  fingerprint.json (last)
    <output_dir>/stimuli/<concept>/<image_id>.png   stimuli/scenes.json (seed, caption, description, labels per picture)
    <output_dir>/sub-01/eeg/sub-01_task-things_run-01_{eeg.vhdr,eeg.vmrk,eeg.eeg,eeg.json,channels.tsv,events.tsv}
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pybv
import yaml
from PIL import Image
from tqdm import tqdm

from ttd.config import UserError, to_yaml, write_json
from ttd.experiments.simulated import RECIPE, SimulatedConfig, fingerprint_of, is_finished
from ttd.seeding import key, numpy_rng
from ttd.simulation.brain import Brain, standardised_features
from ttd.simulation.render import labels, render
from ttd.simulation.scenes import Scene, caption, describe, draw_scene

LOOK = "study"
EDGE_S = 2.0
"""Background before the first and after the last trial of a recording."""

README = """This is a SIMULATION. No person was recorded.

Pictures of procedural scenes of coloured solids, and EEG made from their descriptions with MNE's three-shell spherical
forward model at the 63 electrodes of THINGS-EEG1 (Grootswagers et al., 2022), with 1/f background, alpha, mains hum,
sensor noise and blinks. Run 1 holds the training pictures, run 2 the validation pictures, run 3 the test pictures. No
picture occurs in two runs. The concept of a picture is colour and kind of its most visible solid; there are only 48 of
them, so the same concept occurs in several runs, with other scenes.

Made by shards/build_simulated.py; config.yaml holds the whole configuration.
"""


@dataclass(frozen=True)
class Stimulus:
    """One picture of the study."""

    image_id: str
    part: str
    scene: Scene
    concept: str
    words: dict[str, str]  # kind, colour, size and place of the most visible solid

    @property
    def file(self) -> str:
        """Path below ``stimuli/``."""
        return f"{self.concept}/{self.image_id}.png"


def draw_stimuli(config: SimulatedConfig) -> tuple[list[Stimulus], np.ndarray]:
    """All pictures of the study in the order train, validation, test, and their pixels uint8 [N, H, W, 3]."""
    scenes = {
        f"{part}-{i:04d}": draw_scene(key(config.seed, f"{config.scenes} scenes", part, i), config.n_solids)
        for part, settings in config.parts.items()
        for i in range(settings.n_images)
    }
    rendered = render(list(scenes.values()), look=LOOK, size=config.picture_size)
    stimuli = []
    for (image_id, scene), mask in zip(scenes.items(), rendered.mask, strict=True):
        words = labels(scene, mask)
        stimuli.append(Stimulus(image_id, image_id.split("-")[0], scene, f"{words['colour']}_{words['kind']}", words))
    return stimuli, rendered.image


def presentation_order(rng: np.random.Generator, n_images: int, repetitions: int) -> np.ndarray:
    """Which image each trial shows [n_images · repetitions]: every block shows each once, and none follows itself.

    Raises:
        ValueError: one image cannot be repeated without following itself.
    """
    if n_images < 2:
        raise ValueError(f"need at least 2 images, got {n_images}")
    blocks: list[np.ndarray] = []
    for _ in range(repetitions):
        block = rng.permutation(n_images)
        if blocks and block[0] == blocks[-1][-1]:
            block = np.roll(block, 1)
        blocks.append(block)
    return np.concatenate(blocks)


@dataclass(frozen=True)
class Session:
    """When which picture is shown in one recording: ``image`` [n] indexes the part's pictures, ``onset`` [n] samples.

    ``noise_run`` keys background and jitter; calibration draws its own.
    """

    run: int
    noise_run: int
    part: str
    image: np.ndarray
    onset: np.ndarray
    n_times: int


def plan_sessions(config: SimulatedConfig, subject: int) -> list[Session]:
    """The recordings of a subject, one per part."""
    sessions = []
    for run, (part, settings) in enumerate(config.parts.items(), start=1):
        rng = numpy_rng(config.seed, f"{config.scenes} order", subject, run)
        image = presentation_order(rng, settings.n_images, settings.repetitions)
        steps = config.onset_interval_s + rng.uniform(0, 1, len(image)) * config.onset_jitter_s
        onset = np.rint((EDGE_S + np.cumsum(steps) - steps[0]) * config.sfreq).astype(np.int64)
        n_times = int(onset[-1] + round(EDGE_S * config.sfreq))
        sessions.append(Session(run, run + (0 if config.scenes == "study" else 100), part, image, onset, n_times))
    return sessions


def write_study(config: SimulatedConfig) -> None:
    """Write the whole study below ``config.output_dir``; what an earlier, interrupted run finished is kept.

    Raises:
        UserError: the folder holds another study, or other files.
    """
    if is_finished(config):
        return
    _claim(config)
    root = config.output_dir
    for leftover in root.glob("sub-*/eeg/.partial-*"):
        shutil.rmtree(leftover)
    _write_description(config)
    stimuli = _write_stimuli(config)
    drives = {part: standardised_features([s.scene for s in stimuli if s.part == part]) for part in config.parts}
    seconds = config.n_subjects * sum(config.seconds(part) for part in config.parts)
    with tqdm(total=round(seconds), unit="s", desc="simulated EEG", disable=None) as bar:
        for subject in range(1, config.n_subjects + 1):
            brain = Brain(config.brain, seed=config.seed, subject=subject, sfreq=config.sfreq)
            for session in plan_sessions(config, subject):
                seen = [s for s in stimuli if s.part == session.part]
                _write_recording(config, brain, session, seen, drives[session.part])
                bar.update(round(session.n_times / config.sfreq))
    write_json(root / "fingerprint.json", {"fingerprint": fingerprint_of(config), "recipe": RECIPE})


def _claim(config: SimulatedConfig) -> None:
    """Make the folder this study's own, or refuse."""
    root, mine = config.output_dir, f"# recipe: {RECIPE}\n{to_yaml(config)}"
    held = root / "config.yaml"
    if held.exists():
        theirs = held.read_text(encoding="utf-8")
        old, new = yaml.safe_load(theirs), yaml.safe_load(mine)
        names = sorted(k for k in {*old, *new} - {"output_dir"} if old.get(k) != new.get(k))
        names += ["recipe"] if theirs.splitlines()[0] != mine.splitlines()[0] else []
        if names:
            raise UserError(
                f"output_dir: {root} holds another simulated study (different: {', '.join(names)}); "
                "give another output_dir or delete that folder"
            )
    elif root.exists() and any(p.name not in ("outcome.json", ".config.yaml.aside") for p in root.iterdir()):
        raise UserError(f"output_dir: {root} holds other files; give a new folder")
    root.mkdir(parents=True, exist_ok=True)
    _write_text(held, mine)


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.aside")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _tsv(path: Path, columns: dict[str, Any]) -> None:
    rows = zip(*columns.values(), strict=True)
    _write_text(path, "\n".join("\t".join(map(str, row)) for row in [tuple(columns), *rows]) + "\n")


def _write_description(config: SimulatedConfig) -> None:
    root = config.output_dir
    write_json(
        root / "dataset_description.json",
        {
            "Name": "Simulated",
            "BIDSVersion": "1.9.0",
            "DatasetType": "raw",
            "License": "CC0",
            "Authors": ["TTD, shards/build_simulated.py"],
            "GeneratedBy": [{"Name": "TTD", "Description": "simulation; no person was recorded"}],
            "Simulated": True,
        },
    )
    _write_text(root / "README", README)
    _write_text(root / ".bidsignore", "config.yaml\nfingerprint.json\noutcome.json\n")
    names = [f"sub-{s:02d}" for s in range(1, config.n_subjects + 1)]
    _tsv(root / "participants.tsv", {"participant_id": names, "species": ["simulated"] * len(names)})


def _write_stimuli(config: SimulatedConfig) -> list[Stimulus]:
    """Pictures first, ``scenes.json`` last: where it stands, all pictures do."""
    stimuli, images = draw_stimuli(config)
    folder = config.output_dir / "stimuli"
    if (folder / "scenes.json").is_file():
        return stimuli
    for stimulus, image in zip(tqdm(stimuli, desc="pictures", disable=None), images, strict=True):
        path = folder / stimulus.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    scenes = {
        s.image_id: {
            "file": s.file,
            "part": s.part,
            "concept": s.concept,
            "seed": s.scene.seed,
            "n_solids": config.n_solids,  # draw_scene(seed, n_solids) is this scene again
            "caption": caption(s.scene),
            "labels": s.words,
            "description": describe(s.scene),
        }
        for s in stimuli
    }
    write_json(folder / "scenes.json", {"simulated": True, "look": LOOK, "scenes": scenes})
    return stimuli


def _write_recording(
    config: SimulatedConfig, brain: Brain, session: Session, stimuli: list[Stimulus], drive: np.ndarray
) -> None:
    """One run with its sidecars, unless it is there already."""
    folder = config.output_dir / f"sub-{brain.subject:02d}" / "eeg"
    stem = f"sub-{brain.subject:02d}_task-things_run-{session.run:02d}"
    if (folder / f"{stem}_eeg.vhdr").exists():
        return
    partial = folder / f".partial-{stem}"
    partial.mkdir(parents=True)
    data = brain.record(drive[session.image], session.onset, session.n_times, run=session.noise_run)
    write_brainvision(
        partial, f"{stem}_eeg", data, brain.ch_names, config.sfreq, session.onset, resolution_uv=config.resolution_uv
    )

    seen = [stimuli[i] for i in session.image]
    n = len(seen)
    _tsv(
        partial / f"{stem}_events.tsv",
        {
            "onset": [f"{sample / config.sfreq:.6f}" for sample in session.onset],
            "duration": [config.duration_s] * n,
            "sample": session.onset.tolist(),
            "trial_type": [s.concept for s in seen],
            "stim_file": [s.file for s in seen],
            "image_id": [s.image_id for s in seen],
            "concept": [s.concept for s in seen],
            "part": [s.part for s in seen],
            "repetition": np.arange(n) // len(stimuli) + 1,  # every block shows each picture once
        },
    )
    c = len(brain.ch_names)
    _tsv(
        partial / f"{stem}_channels.tsv",
        {"name": brain.ch_names, "type": ["EEG"] * c, "units": ["µV"] * c, "status": ["good"] * c},
    )
    sidecar = {
        "TaskName": "things",
        "TaskDescription": "Simulated: pictures of coloured solids, shown one after the other",
        "SamplingFrequency": config.sfreq,
        "EEGReference": "average",
        "PowerLineFrequency": 50,
        "SoftwareFilters": "n/a",
        "EEGChannelCount": c,
        "EEGPlacementScheme": "10-10",
        "RecordingDuration": session.n_times / config.sfreq,
        "RecordingType": "continuous",
        "Manufacturer": "simulation",
        "Simulated": True,
    }
    write_json(partial / f"{stem}_eeg.json", sidecar)
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in sorted(partial.iterdir(), key=lambda p: p.suffix == ".vhdr"):  # the header last: with it the run exists
        path.replace(folder / path.name)
    partial.rmdir()


def write_brainvision(
    folder: Path,
    stem: str,
    data: np.ndarray,
    ch_names: tuple[str, ...],
    sfreq: float,
    onsets: np.ndarray,
    *,
    resolution_uv: float,
) -> None:
    """Write ``data`` [C, T] in µV as int16 BrainVision, each value rounded to the nearest step; ``data`` is changed.

    Raises:
        ValueError: a value lies outside what int16 holds at this resolution.
    """
    # pybv cuts towards zero, so half a step outward makes it round. In place: a recording is 200 MB.
    data += np.copysign(np.float32(resolution_uv / 2), data)
    data *= np.float32(1e-6)
    pybv.write_brainvision(
        data=data,
        sfreq=sfreq,
        ch_names=list(ch_names),
        ref_ch_names="average",
        fname_base=stem,
        folder_out=folder,
        events=np.stack([onsets, np.ones_like(onsets)], axis=1),
        resolution=resolution_uv,
        unit="µV",
        fmt="binary_int16",
    )


def read_scenes(root: Path) -> dict[str, dict]:
    """The ground truth of a written study per ``image_id``, as in ``stimuli/scenes.json``.

    Raises:
        UserError: the file is missing.
    """
    path = root / "stimuli" / "scenes.json"
    if not path.is_file():
        raise UserError(f"{path}: missing; build the study with shards/build_simulated.py")
    return json.loads(path.read_text())["scenes"]
