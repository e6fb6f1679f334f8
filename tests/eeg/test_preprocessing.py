import mne
import numpy as np
import pytest

from ttd.config import UserError, load_config
from ttd.eeg.preprocessing import PreprocessingConfig, preprocess


def recording(data_uv: np.ndarray, sfreq: float = 250.0) -> mne.io.BaseRaw:
    names = ["Fz", "Cz", "Pz", "Oz"][: len(data_uv)]
    return mne.io.RawArray(data_uv * 1e-6, mne.create_info(names, sfreq, "eeg"), verbose="ERROR")


def tone(frequency: float, sfreq: float, seconds: float = 20.0) -> np.ndarray:
    t = np.arange(int(seconds * sfreq)) / sfreq
    return 20 * np.sin(2 * np.pi * frequency * t)


def plain(**more) -> PreprocessingConfig:
    return PreprocessingConfig(**{"sfreq": 128, "l_freq": None, "h_freq": None, "reference": None, **more})


def inner(raw: mne.io.BaseRaw) -> np.ndarray:
    """Samples in µV away from the ends."""
    n = raw.n_times
    return raw.get_data()[:, n // 4 : -n // 4] * 1e6


def test_a_tone_above_the_new_nyquist_frequency_vanishes_and_one_below_stays():
    # 74 Hz at 128 Hz would come back as 54 Hz. A slow tone keeps the recording alive.
    data = np.stack([tone(74, 160), tone(10, 160), tone(10, 160)])
    raw = preprocess(recording(data, 160), plain())
    sd = inner(raw).std(axis=1)
    assert raw.info["sfreq"] == 128
    assert sd[0] < 0.05  # 0.35 % of it
    assert sd[1] == pytest.approx(20 / np.sqrt(2), rel=0.01)


def test_decimated_epochs_do_not_alias_either():
    from ttd.eeg.epochs import EpochsConfig, cut

    data = np.stack([tone(85, 250), tone(10, 250), tone(10, 250)])  # 85 Hz at 125 Hz would come back as 40 Hz
    config = plain(sfreq=125, h_freq=40)
    raw = preprocess(recording(data, 250), config, exact_onsets=True)
    assert raw.info["sfreq"] == 250  # kept, so that onsets stay exact
    found = cut(raw, [10.0], EpochsConfig(tmin=-1, tmax=1, baseline=None), sfreq=125)
    assert found.data.shape == (1, 3, 251)
    assert np.abs(found.data[0, 0]).max() < 0.1
    assert np.abs(found.data[0, 1]).max() == pytest.approx(20, rel=0.02)


def test_the_notch_removes_the_mains_and_its_harmonic_but_not_its_neighbours():
    data = np.stack([tone(50, 500), tone(100, 500), tone(40, 500), tone(10, 500)])
    sd = inner(preprocess(recording(data, 500), plain(sfreq=500, notch=50))).std(axis=1)
    assert sd[:2].max() < 0.3
    assert sd[2:].min() > 0.98 * 20 / np.sqrt(2)


def test_the_average_reference_leaves_no_common_signal():
    rng = np.random.default_rng(0)
    data = rng.normal(0, 10, (4, 5000)) + rng.normal(0, 30, 5000)
    raw = preprocess(recording(data), plain(sfreq=250, reference="average"))
    assert np.abs(raw.get_data().mean(axis=0)).max() < 1e-12


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_a_recording_in_the_wrong_unit_is_refused_by_name(scale):
    data = np.random.default_rng(0).normal(0, 10, (4, 2500)) * scale
    with pytest.raises(UserError, match=r"x\.edf: its median channel varies by .* the unit is wrong"):
        preprocess(recording(data), plain(sfreq=250), name="x.edf")


def test_a_low_pass_above_the_nyquist_frequency_of_the_chain_is_refused():
    with pytest.raises(UserError, match=r"h_freq=70\.0 lies above the Nyquist frequency of sfreq=125"):
        load_config(PreprocessingConfig, [], ["sfreq=125", "h_freq=70"])
