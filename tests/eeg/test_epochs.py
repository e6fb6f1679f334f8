import collections

import numpy as np
import pytest

from ttd.config import UserError
from ttd.eeg.epochs import EpochsConfig, cut, each, offsets, windows
from ttd.eeg.preprocessing import Clean


def ramp(n_times: int = 1000, sfreq: float = 250.0, bad: tuple = ()) -> Clean:
    """Channel 0 counts its samples in µV, channel 1 is 5 µV above it."""
    data = np.stack([np.arange(n_times), np.arange(n_times) + 5.0]).astype(np.float32)
    return Clean(data, ["Cz", "Pz"], sfreq, list(bad))


def plain(**more) -> EpochsConfig:
    return EpochsConfig(**{"tmin": -0.1, "tmax": 0.6, "baseline": None, **more})


def test_an_epoch_is_cut_at_the_very_sample_of_its_onset():
    found = cut(ramp(), [1.0, 1.004], plain(), sfreq=250)  # samples 250 and 251
    assert found.data.shape == (2, 2, 176)
    assert found.data.dtype == np.float32
    zero = 25  # -0.1 s at 250 Hz
    np.testing.assert_allclose(found.data[:, 0, zero], [250, 251], rtol=1e-6)
    np.testing.assert_allclose(found.data[0, 0], np.arange(225, 401), rtol=1e-6)
    np.testing.assert_allclose(found.data[0, 1] - found.data[0, 0], 5, rtol=1e-4)


def test_at_half_the_rate_an_odd_onset_keeps_its_own_sample():
    found = cut(ramp(), [251 / 250], plain(), sfreq=125)
    assert found.data.shape == (1, 2, 88)  # -12 to 75 at 125 Hz: nothing outside [-0.1, 0.6] s
    np.testing.assert_allclose(found.data[0, 0], np.arange(251 - 24, 251 + 151, 2), rtol=1e-6)


def test_the_onset_is_one_of_the_samples_whatever_the_rate():
    for sfreq in (100, 125, 128, 250):
        grid = offsets(plain(), sfreq)
        assert 0 in grid
        assert grid[0] / sfreq >= -0.1 - 1e-9
        assert grid[-1] / sfreq <= 0.6 + 1e-9


def test_the_baseline_is_subtracted_over_its_stretch_with_both_ends():
    found = cut(ramp(), [1.0], plain(baseline=(None, 0.0)), sfreq=250)
    mean = np.arange(225, 251).mean()  # samples from -0.1 s to the onset
    np.testing.assert_allclose(found.data[0, 0], np.arange(225, 401) - mean, atol=1e-3)
    assert found.data[0, :, :26].mean(axis=1) == pytest.approx([0, 0], abs=1e-4)


def test_what_is_left_out_is_counted_by_its_reason():
    clean = ramp(bad=[(2.0, 2.004, "BAD_gap")])  # between samples 500 and 501
    onsets = [0.05, 1.0, 1.7, 2.1, 2.104, 3.0, 3.9]
    found = cut(clean, onsets, plain(reject_uv=800), sfreq=250)
    # 0.05 begins before the recording, 3.9 ends after it; 1.7 and 2.1 span the gap, 2.104 begins right after it;
    # 3.0 reaches sample 900 µV.
    assert found.kept == [1, 4]
    assert found.dropped == {"outside the recording": 2, "BAD_gap": 2, "above 800 µV": 1}


def test_epochs_one_by_one_are_those_of_all_at_once_and_never_change_the_recording():
    clean, dropped = ramp(), collections.Counter()
    before = clean.data.copy()
    onsets = [0.05, 1.0, 1.5, 3.9]
    found = list(each(clean, onsets, plain(baseline=(None, 0.0)), sfreq=250, dropped=dropped))
    together = cut(clean, onsets, plain(baseline=(None, 0.0)), sfreq=250)
    assert [i for i, _ in found] == together.kept == [1, 2]
    np.testing.assert_array_equal([eeg for _, eeg in found], together.data)
    assert dropped == {"outside the recording": 2}
    np.testing.assert_array_equal(clean.data, before)


def test_onsets_in_samples_instead_of_seconds_are_refused():
    with pytest.raises(UserError, match=r"2 of 2 onsets lie after the end .* BIDS wants seconds"):
        cut(ramp(), [250, 500], plain(), sfreq=250)


def test_windows_are_contiguous_and_half_overlapping_ones_share_half():
    found = list(windows(ramp(), 200, 200))
    assert [onset for onset, _ in found] == pytest.approx([0, 0.8, 1.6, 2.4, 3.2])
    np.testing.assert_allclose(np.concatenate([w[0] for _, w in found]), np.arange(1000), rtol=1e-6)
    half = list(windows(ramp(), 200, 100))
    assert len(half) == 9
    np.testing.assert_array_equal(half[0][1][:, 100:], half[1][1][:, :100])


def test_windows_stay_inside_their_range_and_off_bad_stretches():
    clean = ramp(bad=[(2.1, 2.2, "bad movement")])
    found = list(windows(clean, 100, 100, ranges_s=[(1.0, 3.0)]))
    # Windows of 0.4 s from 1.0 s on; the one from 1.8 s touches the bad stretch, the one from 2.2 s begins at its end.
    assert [onset for onset, _ in found] == pytest.approx([1.0, 1.4, 2.2, 2.6])
