import tracemalloc

import mne
import numpy as np
import pytest

from ttd.config import UserError, load_config
from ttd.eeg import channels, montage, preprocessing
from ttd.eeg.preprocessing import Clean, PreprocessingConfig, preprocess
from ttd.eeg.studies import open_study
from ttd.eeg.studies.muse import MuseP300Config
from ttd.eeg.studies.recordings import RecordingsConfig


def recording(data_uv: np.ndarray, sfreq: float = 250.0) -> mne.io.BaseRaw:
    names = ["Fz", "Cz", "Pz", "Oz"][: len(data_uv)]
    return mne.io.RawArray(data_uv * 1e-6, mne.create_info(names, sfreq, "eeg"), verbose="ERROR")


def tone(frequency: float, sfreq: float, seconds: float = 20.0) -> np.ndarray:
    t = np.arange(int(seconds * sfreq)) / sfreq
    return 20 * np.sin(2 * np.pi * frequency * t)


def plain(**more) -> PreprocessingConfig:
    return PreprocessingConfig(**{"sfreq": 128, "l_freq": None, "h_freq": None, "reference": None, **more})


def inner(clean: Clean) -> np.ndarray:
    """Samples in µV away from the ends."""
    n = clean.n_times
    return clean.data[:, n // 4 : -n // 4]


def test_a_tone_above_the_new_nyquist_frequency_vanishes_and_one_below_stays():
    # 74 Hz at 128 Hz would come back as 54 Hz. A slow tone keeps the recording alive.
    data = np.stack([tone(74, 160), tone(10, 160), tone(10, 160)])
    clean = preprocess(recording(data, 160), plain())
    sd = inner(clean).std(axis=1)
    assert clean.sfreq == 128
    assert sd[0] < 0.05  # 0.35 % of it
    assert sd[1] == pytest.approx(20 / np.sqrt(2), rel=0.01)


def test_decimated_epochs_do_not_alias_either():
    from ttd.eeg.epochs import EpochsConfig, cut

    data = np.stack([tone(85, 250), tone(10, 250), tone(10, 250)])  # 85 Hz at 125 Hz would come back as 40 Hz
    config = plain(sfreq=125, h_freq=40)
    clean = preprocess(recording(data, 250), config, exact_onsets=True)
    assert clean.sfreq == 250  # kept, so that onsets stay exact
    found = cut(clean, [10.0], EpochsConfig(tmin=-1, tmax=1, baseline=None), sfreq=125)
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
    clean = preprocess(recording(data), plain(sfreq=250, reference="average"))
    assert np.abs(clean.data.mean(axis=0)).max() < 1e-4


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_a_recording_in_the_wrong_unit_is_refused_by_name(scale):
    data = np.random.default_rng(0).normal(0, 10, (4, 2500)) * scale
    with pytest.raises(UserError, match=r"x\.edf: its median channel varies by .* the unit is wrong"):
        preprocess(recording(data), plain(sfreq=250), name="x.edf")


def test_a_low_pass_above_the_nyquist_frequency_of_the_chain_is_refused():
    with pytest.raises(UserError, match=r"h_freq=70\.0 lies above the Nyquist frequency of sfreq=125"):
        load_config(PreprocessingConfig, [], ["sfreq=125", "h_freq=70"])


def noise(n_chans: int = 4, seconds: float = 30.0, sfreq: float = 250.0) -> mne.io.BaseRaw:
    return recording(np.random.default_rng(1).normal(0, 20, (n_chans, int(seconds * sfreq))), sfreq)


@pytest.mark.parametrize(
    ("exact_onsets", "sfreq"), [(True, 125.0), (False, 125.0), (False, 128.0)], ids=["kept", "thinned", "resampled"]
)
def test_a_few_channels_at_a_time_give_what_mne_gives_on_the_whole_recording(monkeypatch, exact_onsets, sfreq):
    config = PreprocessingConfig(sfreq=sfreq, l_freq=0.5, h_freq=40, notch=50, reference="average")
    whole = noise()
    whole.notch_filter([50], verbose="ERROR").filter(0.5, 40, verbose="ERROR")
    whole.set_eeg_reference("average", verbose="ERROR")
    if sfreq == 128:
        whole.resample(128, verbose="ERROR")
    expected = whole.get_data() * 1e6
    monkeypatch.setattr(preprocessing, "VALUES_AT_ONCE", 8_000)  # one channel at a time
    clean = preprocess(noise(), config, exact_onsets=exact_onsets)
    assert clean.sfreq == (250 if exact_onsets else sfreq)
    expected = expected[:, ::2] if clean.sfreq == 125 else expected
    np.testing.assert_allclose(clean.data, expected, atol=1e-6 * np.abs(expected).max())


def test_thinning_out_after_the_low_pass_equals_resampling():
    config = PreprocessingConfig(sfreq=125, l_freq=0.5, h_freq=40, reference=None)
    resampled = noise().filter(0.5, 40, verbose="ERROR").resample(125, verbose="ERROR").get_data() * 1e6
    clean = preprocess(noise(), config)
    assert np.corrcoef(inner(clean).ravel(), resampled[:, 937:-938].ravel()[: inner(clean).size])[0, 1] > 0.99999


def test_a_recording_on_disk_is_read_in_part_and_gives_the_same(tmp_path, monkeypatch):
    noise().save(tmp_path / "x_raw.fif", fmt="double", verbose="ERROR")
    on_disk = mne.io.read_raw_fif(tmp_path / "x_raw.fif", verbose="ERROR")
    monkeypatch.setattr(preprocessing, "VALUES_AT_ONCE", 16_000)
    config = PreprocessingConfig(sfreq=125)
    np.testing.assert_array_equal(preprocess(on_disk, config).data, preprocess(noise(), config).data)
    assert not on_disk.preload


def test_bad_stretches_are_told_in_seconds_from_the_first_sample():
    raw = noise()
    raw.set_annotations(mne.Annotations([2.0, 3.0], [0.5, 1.0], ["BAD_move", "stimulus"]))
    raw.crop(1.0, None)
    assert preprocess(raw, PreprocessingConfig(sfreq=125)).bad == [(pytest.approx(1.0), pytest.approx(1.5), "BAD_move")]


@pytest.mark.parametrize("exact_onsets", [True, False])
def test_memory_is_that_of_the_result_and_a_few_channels(tmp_path, monkeypatch, exact_onsets):
    names = [f"{row}{side}" for row in ("F", "C", "P", "FC", "CP", "AF") for side in (1, 2, 3, 4, 5, 6)][:32]
    data = np.random.default_rng(2).normal(0, 2e-5, (32, 100_000))
    info = mne.create_info([montage.normalise_name(name) for name in names], 1000, "eeg")
    mne.io.RawArray(data, info, verbose="ERROR").save(tmp_path / "y_raw.fif", fmt="single", verbose="ERROR")
    del data
    monkeypatch.setattr(preprocessing, "VALUES_AT_ONCE", 200_000)  # two channels
    monkeypatch.setattr(channels, "CHUNK", 5_000)
    on_disk = mne.io.read_raw_fif(tmp_path / "y_raw.fif", verbose="ERROR")
    config = PreprocessingConfig(sfreq=250, l_freq=1)
    preprocess(on_disk.copy().crop(0, 10), config)  # imports what MNE imports late
    tracemalloc.start()
    clean = preprocess(on_disk, config, exact_onsets=exact_onsets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clean.data.dtype == np.float32
    one_channel = 100_000 * 8
    assert peak < clean.data.nbytes + 12 * one_channel  # the whole recording in double precision: 32 channels


@pytest.mark.realdata
def test_real_recordings_have_no_bad_channel_by_these_limits(real_data):
    recordings = open_study(RecordingsConfig(root=real_data("eegmmidb"), title="X", runs=["01"])).recordings()
    recordings += open_study(MuseP300Config(root=real_data("muse-P300"))).recordings()
    for recording in recordings:
        found = preprocess(recording.raw(), PreprocessingConfig(sfreq=128, l_freq=1, h_freq=40)).channels
        assert found.bad == {}, recording.path
        assert 5 < np.median(list(found.sd_uv.values())) < 60
