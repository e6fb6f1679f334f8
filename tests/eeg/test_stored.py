"""Epochs cut by somebody else: cropped and resampled to the chain, everything else refused."""

import collections

import numpy as np
import pytest

from ttd.config import UserError
from ttd.eeg import stored
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.preprocessing import PreprocessingConfig
from ttd.eeg.studies import Epoched, EpochedRecording

NAMES = ["Pz", "Oz", "O1"]


class Container(EpochedRecording):
    """Three channels, -0.2 to 0.796 s at 250 Hz: 1, 2 and 3 times a 10 Hz wave that is 0 at the onset."""

    unit = "µV"

    def __init__(self, path, n: int = 3):
        super().__init__(path, subject="01")
        self.n = n

    def events(self):
        return []

    def epoched(self) -> Epoched:
        times = np.arange(250) / 250 - 0.2
        rows = (np.outer([1, 2, 3], np.sin(2 * np.pi * 10 * times)) * (i + 1) for i in range(self.n))
        return Epoched(NAMES, 250.0, -0.2, 250, self.unit, rows)


def asked(sfreq: float = 250, **fields) -> PreprocessingConfig:
    return PreprocessingConfig(**{"sfreq": sfreq, "l_freq": None, "h_freq": None, "reference": None} | fields)


def found(preprocessing, container, **window):
    dropped: collections.Counter[str] = collections.Counter()
    config = EpochsConfig(**{"tmin": 0.0, "tmax": 0.7, "baseline": None} | window)
    return dict(stored.each(container, preprocessing, config, dropped=dropped)), dropped


@pytest.mark.parametrize("sfreq", [250, 125, 500, 100])
def test_the_window_is_cropped_and_resampled_at_the_onset(tmp_path, sfreq):
    epochs, _ = found(asked(sfreq), Container(tmp_path))
    times = np.arange(int(0.7 * sfreq + 1e-6) + 1) / sfreq
    assert len(epochs) == 3
    for i, eeg in epochs.items():
        expected = np.outer([1, 2, 3], np.sin(2 * np.pi * 10 * times)) * (i + 1)
        np.testing.assert_allclose(eeg, expected, atol=1e-5 if sfreq == 250 else 0.02 * 3 * (i + 1))


def test_channels_are_chosen_by_name(tmp_path):
    container = Container(tmp_path)
    epochs, _ = found(asked(channels=("O1", "Pz")), container)
    everything, _ = found(asked(), container)
    assert np.array_equal(epochs[0], everything[0][[2, 0]])
    assert stored.ch_names(container, asked(channels=("O1", "Pz"))) == ["O1", "Pz"]
    with pytest.raises(UserError, match="Cz"):
        found(asked(channels=("Cz",)), container)


@pytest.mark.parametrize(("fields", "window", "message"), [
    ({"l_freq": 0.1}, {}, r"preprocessing\.l_freq must be null"),
    ({"h_freq": 40.0}, {}, r"preprocessing\.h_freq must be null"),
    ({"notch": 50.0}, {}, r"preprocessing\.notch must be null"),
    ({"reference": "average"}, {}, r"preprocessing\.reference must be null"),
    ({"interpolate_bad": True}, {}, "cannot be interpolated"),
    ({}, {"baseline": (None, 0.0)}, r"epochs\.baseline must be null"),
    ({}, {"tmin": -0.3}, r"epochs\.tmin=-0\.3 and tmax=0\.7 reach beyond what is stored \(-0\.2 to 0\.796 s at 250 Hz\)"),
    ({}, {"tmax": 0.8}, r"tmax=0\.8 reach beyond"),
    ({"sfreq": 128}, {}, r"epochs\.tmin=0 lies between the stored samples"),
])  # fmt: skip
def test_what_cannot_be_done_to_epochs_is_refused(tmp_path, fields, window, message):
    with pytest.raises(UserError, match=message):
        found(asked(**fields), Container(tmp_path), **window)


def test_large_epochs_are_left_out_and_counted_in_microvolts_alone(tmp_path):
    epochs, dropped = found(asked(), Container(tmp_path), reject_uv=7.0)
    assert (list(epochs), dropped) == ([0, 1], {"above 7 µV": 1})
    container = Container(tmp_path)
    container.unit = "whitened"
    with pytest.raises(UserError, match=r"reject_uv must be null, for their unit is not µV \(whitened\)"):
        found(asked(), container, reject_uv=7.0)


def test_stored_epochs_are_no_recording(tmp_path):
    with pytest.raises(UserError, match="holds epochs, not a recording"):
        Container(tmp_path).raw()
    assert Container(tmp_path).ch_names() == NAMES
