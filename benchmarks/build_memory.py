"""Memory: peak of one 50-minute, 63-channel, 1000 Hz BrainVision recording on its way to shards.

    python benchmarks/build_memory.py

Writes a simulated recording (float32, 0.76 GB) with 22,000 presentations at 10 Hz as a BIDS dataset into a temporary
folder, runs ``shards/build_paired.py`` on it in a process of its own, and prints that process's largest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ttd.eeg.montage import THINGS_EEG1_63

ROOT = Path(__file__).resolve().parent.parent
RATE, PARTS = 1000, {"train": 0.9, "validation": 0.05, "test": 0.05}


def write_study(root: Path, minutes: float, n_presentations: int, n_pictures: int) -> None:
    """One subject, one recording; consecutive parts, 2 s apart, as whole sequences would be."""
    folder = root / "sub-01" / "eeg"
    folder.mkdir(parents=True)
    facts = {"Name": "Memory", "BIDSVersion": "1.9.0", "License": "CC0", "Simulated": True}
    (root / "dataset_description.json").write_text(json.dumps(facts))
    n_chans, n_times, rng = len(THINGS_EEG1_63), int(minutes * 60 * RATE), np.random.default_rng(0)
    stem = folder / "sub-01_task-rsvp"
    with open(f"{stem}_eeg.eeg", "wb") as file:
        level = np.zeros(n_chans)
        for start in range(0, n_times, 100_000):  # a leaky random walk: EEG's 1/f in a few lines
            steps = rng.normal(0, 1, (min(100_000, n_times - start), n_chans)).astype(np.float32)
            walk = np.cumsum(steps, axis=0) * 0.1 + level
            level = walk[-1] * 0.5
            (walk + 5 * steps).astype("<f4").tofile(file)
    lines = ["BrainVision Data Exchange Header File Version 1.0", "[Common Infos]", f"DataFile={stem.name}_eeg.eeg"]
    lines += [f"MarkerFile={stem.name}_eeg.vmrk", "DataFormat=BINARY", "DataOrientation=MULTIPLEXED"]
    lines += [f"NumberOfChannels={n_chans}", f"SamplingInterval={1_000_000 // RATE}", "[Binary Infos]"]
    lines += ["BinaryFormat=IEEE_FLOAT_32", "[Channel Infos]"]
    lines += [f"Ch{i}={name},,1,µV" for i, name in enumerate(THINGS_EEG1_63, 1)]
    Path(f"{stem}_eeg.vhdr").write_text("\n".join(lines) + "\n", encoding="utf-8")
    marks = ["BrainVision Data Exchange Marker File Version 1.0", "[Common Infos]", f"DataFile={stem.name}_eeg.eeg"]
    Path(f"{stem}_eeg.vmrk").write_text("\n".join([*marks, "[Marker Infos]", "Mk1=New Segment,,1,1,0"]) + "\n")
    Path(f"{stem}_channels.tsv").write_text(
        "name\ttype\tunits\n" + "".join(f"{name}\tEEG\tµV\n" for name in THINGS_EEG1_63)
    )
    (root / "stimuli" / "plain").mkdir(parents=True)
    bounds = np.cumsum([0, *PARTS.values()])
    rows = ["onset\tduration\tstim_file\timage_id\tconcept\tpart"]
    for number in range(n_presentations):
        place = number / n_presentations
        k = int(np.searchsorted(bounds, place, side="right")) - 1
        part = list(PARTS)[k]
        name = f"{part}-{number % (n_pictures // 10 if part != 'train' else n_pictures):05d}"
        picture = root / "stimuli" / "plain" / f"{name}.png"
        if not picture.exists():
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(picture)
        onset = 5 + k * 2 + number * (minutes * 60 - 15) / n_presentations
        rows.append(f"{onset:.3f}\t0.05\tplain/{name}.png\t{name}\tplain\t{part}")
    Path(f"{stem}_events.tsv").write_text("\n".join(rows) + "\n")


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--presentations", type=int, default=22_000)
    parser.add_argument("--sfreq", type=float, default=250.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_study(root / "bids", arguments.minutes, arguments.presentations, n_pictures=2_000)
        size = (root / "bids/sub-01/eeg/sub-01_task-rsvp_eeg.eeg").stat().st_size
        command = [sys.executable, "shards/build_paired.py", "--config", "configs/shards/simulated_paired.yaml"]
        command += [f"study.root={root / 'bids'}", f"output_dir={root / 'paired'}", "normalise=channel"]
        command += [f"preprocessing.sfreq={arguments.sfreq}", "epochs.tmax=0.9"]
        start = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True)
        wall_s = time.monotonic() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        shards_mb = sum(path.stat().st_size for path in (root / "paired").rglob("*.tar")) / 1e6
    print(f"memory peak_rss_gb {used.ru_maxrss * 1024 / 1e9:.2f} (goal <= 1.5) recording_gb {size / 1e9:.2f}")
    print(f"memory cpu_s {used.ru_utime + used.ru_stime:.0f} wall_s {wall_s:.0f} shards_mb {shards_mb:.0f}")


if __name__ == "__main__":
    main()
