"""Where electrodes lie, and an encoder that knows them by it."""

import mne
import numpy as np
import pytest
import torch

from ttd.encoders import InceptSADConfig, build_encoder, load_encoder, save_encoder
from ttd.encoders.electrodes import directions, spherical_harmonics

NAMES = (
    "Fp1 Fp2 F7 F3 Fz F4 F8 FC5 FC1 FC2 FC6 T7 C3 Cz C4 T8 CP5 CP1 CP2 CP6 P7 P3 Pz P4 "
    "P8 PO3 PO4 O1 Oz O2 AF3 AF4 FT9 FT10 TP9 TP10 F1 F2 C1 C2 P1 P2 F5 F6 C5 C6 P5 P6"
)
MANY = NAMES.split()
FEWER = [name for i, name in enumerate(MANY) if i % 5]
POSITIONS = InceptSADConfig(embed_dim=32, depth=0, electrodes="positions", whiten=False)


def build(config=POSITIONS, ch_names=MANY):
    torch.manual_seed(0)
    return build_encoder(config, n_times=96, sfreq=128, ch_names=ch_names).eval()


def source(ch_names: list[str]) -> torch.Tensor:
    """EEG [1, C, T] of two slow sources below O2 and F3, seen by these electrodes."""
    rng = np.random.default_rng(1)
    x, eeg = directions(ch_names), 0.0
    for place in directions(["O2", "F3"]):
        eeg = eeg + np.exp(4 * (x @ place - 1))[:, None] * np.convolve(
            rng.standard_normal(103), np.ones(8) / 8, "valid"
        )
    return torch.from_numpy(eeg[None]).float()


def test_the_table_is_mnes_template_seen_from_the_middle_of_the_head():
    positions = mne.channels.make_standard_montage("colin27_1005").get_positions()["ch_pos"]
    places = np.array(list(positions.values()))
    fit = np.linalg.lstsq(np.c_[2 * places, np.ones(len(places))], (places**2).sum(1), rcond=None)[0]
    wanted = places - fit[:3]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert len(positions) == 343
    assert np.abs(directions(list(positions)) - wanted).max() < 2e-3


def test_names_are_found_whatever_their_case_and_unknown_ones_are_all_named():
    assert np.array_equal(directions(["FP1", "cz"]), directions(["Fp1", "Cz"]))
    with pytest.raises(ValueError, match="no 10-05 position is known for EEG1, X2"):
        directions(["EEG1", "Oz", "X2"])


def test_harmonics_are_orthonormal_on_the_sphere():
    n = 4000  # points spread evenly by the golden angle
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (1 + 5**0.5) * np.arange(n)
    x = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)
    values = spherical_harmonics(x, 5)
    assert values.shape == (n, 36)
    assert np.abs(values.T @ values / n - np.eye(36)).max() < 0.01


def test_without_the_switch_electrodes_have_weights_of_their_own():
    assert build(InceptSADConfig(embed_dim=32, depth=0)).stem.spatial.weight.shape == (48, len(MANY))
    assert build().stem.spatial.weight.shape == (48, 64)


def test_another_cap_sees_about_the_same_tokens_of_the_same_source(tmp_path):
    save_encoder(tmp_path, build())
    fewer = load_encoder(tmp_path, ch_names=FEWER).eval()
    with torch.no_grad():
        own, moved = (encoder.stem(source(encoder.ch_names)).flatten() for encoder in (build(), fewer))
    assert torch.corrcoef(torch.stack([own, moved]))[0, 1] > 0.9
    assert fewer.transfer["interpolated"] == []
    assert fewer.transfer["dropped"] == MANY[::5]


def test_it_moves_to_a_cap_without_a_common_electrode(tmp_path):
    save_encoder(tmp_path, build(ch_names=MANY[::2]))
    moved = load_encoder(tmp_path, ch_names=MANY[1::2])
    assert moved.transfer["mapped"] == []
    assert moved.transfer["interpolated"] == MANY[1::2]


def test_one_that_whitens_does_too_and_starts_there_with_unit_variances(tmp_path):
    whitening = POSITIONS.model_copy(update={"whiten": True})
    encoder = build(whitening, MANY[::2])
    encoder.whitening.copy_(2 * torch.eye(len(MANY[::2])))  # a standard deviation of 1/2
    save_encoder(tmp_path, encoder)
    assert torch.equal(load_encoder(tmp_path, ch_names=MANY[1::2]).whitening, torch.eye(len(MANY[1::2])))


def test_an_electrode_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no 10-05 position is known for E1"):
        build(ch_names=["Oz", "E1"])


def test_the_original_stem_knows_no_places():
    with pytest.raises(ValueError, match="electrodes=positions needs stem=spatial_first"):
        InceptSADConfig(stem="original", electrodes="positions")
