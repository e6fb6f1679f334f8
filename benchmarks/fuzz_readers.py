"""Damage files of every format that TTD reads, and count what its readers say. One line per format.

    python benchmarks/fuzz_readers.py [cases, 10000] [format …]

Case i of a format is the same file always. Each case must end in one of three ways: refused with the documented error, naming
the file; read with the shapes of the original; or silently wrong: other shapes without a word, which must not happen. For
containers of epochs and for shards electrodes, rate, first time and keys count as shape. Of those with equal shapes the number
in brackets has other values: formats without checksums cannot tell. A recording's names and, in BrainVision, its sampling
interval are such values: the file states them once. A crash is any other exception.
"""

from __future__ import annotations

import collections
import hashlib
import logging
import pickle
import resource
import shutil
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
import scipy.io

from ttd.config import UserError
from ttd.data.reader import ShardReader
from ttd.data.writer import ShardWriter
from ttd.eeg import files
from ttd.eeg.montage import THINGS_EEG2_17
from ttd.eeg.studies.gifford2022 import Picture, StoredRecording
from ttd.eeg.studies.interface import read_signal_file
from ttd.eeg.studies.spampinato2017 import Spampinato2017Config, Trials

Result = tuple[object, str]
"""What must not change in silence (shapes, names, rate), and a hash of the values."""


class Format(NamedTuple):
    make: Callable[[Path], Path]
    """Write a good file (and its companions) into a folder; returns the one to damage."""
    read: Callable[[Path], Result]


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


# --------------------------------------------------------------------------------------------- containers of epochs


def preprocessed() -> dict[str, object]:
    eeg = np.random.default_rng(0).standard_normal((3, 2, 17, 10))
    return {"preprocessed_eeg_data": eeg, "ch_names": sorted(THINGS_EEG2_17), "times": np.arange(10) / 100 - 0.2}


def make_npy(folder: Path) -> Path:
    np.save(folder / "preprocessed_eeg_training.npy", preprocessed(), allow_pickle=True)  # type: ignore[arg-type]
    return folder / "preprocessed_eeg_training.npy"


def make_pickle(folder: Path) -> Path:
    (folder / "preprocessed_eeg_training.npy").write_bytes(pickle.dumps(preprocessed(), protocol=4))
    return folder / "preprocessed_eeg_training.npy"


def read_stored(path: Path) -> Result:
    stimuli = [Picture(f"image{i}", "concept", path, "train") for i in range(3)]
    recording = StoredRecording(path, "01", "", "training", stimuli)
    recording.check()
    found = recording.epoched()
    data = np.stack(list(found.data))
    return (data.shape, found.ch_names, found.sfreq, round(found.tmin, 2), len(recording.events())), digest(data)


def make_pth(folder: Path) -> Path:
    import torch

    g = torch.Generator().manual_seed(0)
    trials = [{"eeg": torch.randn(128, 3, generator=g), "image": i, "label": 0, "subject": 1} for i in range(3)]
    content = {"dataset": trials, "labels": ["n02106662"], "images": [f"n02106662_{i}" for i in range(3)]}
    torch.save(content, folder / "eeg_5_95_std.pth")
    torch.save({"splits": [{"train": [0], "val": [1], "test": [2]}]}, folder / "block_splits_by_image_all.pth")
    return folder / "eeg_5_95_std.pth"


def read_pth(path: Path) -> Result:
    trials = Trials(Spampinato2017Config(root=path.parent)).content["dataset"]
    return [trial["eeg"].shape for trial in trials], digest(*(trial["eeg"] for trial in trials))


# ------------------------------------------------------------------------------------------------------- recordings


