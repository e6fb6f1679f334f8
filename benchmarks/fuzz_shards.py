"""S5 for our own format: change bytes of shards, index.json and index.npz; nothing may pass as another shape.

    python benchmarks/fuzz_shards.py 10000

Each case ends in the samples and facts that were written, or in one ``UserError``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from damage import write

from ttd.config import UserError
from ttd.data.reader import ShardReader

FILES = ("000001.tar", "index.npz", "index.json")


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    out, at = bytearray(content), int(rng.integers(len(content)))
    kind = rng.integers(5)
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        out[at : at + 8] = rng.bytes(8)
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        out[at:at] = out[max(0, at - int(rng.integers(1, 600))) : at]
    else:
        out[at : at + 1] = b'0123456789-e.,[]{}"n'[rng.integers(20) :][:1]
    return bytes(out)


def outcome(folder: Path, truth: dict, fingerprint: str) -> str:
    try:
        reader = ShardReader.open(folder)
        if reader.index.fingerprint != fingerprint:
            return "WRONG: other facts"
        read = {key: reader.read(i) for i, key in enumerate(reader.index.keys)}
        views = {key: reader.eeg(i) for i, key in enumerate(reader.index.keys)}
    except UserError:
        return "refused"
    if read.keys() != truth.keys():
        return "WRONG: other keys"
    for key, members in truth.items():
        if read[key].keys() != members.keys() or views[key].shape != members["eeg.npy"].shape:
            return "WRONG: other shape"
        if any(not np.array_equal(read[key][n], members[n]) for n in members):
            return "WRONG: other content"
    return "as written"


def run(cases: int, seed: int = 0) -> Counter:
    """Outcomes by file."""
    rng, out = np.random.default_rng(seed), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write(root)
        folder = root / "train"
        reader = ShardReader.open(folder)
        truth = {key: reader.read(i) for i, key in enumerate(reader.index.keys)}
        for case in range(cases):
            path = folder / FILES[case % len(FILES)]
            shutil.copy(path, root / "kept")
            path.write_bytes(mutate(path.read_bytes(), rng))
            out[path.name, outcome(folder, truth, reader.index.fingerprint)] += 1
            shutil.copy(root / "kept", path)
    return out


if __name__ == "__main__":
    results = run(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
    for (name, what), n in sorted(results.items()):
        print(f"S5 {name}: {n} {what}")
    print(f"S5 shards: {sum(n for (_, what), n in results.items() if 'WRONG' in what)} wrong in silence, goal 0")
