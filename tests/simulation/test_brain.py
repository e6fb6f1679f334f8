import time

import mne
import numpy as np
import pytest

from ttd.experiments.simulated import BackgroundConfig, BrainConfig
from ttd.simulation.background import alpha_rhythm, pink_noise
from ttd.simulation.brain import N_FEATURES, REGIONS, Brain, features, forward_model, standardised_features
from ttd.simulation.scenes import draw_scene

STILL = {"common_jitter_s": 0.0, "component_jitter_s": 0.0, "amplitude_spread": 0.0}
SCENES = [draw_scene(seed) for seed in range(1000, 1120)]


def brain(subject: int = 1, **changes) -> Brain:
    return Brain(BrainConfig(**changes), seed=0, subject=subject, sfreq=250.0)


def test_the_forward_model_has_63_electrodes_and_an_average_reference():
    gain = forward_model(0).gain
    assert gain.shape == (63, 360, 3)
    assert np.isfinite(gain).all()
    assert np.abs(gain.sum(axis=0)).max() < 1e-10 * np.abs(gain).max()
    assert 0.5 < np.abs(gain).max() < 20  # µV per 10 nAm; MNE's documentation and the literature give a few


def test_a_radial_dipole_at_the_back_peaks_at_an_occipital_electrode():
    forward = forward_model(0)
    towards_oz = np.array([0.0, -1.0, 0.1])
    occipital = np.flatnonzero(np.array(REGIONS) == "occipital")
    for dipole in occipital[np.argsort(-forward.radial[occipital] @ towards_oz)[:5]]:
        peak = forward.ch_names[np.argmax(forward.gain[:, dipole] @ forward.radial[dipole])]
        assert peak.startswith(("O", "PO"))


def test_the_pattern_on_the_scalp_follows_the_dipole_to_the_other_side():
    forward = forward_model(0)
    right = np.array([name[-1] in "2468" for name in forward.ch_names])
    left = np.array([name[-1] in "13579" for name in forward.ch_names])
    for dipole in np.flatnonzero(np.array(REGIONS) == "temporal"):
        pattern = np.abs(forward.gain[:, dipole] @ forward.radial[dipole])
        assert (pattern[right].sum() > pattern[left].sum()) == (forward.radial[dipole, 0] > 0)


def test_features_say_what_is_in_the_scene():
    scene = draw_scene(5, n_solids=1)
    solid = scene.solids[0]
    numbers = features(scene)
    assert numbers.shape == (N_FEATURES,) == (56,)
    assert numbers[16] == pytest.approx(solid.radius)  # total size
    assert numbers[17:20].tolist() == [1, 0, 0]  # one solid
    assert numbers[26:32].sum() == 1  # one kind
    assert numbers[32:40].sum() == 1  # one colour
    assert np.array_equal(numbers, features(draw_scene(5, n_solids=1)))


def test_standardised_features_have_unit_spread_over_other_scenes():
    numbers = standardised_features([draw_scene(seed) for seed in range(600)])
    varying = numbers.std(axis=0) > 0
    assert varying.sum() == 55  # three solids never occur
    assert numbers[:, varying].std(axis=0) == pytest.approx(np.ones(55), abs=0.25)


def test_pink_noise_has_unit_variance_and_a_power_of_1_over_f():
    noise = pink_noise(np.random.default_rng(0), 4, 100_000, 250.0)
    assert noise.std(axis=1) == pytest.approx(np.ones(4), abs=0.1)
    power, frequency = mne.time_frequency.psd_array_welch(noise.astype(float), 250.0, n_fft=2000, verbose="ERROR")
    power = power.mean(axis=0)
    ratio = power[(frequency > 4.5) & (frequency < 5.5)].mean() / power[(frequency > 45) & (frequency < 55)].mean()
    assert ratio == pytest.approx(10, rel=0.2)


def test_alpha_has_unit_variance_at_10_hz():
    rhythm = alpha_rhythm(np.random.default_rng(0), 6, 50_000, 250.0)
    assert (rhythm**2).mean() == pytest.approx(1.0, abs=0.15)
    spectrum = np.abs(np.fft.rfft(rhythm, axis=1)).mean(axis=0)
    assert abs(np.fft.rfftfreq(50_000, 1 / 250)[spectrum.argmax()] - 10) < 1


