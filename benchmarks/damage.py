"""R4: twelve kinds of damage to shards, each at twenty places: found before use, named, and nothing lost or changed in silence.

    python benchmarks/damage.py

Small shards of EEG, picture and meta.json. For each damage: ``verify`` must find it; a reader must give each sample as it was
written or refuse it by name; after ``quarantine`` the rest must read as it was written, and what is left out lies in the
damaged shard.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ttd.data import tar
from ttd.data.index import ShardIndex
from ttd.data.members import DamageError
from ttd.data.reader import ShardReader
from ttd.data.verify import quarantine, verify
from ttd.data.writer import ShardWriter

N, PER_SHARD, SHARD = 24, 8, "000001.tar"
Sample = list[tuple[str, int, int]]  # member, first byte of its header, end with padding
Edit = Callable[[bytearray, list[Sample], np.random.Generator], bytes | bytearray]


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "train", kind="materialised", samples_per_shard=PER_SHARD) as writer:
        for i in range(N):
            image = b"\xff\xd8\xff" + rng.bytes(900 + i)
            about = {"study": "Damage", "subject": "01", "cap": "cap", "image_id": str(i)}
            about |= {
                "sessions": ["1"],
                "runs": ["1"],
                "onsets": [float(i)],
                "image_sha256": hashlib.sha256(image).hexdigest(),
            }
            eeg = rng.standard_normal((1, 4, 64)).astype(np.float16)
            writer.write(f"s{i:04d}", {"eeg.npy": eeg, "image.jpg": image, "meta.json": about})
        cap = {"caps": {"cap": list("abcd")}, "statistics": {"cap": {"mean": [0.0] * 4, "std": [1.0] * 4}}}
        facts = {"study": "Damage", "part": "train", "sfreq": 64.0, "tmin": 0.0, "n_times": 64}
        writer.finish({**facts, **cap, "source": {"targets": {}}})


def layout(index: ShardIndex) -> list[Sample]:
    """Where each sample of the damaged shard lies."""
    rows = np.flatnonzero(index.shard == int(SHARD[:6]))
    out = []
    for i in rows.tolist():
        members = [(m, int(o), int(s)) for m, o, s in zip(index.members, index.offset[i], index.size[i], strict=True)]
        out.append([(m, o - tar.BLOCK, o + s + -s % tar.BLOCK) for m, o, s in sorted(members, key=lambda m: m[1])])
    return out


def member(samples: list[Sample], rng: np.random.Generator) -> tuple[str, int, int]:
    sample = samples[rng.integers(len(samples))]
    return sample[rng.integers(len(sample))]


def flip(content: bytearray, at: int) -> bytearray:
    content[at] ^= 1
    return content


def flip_checksum(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    return flip(content, member(samples, rng)[1] + 148 + int(rng.integers(6)))


def flip_name(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    return flip(content, member(samples, rng)[1] + int(rng.integers(10)))


def zero_header(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    start = member(samples, rng)[1]
    content[start : start + tar.BLOCK] = bytes(tar.BLOCK)
    return content


def cut_at_sample(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    return content[: samples[rng.integers(len(samples))][0][1]]


def cut_in_header(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    return content[: member(samples, rng)[1] + int(rng.integers(1, tar.BLOCK))]


def cut_in_sample(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    return content[: samples[rng.integers(len(samples))][1][1]]


def cut_in_member(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    _, start, stop = member(samples, rng)
    return content[: start + tar.BLOCK + int(rng.integers(1, stop - start - tar.BLOCK))]


def flip_content(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    return flip(content, member(samples, rng)[1] + tar.BLOCK + int(rng.integers(200)))


def empty(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytes:
    return b""


def repeat(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    """A key that occurs twice: a copy of a sample behind it."""
    sample = samples[rng.integers(len(samples))]
    start, stop = sample[0][1], sample[-1][2]
    return content[:stop] + content[start:stop] + content[stop:]


def reorder(content: bytearray, samples: list[Sample], rng: np.random.Generator) -> bytearray:
    """Two samples in each other's place."""
    a, b = sorted(rng.choice(len(samples), 2, replace=False))
    (a0, a1), (b0, b1) = ((samples[i][0][1], samples[i][-1][2]) for i in (a, b))
    return content[:a0] + content[b0:b1] + content[a1:b0] + content[a0:a1] + content[b1:]


KINDS: dict[str, Edit | None] = {
    "one bit of a header's checksum": flip_checksum,
    "one bit of a name": flip_name,
    "a zeroed header": zero_header,
    "cut between samples": cut_at_sample,
    "cut inside a header": cut_in_header,
    "cut between EEG and picture": cut_in_sample,
    "cut inside a member": cut_in_member,
    "one bit of a content": flip_content,
    "an empty file": empty,
    "a key twice": repeat,
    "two samples exchanged": reorder,
    "another shard in its place": None,
}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def try_one(original: Path, folder: Path, edit: Edit | None, place: int) -> tuple[bool, int, int]:
    """(found by verify, samples that were changed or lost in silence, samples left out)."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    truth = ShardReader.open(original / "train")
    path, rng = folder / "train" / SHARD, np.random.default_rng(place)
    if edit is None:
        shutil.copy(original / "train" / ("000000.tar", "000002.tar")[place % 2], path)
    else:
        path.write_bytes(edit(bytearray(path.read_bytes()), layout(truth.index), rng))
    expected = {key: truth.read(i) for i, key in enumerate(truth.index.keys)}

    def wrong(reader: ShardReader, allowed: bool) -> int:
        n = 0
        for i, key in enumerate(reader.index.keys):
            try:
                n += not same(reader.read(i), expected[key])
            except DamageError as error:
                n += not (allowed and error.key == key and SHARD in str(error))
        return n

    report = verify(folder)
    silent = wrong(ShardReader.open(folder / "train"), allowed=True)
    rest = quarantine(report.findings)
    left = ShardReader.open(folder / "train")
    silent += wrong(left, allowed=False)  # nothing that is left may fail
    left_out = N - len(left)
    named = all(SHARD in str(finding) for finding in report.findings)
    outside = {key for key in left.index.quarantined if not PER_SHARD <= int(key[1:]) < 2 * PER_SHARD}
    return bool(report.findings) and named and (left_out > 0 or bool(rest)) and not outside, silent, left_out


def run(places: int) -> tuple[int, int, int]:
    """(damages, found, silently changed or lost), printing one line per kind."""
    total = found = silent = 0
    with tempfile.TemporaryDirectory() as temporary:
        original, folder = Path(temporary) / "original", Path(temporary) / "damaged"
        write(original)
        for name, edit in KINDS.items():
            results = [try_one(original, folder, edit, place) for place in range(places)]
            hits, lost = sum(r[0] for r in results), sum(r[1] for r in results)
            left_out = [r[2] for r in results]
            span = f"{min(left_out)} to {max(left_out)}"
            print(f"  {name}: {hits} of {places} found, {lost} silent, {span} of {N} samples left out by quarantine")
            total, found, silent = total + places, found + hits, silent + lost
    return total, found, silent


if __name__ == "__main__":
    total, found, silent = run(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print(
        f"R4 damage: {found} of {total} found and named ({100 * found / total:.1f} %), goal 100 %; silent: {silent}, goal 0"
    )