def make_edf(folder: Path) -> Path:
    """EDF+C: three signals of 40 samples a record and an annotation signal with the time stamps; six records."""
    n, labels, counts = 4, ["EEG Cz", "EEG Pz", "EEG Oz", "EDF Annotations"], [40, 40, 40, 20]

    def field(value: object, width: int) -> bytes:
        return str(value).ljust(width).encode()

    head = field(0, 8) + field("X X X X", 80) + field("Startdate X X X X", 80) + b"01.01.2001.00.00"
    head += field(256 * (n + 1), 8) + field("EDF+C", 44) + field(6, 8) + field(1, 8) + field(n, 4)
    kinds = [(16, labels), (80, [""] * n), (8, ["uV"] * 3 + [""]), (8, [-3276.8] * n), (8, [3276.7] * n)]
    kinds += [(8, [-32768] * n), (8, [32767] * n), (80, [""] * n), (8, counts), (32, [""] * n)]
    head += b"".join(field(value, width) for width, values in kinds for value in values)
    rng = np.random.default_rng(0)
    records = b""
    for record in range(6):
        records += rng.integers(-900, 900, 120).astype("<i2").tobytes() + f"+{record}\x14\x14\0".encode().ljust(
            40, b"\0"
        )
    (folder / "a.edf").write_bytes(head + records)
    return folder / "a.edf"


def make_brainvision(folder: Path) -> Path:
    names = ["Cz", "Pz", "Oz"]
    np.random.default_rng(0).integers(-900, 900, (240, 3)).astype("<i2").tofile(folder / "a.eeg")
    (folder / "a.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nDataFile=a.eeg\n\n[Marker Infos]\n"
        "Mk1=New Segment,,1,1,0,20010101000000000000\nMk2=Stimulus,S  1,200,1,0\n"
    )
    lines = "".join(f"Ch{i + 1}={name},,0.1,µV\n" for i, name in enumerate(names))
    (folder / "a.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\nDataFile=a.eeg\n"
        "MarkerFile=a.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=3\nDataPoints=240\n"
        f"SamplingInterval=4000\n\n[Binary Infos]\nBinaryFormat=INT_16\n\n[Channel Infos]\n{lines}",
        encoding="utf-8",
    )
    return folder / "a.vhdr"


def make_brainvision_part(suffix: str) -> Callable[[Path], Path]:
    return lambda folder: make_brainvision(folder).with_suffix(suffix)


def read_brainvision(path: Path) -> Result:
    return read_recording(path.with_suffix(".vhdr"))


def make_bdf(folder: Path) -> Path:
    """The same signals and stamps as 24-bit BDF+."""
    edf = make_edf(folder).read_bytes()
    n_head = 256 * 5
    head = bytearray(edf[:n_head])
    head[:8], head[192:236] = b"\xffBIOSEMI", b"BDF+C".ljust(44)
    head[256 + 3 * 16 : 256 + 4 * 16] = b"BDF Annotations "
    samples = np.frombuffer(edf[n_head:], "<i2").reshape(6, 140).astype("<i4")
    records = b""
    for record in range(6):
        records += samples[record, :120].view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        records += f"+{record}\x14\x14\0".encode().ljust(60, b"\0")  # 20 samples of 3 bytes
    (folder / "a.bdf").write_bytes(bytes(head) + records)
    return folder / "a.bdf"


def make_fif(folder: Path) -> Path:
    info = mne.create_info(["Cz", "Pz", "Oz"], 100.0, "eeg")
    data = np.random.default_rng(0).standard_normal((3, 240)) * 3e-5
    mne.io.RawArray(data, info, verbose="ERROR").save(folder / "a_raw.fif", verbose="ERROR")
    return folder / "a_raw.fif"


def eeglab_content() -> tuple[dict[str, object], np.ndarray]:
    """A recording as EEGLAB saves it, and its samples."""
    eeg = np.random.default_rng(0).standard_normal((3, 240)).astype(np.float32) * 30
    places = np.array([(name, "EEG") for name in ("Cz", "Pz", "Oz")], dtype=[("labels", "O"), ("type", "O")])
    numbers = {"nbchan": 3.0, "pnts": 240.0, "trials": 1.0, "srate": 100.0, "xmin": 0.0, "xmax": 2.39}
    empty = {name: [] for name in ("event", "icaact", "icawinv", "icasphere", "icaweights", "times")}
    return {"setname": "a", "chanlocs": places, "chaninfo": {"nosedir": "+X"}, "ref": "common", **numbers, **empty}, eeg


