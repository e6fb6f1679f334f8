"""Configuration of the simulated study (``shards/build_simulated.py``) and of its calibration.

The numbers are those of the prototype whose decoding levels are known; each field says its unit. ``fingerprint_of``
and ``is_finished`` stand here too, so that a finished study is recognised without importing the simulator.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from ttd.config import Config, fingerprint

RECIPE = 1
"""Raised whenever the same configuration would give other data."""


class BackgroundConfig(Config):
    """Everything in a recording that is not a response; amplitudes are root mean squares over channels."""

    pink_uv: float = Field(default=9.0, ge=0)
    """Cortical background with a power spectrum 1/f, flat below 1 Hz."""
    alpha_uv: float = Field(default=3.0, ge=0)
    """Occipital rhythm at 10 Hz, waxing and waning."""
    line_uv: float = Field(default=2.0, ge=0)
    """Mains hum at 50 Hz."""
    white_uv: float = Field(default=2.0, ge=0)
    """Sensor noise, independent per channel."""
    blinks_per_minute: float = Field(default=4.0, ge=0)
    blink_uv: float = Field(default=80.0, ge=0)
    """Height of a blink at the electrodes nearest to the eyes."""


class BrainConfig(Config):
    """How a simulated brain answers to a picture, and how much brains and trials differ."""

    gain: float = Field(default=0.05, ge=0)
    """Image-specific signal-to-noise ratio of a single trial: sd over images of the response (RMS over 0-600 ms) over
    the RMS of the background (blinks aside), mean of the five best electrodes. Calibrated; what decides decoding."""
    common_snr: float = Field(default=0.4, ge=0)
    """The same ratio for the part of the response that all images share."""
    subject_spread: float = Field(default=0.15, ge=0)
    """Sd of the logarithm of a subject's response strength."""
    orientation_spread: float = Field(default=0.35, ge=0)
    """How far the dipoles of a subject turn away from the common anatomy."""
    dipole_spread: float = Field(default=0.3, ge=0)
    """Sd of the logarithm of a subject's dipole strengths."""
    component_spread: float = Field(default=0.2, ge=0)
    """Sd of the logarithm of a subject's component strengths."""
    latency_shift_s: float = Field(default=0.010, ge=0)
    """Sd of a subject's shift of each component."""
    common_jitter_s: float = Field(default=0.015, ge=0)
    """Sd of a trial's shift of all components together."""
    component_jitter_s: float = Field(default=0.015, ge=0)
    """Sd of a trial's further shift of each component."""
    amplitude_spread: float = Field(default=0.2, ge=0)
    """Sd of the logarithm of a trial's strength."""
    background: BackgroundConfig = BackgroundConfig()


class PartConfig(Config):
    """One part of the split: its pictures occur in no other part, and it is recorded by itself."""

    n_images: int = Field(ge=2)
    repetitions: int = Field(ge=1)


class SimulatedConfig(Config):
    """The whole simulated study."""

    output_dir: Path
    """The BIDS dataset."""
    seed: int = 0
    """Study seed: anatomy, mapping from pictures to responses, scenes, order and noise."""
    scenes: Literal["study", "calibration"] = "study"
    """Which seed space the scenes come from. Calibration scenes occur in no shipped study."""
    n_solids: Literal[1, 2] | None = None
    """Solids of each scene; null draws one or two."""
    picture_size: int = Field(default=64, ge=16)
    n_subjects: int = Field(default=4, ge=1)
    sfreq: float = Field(default=250.0, gt=110)
    """Sampling rate in Hz; above twice the mains frequency."""
    onset_interval_s: float = Field(default=0.8, gt=0)
    """From one picture to the next. Below 0.75 s the responses of neighbouring pictures overlap and add up."""
    onset_jitter_s: float = Field(default=0.05, ge=0)
    """Each interval is longer by a uniform draw up to this."""
    duration_s: float = Field(default=0.1, gt=0)
    """How long a picture is shown; written into the events, without effect on the response."""
    resolution_uv: float = Field(default=0.1, gt=0)
    """Step of the int16 files."""
    train: PartConfig = PartConfig(n_images=1000, repetitions=4)
    validation: PartConfig = PartConfig(n_images=100, repetitions=4)
    test: PartConfig = PartConfig(n_images=200, repetitions=20)
    brain: BrainConfig = BrainConfig()

    @property
    def parts(self) -> dict[str, PartConfig]:
        """The parts by name, in the order in which they are recorded (run 1, 2, 3)."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def seconds(self, part: str) -> float:
        """Expected length of one subject's recording of a part."""
        n_trials = self.parts[part].n_images * self.parts[part].repetitions
        return n_trials * (self.onset_interval_s + self.onset_jitter_s / 2) + 4.0

    def megabytes(self, n_channels: int = 63) -> float:
        """Expected size on disk: int16 signals, and about 8 kB per picture and 100 bytes per event."""
        seconds = self.n_subjects * sum(self.seconds(part) for part in self.parts)
        n_images = sum(part.n_images for part in self.parts.values())
        n_events = self.n_subjects * sum(part.n_images * part.repetitions for part in self.parts.values())
        return (seconds * self.sfreq * n_channels * 2 + n_images * 8e3 + n_events * 200) / 1e6


class CalibrationConfig(Config):
    """What the gain is fixed by."""

    output_dir: Path
    """Receives ``calibration.json``, and for the last check a study of calibration scenes, deleted afterwards."""
    seed: int = 0
    """The study seed to calibrate; overrides that of the study's file."""
    study: Path = Path("configs/shards/simulated.yaml")
    """The study whose gain is wanted; the gain in it is not used."""
    paired: Path = Path("configs/shards/simulated_paired.yaml")
    """How recordings become epochs: the same file that builds the study's shards."""
    clip: Path = Path("weights/tiny/clip")
    """The image embedding that the ridge predicts."""
    target: float = Field(default=0.325, gt=0, lt=1)
    """Wanted 50-way top-1, mean over subjects, all test repetitions."""
    tolerance: float = Field(default=0.015, gt=0)
    n_draws: int = Field(default=5, ge=1)
    """Draws of the noise that each figure is the mean of."""
    check_files: bool = True
    """At the end, write and read back one whole study of calibration scenes at the gain found."""


def fingerprint_of(config: SimulatedConfig) -> str:
    """What two studies with equal data share; where they lie does not count."""
    return fingerprint({"recipe": RECIPE, **config.model_dump(mode="json", exclude={"output_dir"})})


def is_finished(config: SimulatedConfig) -> bool:
    """Whether ``output_dir`` holds exactly this study, complete."""
    marker = config.output_dir / "fingerprint.json"
    return marker.is_file() and json.loads(marker.read_text()).get("fingerprint") == fingerprint_of(config)
