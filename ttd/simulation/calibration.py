"""Fix the gain of a simulated study so that the fair linear baseline decodes at a wanted level.

Anatomy and mapping move the decoding level by a factor of 2.6 at one and the same signal-to-noise ratio, so the gain
of a study seed is found by decoding: on calibration scenes that no study shows, through the study's own
preprocessing, with the pooled half-whitened ridge. Filters, epochs, baselines and bins are linear, so the recordings
are made once without and once with the image-specific response, and every gain is a weighted sum of the two. A noise
draw hands the background trials to other pictures. Rounding to int16 and rejection are not linear: the last check
goes through files.

Shapes: n images, R repetitions, C channels, K time bins, D numbers of the embedding.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
from tqdm import tqdm

from ttd.baselines.bins import time_bins
from ttd.baselines.ridge import Part, RidgeResult, pooled_half_whitened_ridge
from ttd.config import UserError
from ttd.eeg.epochs import cut, offsets
from ttd.eeg.preprocessing import preprocess
from ttd.eeg.studies.bids import BIDS, BIDSConfig
from ttd.experiments.shards import BuildPairedConfig
from ttd.experiments.simulated import CalibrationConfig, SimulatedConfig
from ttd.metrics.retrieval import cosine_similarity, top_k_in_random_galleries
from ttd.metrics.uncertainty import shuffled_control
from ttd.seeding import numpy_rng
from ttd.simulation.brain import Brain, standardised_features
from ttd.simulation.study import draw_stimuli, plan_sessions, write_study

BINS = {"start": 0.0, "stop": 0.6, "width_s": 0.024}
WAYS = 50
GAIN_RANGE = (0.005, 1.0)
MAX_STEPS = 12

Embed = Callable[[np.ndarray], np.ndarray]
"""Pictures uint8 [N, H, W, 3] → embeddings [N, D]."""


def clip_embedding(folder: Path) -> Embed:
    """The image embedding of a tiny CLIP's folder."""
    import torch

    from ttd.simulation.tiny_clip import load_clip

    model, _ = load_clip(folder)

    def embed(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return torch.cat([model.embed_images(chunk) for chunk in pixels.split(256)]).numpy()

    return embed


@dataclass(frozen=True)
class PartTrials:
    """Binned trials [n · R, C, K] of a subject and part: without the specific response, and it alone at gain 1."""

    rest: np.ndarray
    specific: np.ndarray
    by_image: np.ndarray  # [n, R] rows of each image's trials

    def at(self, gain: float, rng: np.random.Generator) -> np.ndarray:
        """Trials [n, R, C, K] at a gain, with a fresh draw of which background belongs to which trial."""
        return self.rest[rng.permutation(len(self.rest))][self.by_image] + gain * self.specific[self.by_image]


def _bins(raw: mne.io.BaseRaw, onsets_s: np.ndarray, paired: BuildPairedConfig) -> tuple[np.ndarray, list[int]]:
    """Preprocess a recording as the shards are, and bin its epochs [trials, C, K]; the trials that were kept."""
    sfreq = paired.preprocessing.sfreq
    clean = preprocess(raw, paired.preprocessing, exact_onsets=True)
    epochs = cut(clean, onsets_s.tolist(), paired.epochs, sfreq=sfreq)
    tmin = offsets(paired.epochs, sfreq)[0] / sfreq
    return time_bins(epochs.data, sfreq=sfreq, tmin=tmin, **BINS), epochs.kept


def simulate(
    study: SimulatedConfig, paired: BuildPairedConfig
) -> tuple[list[dict[str, PartTrials]], dict[str, np.ndarray]]:
    """Both halves of every subject's recordings, and the pictures uint8 [N, H, W, 3] of each part."""
    stimuli, images = draw_stimuli(study)
    rows = {part: [i for i, s in enumerate(stimuli) if s.part == part] for part in study.parts}
    drives = {part: standardised_features([stimuli[i].scene for i in rows[part]]) for part in study.parts}
    keep_all = paired.model_copy(update={"epochs": paired.epochs.model_copy(update={"reject_uv": None})})
    subjects: list[dict[str, PartTrials]] = []
    for subject in tqdm(range(1, study.n_subjects + 1), desc="calibration recordings", disable=None):
        brain = Brain(study.brain, seed=study.seed, subject=subject, sfreq=study.sfreq)
        info = mne.create_info(list(brain.ch_names), study.sfreq, "eeg")
        trials = {}
        for session in plan_sessions(study, subject):
            drive, onset, run = drives[session.part][session.image], session.onset, session.noise_run
            rest = brain.rest(session.n_times, run=run)
            rest += brain.respond(drive, onset, session.n_times, run=run, gain=0.0)
            halves = []
            for data in (rest, rest + brain.respond(drive, onset, session.n_times, run=run, common=0.0, gain=1.0)):
                raw = mne.io.RawArray(data * 1e-6, info, verbose="ERROR")
                bins, kept = _bins(raw, onset / study.sfreq, keep_all)
                assert len(kept) == len(onset), "a simulated trial was left out"
                halves.append(bins)
            by_image = np.argsort(session.image, kind="stable").reshape(study.parts[session.part].n_images, -1)
            trials[session.part] = PartTrials(halves[0], halves[1] - halves[0], by_image)
        subjects.append(trials)
    return subjects, {part: images[rows[part]] for part in study.parts}


def retrieval_of(result: RidgeResult, ways: int = WAYS) -> tuple[list[float], float]:
    """k-way top-1 of every subject, and the mean shuffled control."""
    scores, controls = [], []
    for predicted, gallery in zip(result.predictions, result.gallery, strict=True):
        similarity = cosine_similarity(predicted, gallery)
        score = lambda own, s=similarity: top_k_in_random_galleries(s, own, ways=ways)  # noqa: E731
        scores.append(float(score(np.arange(len(gallery))).mean()))
        controls.append(float(shuffled_control(score, np.arange(len(gallery)), seed=0).mean()))
    return scores, float(np.mean(controls))


@dataclass
class Calibrator:
    """Decoding level as a function of the gain, for one study seed."""

    subjects: list[dict[str, PartTrials]]
    targets: dict[str, np.ndarray]
    seed: int
    n_draws: int
    ways: int = WAYS

    def level(self, gain: float) -> tuple[float, float]:
        """Mean over draws and subjects of the k-way top-1 with all test repetitions, and its sd over draws."""
        draws = []
        for draw in range(self.n_draws):
            parts = {}
            for part, targets in self.targets.items():
                rng = [numpy_rng(self.seed, "calibration draw", draw, part, s) for s in range(len(self.subjects))]
                eeg = [subject[part].at(gain, g) for subject, g in zip(self.subjects, rng, strict=True)]
                parts[part] = Part(eeg, [targets] * len(eeg))
            scores, _ = retrieval_of(
                pooled_half_whitened_ridge(parts["train"], parts["validation"], parts["test"]), self.ways
            )
            draws.append(float(np.mean(scores)))
        return float(np.mean(draws)), float(np.std(draws))

    def find(self, target: float, tolerance: float, say: Callable[[str], None]) -> tuple[float, float, float]:
        """The gain (three digits) at which the level is ``target`` ± ``tolerance``, the level, its sd over draws.

        Raises:
            UserError: no gain in ``GAIN_RANGE`` reaches it.
        """
        low, high = GAIN_RANGE
        gain = 0.05
        for _ in range(MAX_STEPS):
            gain = float(f"{gain:.3g}")
            level, sd = self.level(gain)
            say(f"gain {gain:g}: {self.ways}-way top-1 {level:.3f} (sd over draws {sd:.3f})")
            if abs(level - target) <= tolerance:
                return gain, level, sd
            low, high = (gain, high) if level < target else (low, gain)
            # The level grows about with the 1.5th power of the gain there; never leave the bracket.
            guess = gain * (target / max(level, 0.02)) ** (1 / 1.5)
            gain = guess if low < guess < high else (low * high) ** 0.5
        raise UserError(
            f"target={target}: not reached by any gain in {GAIN_RANGE}; is {WAYS}-way retrieval possible at all?"
        )


def read_back(root: Path, paired: BuildPairedConfig, targets: dict[str, np.ndarray]) -> dict[str, Part]:
    """A written study as the ridge's parts, through the ingestion: BIDS, preprocessing, epochs (with rejection), bins.

    Pictures of which a subject lost trials make all others give up as many, so that arrays stay whole.
    """
    eeg: dict[str, list[np.ndarray]] = {part: [] for part in targets}
    for recording in tqdm(BIDS(BIDSConfig(root=root)).recordings(), desc="reading back", disable=None):
        events = recording.events()
        bins, kept = _bins(recording.raw(), np.array([event.onset_s for event in events]), paired)
        ids = np.array([events[i].image_id for i in kept])
        part = events[0].part
        assert part is not None
        groups = [np.flatnonzero(ids == image_id) for image_id in sorted({event.image_id for event in events})]
        fewest = min(len(group) for group in groups)
        eeg[part].append(bins[np.stack([group[:fewest] for group in groups])])
    return {part: Part(eeg[part], [targets[part]] * len(eeg[part])) for part in targets}


def calibrate(
    config: CalibrationConfig,
    study: SimulatedConfig,
    paired: BuildPairedConfig,
    embed: Embed,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Find the gain of ``config.seed`` and check it through files; everything found, for ``calibration.json``.

    Raises:
        UserError: the wanted level cannot be reached.
    """
    study = study.model_copy(update={"seed": config.seed, "scenes": "calibration"})
    subjects, images = simulate(study, paired)
    targets = {part: embed(pictures) for part, pictures in images.items()}
    ways = min(WAYS, study.test.n_images)
    calibrator = Calibrator(subjects, targets, config.seed, config.n_draws, ways)
    gain, level, sd = calibrator.find(config.target, config.tolerance, say)
    found: dict[str, Any] = {"study_seed": config.seed, "gain": gain, "ways": ways, "top1": level, "sd_over_draws": sd}
    if config.check_files:
        folder = config.output_dir / "check"
        brain = study.brain.model_copy(update={"gain": gain})
        write_study(study.model_copy(update={"output_dir": folder, "brain": brain}))
        parts = read_back(folder, paired, targets)
        for name, n in (("files", None), ("files_4_repetitions", 4), ("files_1_repetition", 1)):
            result = pooled_half_whitened_ridge(parts["train"], parts["validation"], parts["test"], n_repetitions=n)
            scores, control = retrieval_of(result, ways)
            found[name] = {"top1": float(np.mean(scores)), "per_subject": scores, "shuffled": control}
        say(f"through files: {ways}-way top-1 {found['files']['top1']:.3f}, shuffled {found['files']['shuffled']:.3f}")
        shutil.rmtree(folder)
    return found