def make_set(folder: Path) -> Path:
    content, eeg = eeglab_content()
    scipy.io.savemat(folder / "a.set", {"EEG": {**content, "data": eeg}}, appendmat=False)
    return folder / "a.set"


def make_set_and_fdt(folder: Path) -> Path:
    content, eeg = eeglab_content()
    eeg.T.tofile(folder / "a.fdt")  # all channels of a sample, then the next sample
    scipy.io.savemat(folder / "a.set", {"EEG": {**content, "data": "a.fdt"}}, appendmat=False)
    return folder / "a.set"


def read_recording(path: Path) -> Result:
    files.check_signal_file(path)
    raw = read_signal_file(path)
    try:
        data = raw.get_data()
    except Exception as error:  # what MNE raises while it reads samples is turned into UserError by the studies
        raise UserError(f"{path}: {error}") from error
    return data.shape, digest(data)


# ----------------------------------------------------------------------------------------------------- our own shards


def make_shards(folder: Path, name: str) -> Path:
    with ShardWriter(folder / "train", kind="epoch", samples_per_shard=4) as writer:
        for i in range(4):
            eeg = np.random.default_rng(i).standard_normal((2, 3, 20)).astype(np.float16)
            meta = {"study": "S", "subject": "01", "cap": "three", "sessions": ["1"] * 2, "runs": ["1"] * 2}
            meta |= {"onsets": [0.0, 1.0], "image_id": None, "concept": "c", "label": f"{i}", "image_sha256": None}
            writer.write(f"sample-{i}", {"eeg.npy": eeg, "meta.json": meta | {"licence": "CC0"}})
        facts = {"study": "S", "part": "train", "sfreq": 100.0, "tmin": 0.0, "n_times": 20}
        statistics = {"three": {"mean": [0.0] * 3, "std": [1.0] * 3}}
        writer.finish(facts | {"caps": {"three": ["Fz", "Cz", "Pz"]}, "statistics": statistics})
    return folder / "train" / name


def read_shards(path: Path) -> Result:
    reader = ShardReader.open(path.parent)
    found = [np.array(reader.eeg(i)) for i in range(len(reader))]
    index = reader.index
    return ([eeg.shape for eeg in found], index.keys, index.ch_names, index.sfreq, index.tmin), digest(*found)


# ------------------------------------------------------------------------------------------------------- our exports


def make_encoder(folder: Path, name: str) -> Path:
    from ttd.encoders import build_encoder, save_encoder
    from ttd.encoders.nice import NiceConfig

    config = NiceConfig(n_filters=4, embed_dim=8)
    save_encoder(folder / "encoder", build_encoder(config, n_times=100, sfreq=100.0, ch_names=["Fz", "Cz", "Pz"]))
    return folder / "encoder" / name


def read_encoder(path: Path) -> Result:
    from ttd.encoders import load_encoder

    encoder = load_encoder(path.parent)
    weights = encoder.state_dict()
    shapes = [(name, tuple(tensor.shape)) for name, tensor in weights.items()]
    facts = encoder.ch_names, encoder.sfreq, encoder.n_times, encoder.config
    return (shapes, facts), digest(*(tensor.numpy() for tensor in weights.values()))


