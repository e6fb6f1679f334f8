import mne
import numpy as np
import pytest

from ttd.config import UserError, load_config
from ttd.eeg import channels, montage
from ttd.eeg.preprocessing import PreprocessingConfig, preprocess

CAP = montage.THINGS_EEG1_63


def smooth(names=CAP, seconds=8.0, sfreq=250.0) -> mne.io.BaseRaw:
    """A potential that varies slowly over the scalp: each electrode's place, weighted by three rhythms."""
    t = np.arange(int(seconds * sfreq)) / sfreq
    rhythms = np.stack([np.sin(2 * np.pi * f * t) for f in (5, 8, 12)])
    data = montage.positions(names) @ rhythms * 300  # ±30 µV
    return mne.io.RawArray(data * 1e-6, mne.create_info(list(names), sfreq, "eeg"), verbose="ERROR")


def plain(**more) -> PreprocessingConfig:
    return PreprocessingConfig(**{"sfreq": 250, "l_freq": None, "h_freq": None, "reference": None, **more})


def test_channels_come_in_the_order_that_was_asked_for_whatever_that_of_the_file():
    raw = smooth()
    wanted = ("Oz", "Fp1", "C3", "PO7")
    clean = preprocess(raw, plain(channels=wanted))
    assert clean.ch_names == list(wanted)
    np.testing.assert_allclose(clean.data, raw.get_data(list(wanted)) * 1e6, rtol=1e-6)


def test_a_missing_electrode_is_named_with_the_remedy():
    with pytest.raises(UserError, match=r"s\.edf: has no electrode Cz; .*interpolate_missing=true"):
        preprocess(smooth(), plain(channels=("Fz", "Cz", "Pz")), name="s.edf")


def test_a_missing_electrode_is_interpolated_where_asked_and_told():
    """Cz of the THINGS-EEG1 cap was the reference; a smooth field has the value that its place gives."""
    wanted = (*CAP, "Cz")
    clean = preprocess(smooth(), plain(channels=wanted, interpolate_missing=True))
    truth = smooth(wanted).get_data("Cz")[0] * 1e6
    assert clean.channels.interpolated == ["Cz"]
    assert np.corrcoef(clean.data[-1], truth)[0, 1] > 0.99
    assert clean.data[-1].std() == pytest.approx(truth.std(), rel=0.2)


def test_interpolation_is_that_of_mne_after_the_filters(monkeypatch):
    monkeypatch.setattr(channels, "CHUNK", 300)
    raw = smooth()
    raw._data[CAP.index("Pz")] = 0
    whole = raw.copy().filter(1, 40, verbose="ERROR").set_montage(montage.STANDARD, verbose="ERROR")
    whole.info["bads"] = ["Pz"]
    whole.interpolate_bads(verbose="ERROR").set_eeg_reference("average", verbose="ERROR")
    clean = preprocess(raw, plain(l_freq=1, h_freq=40, reference="average", interpolate_bad=True))
    expected = whole.get_data() * 1e6
    np.testing.assert_allclose(clean.data, expected, atol=2e-6 * np.abs(expected).max())


def test_more_than_a_quarter_is_never_interpolated():
    wanted = ("Fz", "Pz", "Oz", "Cz", "Iz")
    with pytest.raises(UserError, match=r"2 of 5 electrodes would have to be interpolated \(Cz, Iz\)"):
        preprocess(smooth(), plain(channels=wanted, interpolate_missing=True))


def test_a_flat_channel_is_refused_by_name_and_interpolated_where_asked():
    raw = smooth()
    raw._data[CAP.index("P7")] = 1e-3  # a constant is flat as well
    with pytest.raises(UserError, match=r"x\.vhdr: channels are flat: P7; .*interpolate_bad=true"):
        preprocess(raw, plain(), name="x.vhdr")
    clean = preprocess(raw, plain(interpolate_bad=True))
    assert clean.channels.interpolated == ["P7"]
    truth = smooth().get_data("P7")[0] * 1e6
    assert np.corrcoef(clean.data[CAP.index("P7")], truth)[0, 1] > 0.95


def test_a_noisy_channel_and_one_that_the_study_marked_are_kept_but_reported(caplog):
    raw = smooth()
    raw._data[CAP.index("T7")] *= 50
    raw.info["bads"] = ["O1"]
    clean = preprocess(raw, plain())
    assert clean.channels.bad.keys() == {"T7", "O1"}
    assert "where the median channel has" in clean.channels.bad["T7"]
    assert clean.channels.bad["O1"] == "marked bad by the study"
    assert clean.channels.interpolated == []
    assert "bad channels are kept: " in caplog.text
    assert preprocess(raw, plain(interpolate_bad=True)).channels.interpolated == ["T7", "O1"]


def test_the_standard_deviation_of_every_channel_is_told():
    clean = preprocess(smooth(), plain())
    expected = smooth().get_data().std(axis=1) * 1e6
    np.testing.assert_allclose(list(clean.channels.sd_uv.values()), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("channels=[Cz, EOG]", "no electrode of the 10-05 system: EOG"),
        ("channels=[Cz, CZ.]", "electrodes named twice: Cz"),
        ("channels=[]", "the list is empty"),
        ("interpolate_missing=true", "interpolate_missing needs channels"),
    ],
)
def test_lists_of_channels_that_cannot_be_meant_are_refused(override, words):
    with pytest.raises(UserError, match=words):
        load_config(PreprocessingConfig, [], ["sfreq=125", override])


def test_recorders_spellings_may_be_written_in_the_list():
    assert PreprocessingConfig(sfreq=125, channels=("Fc5.", "oz")).channels == ("FC5", "Oz")
