"""P5: CPU time of the EEG pipeline against the usual order of the same MNE calls, and how far the epochs differ.

    python benchmarks/eeg_pipeline.py

63 channels at 1000 Hz, 300 s, an epoch every half second, band 0.1 to 100 Hz, 250 Hz, baseline. The usual order filters,
cuts, resamples the epochs and subtracts the baseline; here the filtered recording is thinned out at the onsets. Both run
one after the other, several times; the ratio is that of CPU times (the machine's load does not move it).
"""

from __future__ import annotations

import argparse
import statistics
import time

import mne
import numpy as np

from ttd.eeg.epochs import EpochsConfig, cut
from ttd.eeg.montage import THINGS_EEG1_63
from ttd.eeg.preprocessing import PreprocessingConfig, preprocess

RATE, SECONDS, SFREQ, TMIN, TMAX = 1000, 300, 250.0, -0.1, 0.899
"""1000 samples: with 0.9 s there are 1001, no multiple of 4, and MNE's ``epochs.resample`` shifts every sample of the
result (r with the filtered recording 0.985); the usual order does so unless tmax is chosen with care."""


def recording() -> tuple[mne.io.BaseRaw, np.ndarray]:
    """Noise with a spectrum of 1/f and 10 µV, and the onsets in samples."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.normal(size=(63, RATE * SECONDS)))
    spectrum[:, 1:] /= np.sqrt(np.arange(1, spectrum.shape[1]))
    data = np.fft.irfft(spectrum)
    data *= 10e-6 / data.std(axis=1, keepdims=True)
    onsets = np.arange(1000, RATE * SECONDS - 1000, 500)
    return mne.io.RawArray(data, mne.create_info(list(THINGS_EEG1_63), RATE, "eeg")), onsets


def usual(raw: mne.io.BaseRaw, onsets: np.ndarray) -> np.ndarray:
    """Filter, cut, resample the epochs, subtract the baseline: [E, C, T] in µV."""
    raw = raw.copy().filter(0.1, 100.0)
    events = np.stack([onsets, np.zeros_like(onsets), np.ones_like(onsets)], axis=1)
    epochs = mne.Epochs(raw, events, tmin=TMIN, tmax=TMAX, baseline=None, preload=True)
    return epochs.resample(SFREQ).apply_baseline((None, 0)).get_data() * 1e6


def ours(raw: mne.io.BaseRaw, onsets: np.ndarray) -> np.ndarray:
    """The project's way: [E, C, T] in µV."""
    config = PreprocessingConfig(sfreq=SFREQ, l_freq=0.1, h_freq=100.0, reference=None)
    clean = preprocess(raw, config, exact_onsets=True)
    return cut(clean, (onsets / RATE).tolist(), EpochsConfig(tmin=TMIN, tmax=TMAX), sfreq=SFREQ).data


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    mne.set_log_level("ERROR")
    raw, onsets = recording()
    seconds: dict[str, list[float]] = {"usual": [], "ours": []}
    results = {}
    for _ in range(repetitions):
        for name, function in (("usual", usual), ("ours", ours)):
            start = time.process_time()
            results[name] = function(raw, onsets)
            seconds[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(seconds["usual"], seconds["ours"], strict=True)]
    a, b = results["usual"], results["ours"]
    inner = slice(10, -10)  # 40 ms: the usual order resamples each epoch over its cut ends
    print(f"P5 cpu_s usual {statistics.median(seconds['usual']):.2f} ours {statistics.median(seconds['ours']):.2f}")
    print(f"P5 ratio median {statistics.median(ratios):.2f} min {min(ratios):.2f} max {max(ratios):.2f} (goal >= 2)")
    print(f"P5 difference whole epochs r {correlation(a, b):.6f} max {np.abs(a - b).max():.3f} uV sd {a.std():.1f} uV")
    a, b = a[:, :, inner], b[:, :, inner]
    print(f"P5 difference without 40 ms at each end r {correlation(a, b):.6f} max {np.abs(a - b).max():.3f} uV")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r over all values."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


if __name__ == "__main__":
    main()
