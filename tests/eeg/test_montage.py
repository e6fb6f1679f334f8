import mne
import numpy as np
import pytest

from ttd.eeg import montage

# The 17 posterior electrodes of the published THINGS-EEG2 arrays.
POSTERIOR_17 = {f"P{i}" for i in "7531z2468"} | {"PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"}


def test_the_caps_of_things_eeg1_and_eeg2_share_62_electrodes_and_differ_in_fz_and_cz():
    one, two = set(montage.THINGS_EEG1_63), set(montage.THINGS_EEG2_63)
    assert len(montage.THINGS_EEG1_63) == len(one) == 63
    assert (one - two, two - one) == ({"Fz"}, {"Cz"})
    assert one & two >= POSTERIOR_17


def test_physionet_names_are_normalised_as_mne_does():
    raw_names = ["Fc5.", "Fcz.", "C3..", "Fp1.", "Afz.", "T10.", "Poz.", "Iz.."]
    info = mne.create_info(raw_names, 160, "eeg")
    raw = mne.io.RawArray(np.zeros((8, 10)), info, verbose="ERROR")
    mne.datasets.eegbci.standardize(raw)
    assert [montage.normalise_name(name) for name in raw_names] == raw.ch_names


@pytest.mark.parametrize(
    ("written", "meant"), [("EEG F1-Ref", "F1"), ("FP2", "Fp2"), ("oz", "Oz"), ("ECG", "ECG"), (" Cz ", "Cz")]
)
def test_recorders_spellings_become_10_05_names(written, meant):
    assert montage.normalise_name(written) == meant


def test_positions_are_on_the_head_and_left_is_left():
    places = montage.positions(["T7", "T8", "Fpz", "Oz", "Cz"])
    assert places.shape == (5, 3)
    assert places[0, 0] < -0.05 < 0.05 < places[1, 0]  # x points right
    assert places[2, 1] > places[4, 1] > places[3, 1]  # y points forward
    assert np.argmax(places[:, 2]) == 4  # the vertex is highest


def test_a_name_without_a_place_is_refused():
    with pytest.raises(ValueError, match="position for EOG"):
        montage.positions(["Cz", "EOG"])


def test_caps_are_recognised_by_their_electrodes():
    assert montage.cap_name(montage.EEGMMIDB_64) == "eegmmidb-64"
    assert montage.cap_name(["TP9", "AF7", "AF8", "TP10"]) == "muse-4"
    assert montage.cap_name(["Cz", "Pz"]).startswith("cap-2-")
    assert montage.cap_name(["Cz", "Pz"]) != montage.cap_name(["Pz", "Cz"])
