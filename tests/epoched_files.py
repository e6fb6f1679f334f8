"""Writers of pre-epoched studies in their published layouts: few pictures, every shape convention."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ttd.eeg.montage import THINGS_EEG2_17, THINGS_EEG2_63

TRAINING = {"00001_aardvark": 10, "00002_abacus": 10}
TEST = {"00001_aircraft_carrier": 1, "00002_antelope": 1}


def write_pictures(images: Path, *, metadata: bool = True) -> None:
    """training_images/00001_aardvark/aardvark_00s.jpg …, and their list as the study ships it."""
    content: dict[str, list[str]] = {}
    for key, folder, concepts in (("train", "training_images", TRAINING), ("test", "test_images", TEST)):
        for number, (concept, n) in enumerate(concepts.items()):
            name = concept.partition("_")[2]
            for i in range(n):
                place = images / folder / concept / f"{name}_{i:02d}s.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number * 90, i * 20, 200 if key == "test" else 0)).save(place)
                content.setdefault(f"{key}_img_concepts", []).append(concept)
                content.setdefault(f"{key}_img_concepts_THINGS", []).append(f"{number:05d}_{name}")
                content.setdefault(f"{key}_img_files", []).append(place.name)
    if metadata:
        np.save(images / "image_metadata.npy", content, allow_pickle=True)


def osf_dictionary(n_pictures: int, n_repetitions: int, seed: int = 0) -> dict:
    """17 channels, -0.2 to 0.79 s at 100 Hz."""
    eeg = np.random.default_rng(seed).standard_normal((n_pictures, n_repetitions, 17, 100))
    return {"preprocessed_eeg_data": eeg, "ch_names": list(THINGS_EEG2_17), "times": np.arange(100) / 100 - 0.2}


def nice_dictionary(n_pictures: int, n_repetitions: int, seed: int = 0) -> dict:
    """63 channels, 0 to 1 s at 250 Hz, and ``times`` with 300 entries."""
    eeg = np.random.default_rng(seed).standard_normal((n_pictures, n_repetitions, 63, 250))
    return {"preprocessed_eeg_data": eeg, "ch_names": list(THINGS_EEG2_63), "times": np.arange(300) / 250 - 0.2}


def write_preprocessed(root: Path, make, *, pickled: bool, subject: str = "01") -> dict[str, dict]:
    folder = root / f"sub-{subject}"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"training": make(20, 4, seed=1), "test": make(2, 80, seed=2)}
    for kind, found in content.items():
        path = folder / f"preprocessed_eeg_{kind}.npy"
        if pickled:
            path.write_bytes(pickle.dumps(found, protocol=4))
        else:
            np.save(path, found, allow_pickle=True)
    return content


def raw_dictionary(codes: list[int], *, seed: int, sfreq: float = 1000.0) -> dict:
    """63 electrodes in an order of their own (and not Fz), then ``stim``; volts. Pictures every 200 ms, 100 ms long."""
    rng = np.random.default_rng(seed)
    names = [*sorted(THINGS_EEG2_63), "stim"]
    onsets = 500 + 200 * np.arange(len(codes))
    n = int(onsets[-1]) + 1500
    mixing = rng.standard_normal((63, 63)) * 4e-6 + np.eye(63) * 2e-5
    eeg = np.cumsum(mixing @ rng.standard_normal((63, n)), axis=1)
    eeg = 1e-5 * eeg / eeg.std(axis=1, keepdims=True) + mixing @ rng.standard_normal((63, n))
    stim = np.zeros(n)
    for onset, code in zip(onsets, codes, strict=True):
        stim[onset : onset + 100] = code
    return {
        "raw_eeg_data": np.vstack([eeg, stim]),
        "ch_names": names,
        "ch_types": ["eeg"] * 63 + ["stim"],
        "sfreq": sfreq,
        "highpass": 0.01,
        "lowpass": 100.0,
    }


def write_raw(root: Path, *, sessions: int = 2, subject: str = "01") -> None:
    """Each session: 20 training pictures three times and 2 test pictures 22 times, with some targets."""
    for session in range(1, sessions + 1):
        rng = np.random.default_rng(session)
        folder = root / f"sub-{subject}" / f"ses-{session:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        for kind, n, repetitions in (("training", 20, 3), ("test", 2, 22)):
            codes = [*np.tile(np.arange(1, n + 1), repetitions).tolist(), *[99999] * 4]
            rng.shuffle(codes)
            content = raw_dictionary(codes, seed=10 * session + n)
            np.save(folder / f"raw_eeg_{kind}.npy", content, allow_pickle=True)


SYNSETS = ["n02106662", "n02124075"]


def spampinato_trials() -> dict:
    """Twelve trials of two subjects; the lengths of trials 3, 4 and 5 are at and beyond the limits."""
    g = torch.Generator().manual_seed(0)
    lengths = {3: 449, 4: 450, 5: 601}
    dataset = [
        {
            "eeg": torch.randn(128, lengths.get(i, 500), generator=g),
            "image": i % 6,
            "label": (i % 6) // 3,
            "subject": 1 + i // 6,
        }
        for i in range(12)
    ]
    # A trial of 450 samples is long enough by the rule and too short for the crop.
    return {"dataset": dataset, "labels": SYNSETS, "images": [f"{SYNSETS[i // 3]}_{10 + i}" for i in range(6)]}


def write_spampinato(folder: Path, content: dict | None = None, splits: list | None = None) -> Path:
    torch.save(content or spampinato_trials(), folder / "eeg_5_95_std.pth")
    splits = splits or [{}, {"train": [0, 1, 2, 3, 4, 5, 6, 7], "val": [8], "test": [10, 11]}]
    torch.save({"splits": splits}, folder / "block_splits_by_image_all.pth")
    return folder


def ttdnet_epochs(n: int = 4, *, subject: int = 2, n_channels: int = 63) -> dict:
    """As preprocess_things_eeg.py saves them; the last one is a validation trial."""
    g = torch.Generator().manual_seed(0)
    names = [("aardvark", f"aardvark_{i:02d}s.jpg") for i in range(n - 1)] + [("zebra", "zebra_11n.jpg")]
    rows = [
        {
            "eeg": torch.randn(n_channels, 512, generator=g),
            "label": -1 if concept == "zebra" else 3,
            "object": "-1" if concept == "zebra" else concept,
            "image_path": f"..\\datasets\\object_images\\{concept}/{name}",
            "image_name": name,
            "subject": subject,
        }
        for concept, name in names
    ]
    facts = {"subject": subject, "n_channels": n_channels, "time_len": 512, "epoch_tmin": -0.1, "epoch_tmax": 0.9}
    return {"dataset": rows, "labels": [-1, 3], "objects": ["-1", "aardvark"], **facts}