FORMATS = {
    "npy dict": Format(make_npy, read_stored),
    "pickle npy": Format(make_pickle, read_stored),
    "pth": Format(make_pth, read_pth),
    "edf": Format(make_edf, read_recording),
    "bdf": Format(make_bdf, read_recording),
    "fif": Format(make_fif, read_recording),
    "eeglab": Format(make_set, read_recording),
    "eeglab with fdt": Format(make_set_and_fdt, read_recording),
    "brainvision header": Format(make_brainvision, read_recording),
    "brainvision markers": Format(make_brainvision_part(".vmrk"), read_brainvision),
    "brainvision samples": Format(make_brainvision_part(".eeg"), read_brainvision),
    "index.json": Format(lambda folder: make_shards(folder, "index.json"), read_shards),
    "index.npz": Format(lambda folder: make_shards(folder, "index.npz"), read_shards),
    "encoder weights": Format(lambda folder: make_encoder(folder, "model.safetensors"), read_encoder),
    "encoder config": Format(lambda folder: make_encoder(folder, "config.json"), read_encoder),
    "tar": Format(lambda folder: make_shards(folder, "000000.tar"), read_shards),
}


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes, of the kinds that transfers, disks and people make; half of them in the first 4 kB."""
    content = bytearray(good)
    for _ in range(rng.integers(1, 4)):
        limit = len(content) if rng.random() < 0.5 else min(len(content), 4096)
        at, n = int(rng.integers(0, limit)), int(rng.integers(1, 64))
        match int(rng.integers(0, 9)):
            case 0:
                content[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                content[at] = int(rng.integers(0, 256))
            case 2:  # a digit of a header becomes another
                digits = [i for i in range(at, min(at + 200, len(content))) if 48 <= content[i] < 58]
                if digits:
                    content[digits[0]] = int(rng.integers(48, 58))
            case 3:
                del content[max(1, at) :]
            case 4:
                del content[at : at + n]
            case 5:
                content[at:at] = rng.bytes(n)
            case 6:
                content[at : at + n] = bytes(len(content[at : at + n]))
            case 7:  # numbers at the edge of their type
                edge = struct.pack("<q", int(rng.choice([-1, 0, 2**31 - 1, 2**40, 2**62])))
                content[at : at + 8] = edge[: len(content[at : at + 8])]
            case 8:
                content[:] = content.replace(b"\n", b"\r\n")
        if not content:
            return b""
    return bytes(content)


def run(name: str, cases: int, folder: Path) -> dict[str, list[int]]:
    """Numbers of the cases by outcome."""
    form = FORMATS[name]
    path = form.make(folder)
    good = path.read_bytes()
    expected = form.read(path)
    outcomes: dict[str, list[int]] = collections.defaultdict(list)
    for case in range(cases):
        content = damaged(good, np.random.default_rng([zlib.crc32(name.encode()), case]))
        path.unlink()  # a mapped file must not change under its readers
        path.write_bytes(content)
        try:
            found = form.read(path)
        except UserError as error:
            named = any(p.name in str(error) for p in (path, *path.parent.iterdir())) or path.parent.name in str(error)
            outcomes["refused" if named else "no file named"].append(case)
        except Exception as error:  # this is what is counted
            outcomes[f"crash {type(error).__name__}"].append(case)
        else:
            same = "equal" if found[1] == expected[1] else "other values"
            outcomes[same if found[0] == expected[0] else "silently wrong"].append(case)
    return outcomes


def main(cases: int, names: list[str]) -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    wrong = 0
    for name in names:
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        try:
            before = resource.getrusage(resource.RUSAGE_SELF)
            outcomes = run(name, cases, folder)
            after = resource.getrusage(resource.RUSAGE_SELF)
        finally:
            shutil.rmtree(folder)
        counts = {outcome: len(found) for outcome, found in outcomes.items()}
        bad = [(o, found) for o, found in outcomes.items() if o not in ("refused", "equal", "other values")]
        wrong += sum(len(found) for _, found in bad)
        print(
            f"{name}: {cases} cases, refused {counts.get('refused', 0)}, read equal "
            f"{counts.get('equal', 0) + counts.get('other values', 0)} ({counts.get('other values', 0)} with other values), "
            f"silently wrong {counts.get('silently wrong', 0)}, crashed "
            f"{sum(n for o, n in counts.items() if o.startswith('crash'))}; {after.ru_utime - before.ru_utime:.0f} CPU s, "
            f"peak {after.ru_maxrss // 1024} MiB" + "".join(f"; {o}: cases {found[:5]}" for o, found in bad),
            flush=True,
        )
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, sys.argv[2:] or list(FORMATS)))