def test_the_background_has_the_rms_it_announces_and_an_average_reference():
    someone = brain(background=BackgroundConfig(blinks_per_minute=0))
    data = someone.rest(100_000, run=1)
    assert np.abs(data.mean(axis=0)).max() < 1e-4
    assert np.sqrt((data**2).mean(axis=1)) == pytest.approx(someone.background.rms, rel=0.12)
    assert 7 < someone.background.rms.mean() < 13


def test_blinks_are_largest_at_the_forehead():
    calm, blinking = (
        brain(background=BackgroundConfig(blinks_per_minute=rate)).rest(20_000, run=1) for rate in (0, 30)
    )
    names = forward_model(0).ch_names
    peak = np.abs(blinking - calm).max(axis=1)
    assert names[peak.argmax()].startswith(("Fp", "AF"))
    assert peak[names.index("Oz")] < 0.3 * peak.max()


def test_the_specific_snr_of_a_recording_is_the_one_requested():
    requested = 0.3
    someone = brain(**STILL, gain=requested, common_snr=0.0, subject_spread=0.0)
    drive = standardised_features([draw_scene(seed) for seed in range(2000, 2600)])
    onsets = 250 + 200 * np.arange(len(drive))
    responses = someone.respond(drive, onsets, onsets[-1] + 250, run=1)
    epochs = np.stack([responses[:, onset : onset + 150] for onset in onsets])  # 0-600 ms
    rest = someone.rest(60_000, run=1)
    ratio = np.sqrt(epochs.var(axis=0).mean(axis=-1)) / np.sqrt((rest**2).mean(axis=1))
    assert np.sort(ratio)[-5:].mean() == pytest.approx(requested, rel=0.1)


def test_responses_are_linear_in_the_gain():
    someone = brain()
    drive, onsets = standardised_features(SCENES[:10]), 250 + 200 * np.arange(10)
    common, specific, both = (
        someone.respond(drive, onsets, 2500, run=1, common=c, gain=g) for c, g in ((1, 0), (0, 1), (1, 0.3))
    )
    assert both == pytest.approx(common + 0.3 * specific, abs=1e-4)


def test_overlapping_responses_add_up():
    someone = brain(**STILL)
    drive = standardised_features(SCENES[:2])
    together = someone.respond(drive, np.array([500, 550]), 1000, run=1)  # 200 ms apart
    apart = [someone.respond(drive[[i]], np.array([onset]), 1000, run=1) for i, onset in enumerate((500, 550))]
    assert together == pytest.approx(apart[0] + apart[1], abs=1e-4)


def test_a_subject_and_a_run_are_repeatable_and_unlike_others():
    drive, onsets = standardised_features(SCENES[:5]), 250 + 200 * np.arange(5)

    def record(subject: int, run: int) -> np.ndarray:
        return brain(subject).record(drive, onsets, 1500, run=run)

    first = record(1, 1)
    assert np.array_equal(first, record(1, 1))
    assert not np.allclose(first, record(2, 1))
    assert not np.allclose(first, record(1, 2))


def test_subjects_share_the_mapping_but_not_the_anatomy():
    one, two = brain(1).specific.ravel(), brain(2).specific.ravel()
    other_study = Brain(BrainConfig(), seed=1, subject=1, sfreq=250.0).specific.ravel()
    assert 0.5 < np.corrcoef(one, two)[0, 1] < 0.999
    assert abs(np.corrcoef(one, other_study)[0, 1]) < 0.3


def test_recording_is_at_least_fifty_times_faster_than_real_time():
    someone = brain()
    drive = np.tile(standardised_features(SCENES), (3, 1))
    onsets = 250 + 200 * np.arange(len(drive))
    n_times = int(onsets[-1] + 250)
    start = time.process_time()
    someone.record(drive, onsets, n_times, run=1)
    assert n_times / 250 > 50 * (time.process_time() - start)
