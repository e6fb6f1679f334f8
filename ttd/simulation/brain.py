"""A simulated brain: what an EEG records while a person looks at scenes.

A scene is described by 56 numbers (``features``). Four components (P1, N1, P2, late) answer to them with dipoles in
occipital, temporal and parietal cortex, through MNE's spherical forward model at the 63 electrodes of THINGS-EEG1.
The anatomy and the mapping belong to a study; orientations, strengths and latencies also to a subject; latency and
amplitude jitter to a trial. Everything follows from (study seed, subject, run).

Shapes: C channels, D dipoles, K components, F = 56 features, N images, n trials, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mne
import numpy as np

from ttd.eeg.montage import THINGS_EEG1_63
from ttd.experiments.simulated import BrainConfig
from ttd.seeding import numpy_rng
from ttd.simulation.background import N_ALPHA_SOURCES, Background
from ttd.simulation.scenes import COLOUR_RGB, COLOURS, KINDS, Scene, draw_scene

FEATURE_GROUPS = {"layout": 20, "hemifield": 6, "kind": 6, "colour": 8, "conjunction": 16}
N_FEATURES = sum(FEATURE_GROUPS.values())

RESPONSE_S = (-0.05, 0.75)
"""Window of a response around its onset; four sd of the late component end here."""
BEST_ELECTRODES = 5


@dataclass(frozen=True)
class Component:
    """One deflection of the evoked response: a Gaussian in time, the features it carries, the regions it comes from."""

    latency_s: float
    width_s: float
    sign: int
    weights: tuple[float, ...]  # in the order of FEATURE_GROUPS
    regions: tuple[str, ...]


COMPONENTS = {
    "P1": Component(0.100, 0.014, +1, (1.0, 0.5, 0.0, 0.1, 0.0), ("occipital",)),
    "N1": Component(0.170, 0.020, -1, (0.6, 0.6, 0.6, 0.6, 0.2), ("occipital", "temporal")),
    "P2": Component(0.220, 0.028, +1, (0.2, 0.5, 0.8, 0.8, 0.5), ("occipital", "temporal", "parietal")),
    "late": Component(0.400, 0.085, +1, (0.1, 0.3, 1.0, 0.5, 1.0), ("temporal", "parietal")),
}
REGIONS = ("occipital",) * 80 + ("temporal",) * 40 + ("parietal",) * 40  # of the 160 dipoles that answer
N_NOISE_DIPOLES = 200


def features(scene: Scene) -> np.ndarray:
    """What the simulated brain sees of a scene: numbers [56], not yet standardised.

    Position map 4 × 4 weighted by size, total size, number of solids (one-hot of 3) · red, green and blue of each half
    of the picture · counts of kinds · counts of colours · 16 random mixtures of the 48 pairs of kind and colour.
    """
    x, z = np.meshgrid(np.linspace(-0.6, 0.6, 4), np.linspace(-0.45, 0.45, 4))
    position, hemifield = np.zeros(16), np.zeros((2, 3))
    kind, colour, conjunction = np.zeros(6), np.zeros(8), np.zeros((6, 8))
    for solid in scene.solids:
        position += solid.radius * np.exp(-((x - solid.x) ** 2 + (z - solid.z) ** 2) / (2 * 0.3**2)).ravel()
        right = np.clip(0.5 + solid.x / 0.6, 0, 1)
        hemifield += solid.radius * np.outer([1 - right, right], COLOUR_RGB[solid.colour])
        k, c = KINDS.index(solid.kind), COLOURS.index(solid.colour)
        kind[k] += 1
        colour[c] += 1
        conjunction[k, c] += 1
    size = sum(solid.radius for solid in scene.solids)
    mixtures = conjunction.ravel() @ _conjunction_mixing()
    return np.concatenate(
        [position, [size], np.eye(3)[len(scene.solids) - 1], hemifield.ravel(), kind, colour, mixtures]
    )


@lru_cache(maxsize=1)
def _conjunction_mixing() -> np.ndarray:
    return numpy_rng(0, "conjunction mixing").standard_normal((48, 16))


@lru_cache(maxsize=1)
def _reference_features() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [1000, 56] of reference scenes that no study shows, standardised, with their mean and sd."""
    seeds = numpy_rng(0, "reference scenes").integers(0, 2**62, 1000)
    raw = np.stack([features(draw_scene(int(seed))) for seed in seeds])
    mean, sd = raw.mean(axis=0), raw.std(axis=0)
    sd[sd < 1e-9] = np.inf  # a feature that never varies says nothing
    return (raw - mean) / sd, mean, sd


def standardised_features(scenes: Sequence[Scene]) -> np.ndarray:
    """Features [N, 56] float32, each with mean 0 and sd 1 over the reference scenes."""
    _, mean, sd = _reference_features()
    return ((np.stack([features(scene) for scene in scenes]) - mean) / sd).astype(np.float32)


@dataclass(frozen=True)
class Forward:
    """The head of a study: ``gain`` [C, D, 3] in µV per 10 nAm (average reference), positions and directions [D, 3].

    The first 160 dipoles answer to pictures (``REGIONS``), the other 200 make the background.
    """

    gain: np.ndarray
    position: np.ndarray
    radial: np.ndarray
    ch_names: tuple[str, ...]
    electrodes: np.ndarray  # [C, 3] in the head frame, metres


def _directions(
    rng: np.random.Generator, n: int, azimuth: tuple[float, float], elevation: tuple[float, float]
) -> np.ndarray:
    """Unit vectors [n, 3]; azimuth in degrees from the back towards the right ear, elevation from the horizontal."""
    a, e = np.radians(rng.uniform(*azimuth, n)), np.radians(rng.uniform(*elevation, n))
    return np.stack([np.cos(e) * np.sin(a), -np.cos(e) * np.cos(a), np.sin(e)], axis=1)


@lru_cache(maxsize=4)
def forward_model(seed: int) -> Forward:
    """MNE's three-shell sphere with 360 dipoles placed by the study seed; 0.4 s, nothing is downloaded."""
    rng = numpy_rng(seed, "dipole positions")
    info = mne.create_info(list(THINGS_EEG1_63), 250.0, "eeg")
    info.set_montage(mne.channels.make_standard_montage("colin27_1005"))
    sphere = mne.make_sphere_model("auto", "auto", info, verbose="ERROR")
    side = np.repeat([-1, 1], 20)[:, None] * np.array([1, 0, 0]) + np.array([0, 1, 1])
    radial = np.concatenate(
        [
            _directions(rng, 80, (-45, 45), (-15, 40)),
            _directions(rng, 40, (60, 110), (-20, 15)) * side,
            _directions(rng, 40, (-90, 90), (40, 80)),
            _directions(rng, N_NOISE_DIPOLES, (-180, 180), (-20, 90)),
        ]
    )
    depth = rng.uniform(0.70, 0.85, len(radial)) * sphere.radius
    position = sphere["r0"] + depth[:, None] * radial
    source = mne.setup_volume_source_space(pos={"rr": position, "nn": radial}, sphere=sphere, verbose="ERROR")
    solution = mne.make_forward_solution(info, trans=None, src=source, bem=sphere, meg=False, eeg=True, verbose="ERROR")
    gain = solution["sol"]["data"].reshape(len(info.ch_names), len(radial), 3) * 1e-2  # V per A·m → µV per 10 nAm
    gain = gain - gain.mean(axis=0)
    electrodes = np.stack([channel["loc"][:3] for channel in info["chs"]])
    return Forward(gain, position, radial, tuple(info.ch_names), electrodes)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _mapping(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Common drive [K, 160] and image-specific drive [K, 160, F] of the study's dipoles, per component."""
    rng = numpy_rng(seed, "mapping")
    common, specific = [], []
    for component in COMPONENTS.values():
        inside = np.isin(REGIONS, component.regions)
        sizes = list(FEATURE_GROUPS.values())
        # Each group drives with its weight, however many numbers it has.
        weights = np.concatenate([np.full(n, w / n**0.5) for n, w in zip(sizes, component.weights, strict=True)])
        common.append(inside * (1 + 0.3 * rng.standard_normal(len(REGIONS))))
        specific.append(inside[:, None] * rng.standard_normal((len(REGIONS), N_FEATURES)) * weights)
    return np.stack(common), np.stack(specific)


class Brain:
    """One subject of a study.

    Attributes:
        common: topographies [K, C] in µV that every picture evokes.
        specific: topographies [K, C, F] in µV per unit of each standardised feature, at a specific SNR of 1.
        background: the subject's ``Background``.
        strength: the subject's own factor on ``config.gain`` and ``config.common_snr``.
    """

    def __init__(self, config: BrainConfig, *, seed: int, subject: int, sfreq: float):
        self.config, self.seed, self.subject, self.sfreq = config, seed, subject, sfreq
        forward = forward_model(seed)
        self.ch_names = forward.ch_names
        n_evoked = len(REGIONS)

        # Anatomy: common to the study, then turned and scaled per subject.
        study, rng = numpy_rng(seed, "orientation"), numpy_rng(seed, "anatomy", subject)
        orientation = _unit(forward.radial[:n_evoked] + 0.7 * study.standard_normal((n_evoked, 3)))
        orientation = _unit(orientation + config.orientation_spread * rng.standard_normal((n_evoked, 3)))
        lead = np.einsum("cdx,dx->cd", forward.gain[:, :n_evoked], orientation)
        lead *= np.exp(config.dipole_spread * rng.standard_normal(n_evoked))

        # Components: when they come and how strong they are in this subject.
        components = list(COMPONENTS.values())
        sign = np.array([c.sign for c in components])
        component_gain = sign * np.exp(config.component_spread * rng.standard_normal(len(components)))
        self.width = np.array([c.width_s for c in components])
        self.latency = np.array([c.latency_s for c in components])
        self.latency = self.latency + config.latency_shift_s * rng.standard_normal(len(components))
        self.strength = float(np.exp(config.subject_spread * rng.standard_normal()))

        # Background: other dipoles, random orientations; alpha comes from the occipital ones.
        noise_orientation = _unit(rng.standard_normal((N_NOISE_DIPOLES, 3)))
        noise_lead = np.einsum("cdx,dx->cd", forward.gain[:, n_evoked:], noise_orientation)
        occipital = lead[:, np.array(REGIONS) == "occipital"]
        alpha = occipital @ rng.standard_normal((occipital.shape[1], N_ALPHA_SOURCES))
        eyes = forward.electrodes[[self.ch_names.index("Fp1"), self.ch_names.index("Fp2")]] + np.array([0, 0.01, -0.03])
        nearest = np.linalg.norm(forward.electrodes[:, None] - eyes, axis=-1).min(axis=1)
        blink = np.exp(-nearest / 0.03)
        self.background = Background(
            config.background,
            spread=noise_lead @ noise_lead.T,
            alpha_topography=alpha,
            blink_topography=blink / blink.max(),
            sfreq=sfreq,
            rng=rng,
        )

        # Scale both parts of the response to the ratios that the configuration asks for.
        common, specific = _mapping(seed)
        common = np.einsum("cd,kd->kc", lead, common) * component_gain[:, None]
        specific = np.einsum("cd,kdf->kcf", lead, specific) * component_gain[:, None, None]
        reference, _, _ = _reference_features()
        images = np.einsum("kcf,nf->nkc", specific, reference)
        self.common = (common * config.common_snr * self.strength / self._snr(common[None])).astype(np.float32)
        self.specific = (specific * self.strength / self._snr(images)).astype(np.float32)

    def _snr(self, topographies: np.ndarray) -> float:
        """RMS over 0-600 ms and images of responses [N, K, C] over the background's, mean of the best electrodes."""
        t = np.arange(0, 0.6, 0.004)
        waves = np.exp(-0.5 * ((t - self.latency[:, None]) / self.width[:, None]) ** 2)  # [K, T]
        overlap = waves @ waves.T / len(t)  # [K, K]
        power = np.einsum("nkc,kl,nlc->c", topographies, overlap, topographies, optimize=True) / len(topographies)
        ratio = np.sqrt(power) / self.background.rms
        return float(np.sort(ratio)[-BEST_ELECTRODES:].mean())

    def respond(
        self,
        drive: np.ndarray,
        onsets: np.ndarray,
        n_times: int,
        *,
        run: int,
        common: float = 1.0,
        gain: float | None = None,
    ) -> np.ndarray:
        """The responses of one recording [C, T] float32 in µV, without background; where they overlap they add up.

        Args:
            drive: standardised features [n, F] of the picture of each trial.
            onsets: sample [n] at which each picture appears.
            run: which recording this is; keys the jitter.
            common: factor on the common part.
            gain: specific SNR; ``config.gain`` when not given. The result is linear in both factors.
        """
        gain = self.config.gain if gain is None else gain
        rng = numpy_rng(self.seed, "trials", self.subject, run)
        n, k = len(onsets), len(self.latency)
        jitter = self.config.common_jitter_s * rng.standard_normal((n, 1))
        jitter = jitter + self.config.component_jitter_s * rng.standard_normal((n, k))
        amplitude = np.exp(self.config.amplitude_spread * rng.standard_normal((n, 1)))
        first, last = (round(edge * self.sfreq) for edge in RESPONSE_S)
        t = np.arange(first, last) / self.sfreq
        data = np.zeros((len(self.ch_names), n_times), np.float32)
        for chunk in np.array_split(np.arange(n), max(1, n // 200)):
            centre = (self.latency + jitter[chunk])[:, :, None]
            waves = amplitude[chunk, :, None] * np.exp(-0.5 * ((t - centre) / self.width[:, None]) ** 2)  # [n, K, T]
            topography = common * self.common + gain * np.einsum(
                "kcf,nf->nkc", self.specific, drive[chunk], optimize=True
            )
            responses = topography.transpose(0, 2, 1).astype(np.float32) @ waves.astype(np.float32)  # [n, C, T]
            for onset, response in zip(onsets[chunk], responses, strict=True):
                start, stop = max(0, onset + first), min(n_times, onset + last)
                data[:, start:stop] += response[:, start - onset - first : stop - onset - first]
        return data

    def rest(self, n_times: int, *, run: int) -> np.ndarray:
        """The background of one recording [C, T] float32 in µV."""
        return self.background.record(numpy_rng(self.seed, "background", self.subject, run), n_times)

    def record(self, drive: np.ndarray, onsets: np.ndarray, n_times: int, *, run: int) -> np.ndarray:
        """One whole recording [C, T] float32 in µV: responses on the background."""
        data = self.rest(n_times, run=run)
        data += self.respond(drive, onsets, n_times, run=run)
        return data
