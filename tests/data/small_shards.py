"""Small shards whose every number is known, for the tests of this folder."""

import hashlib

import numpy as np

from ttd.data.writer import ShardWriter

CH_NAMES = ["Fz", "Cz", "Pz"]
MEAN, STD = [1.0, 2.0, 3.0], [2.0, 4.0, 8.0]


def sample(i, n_repetitions=2):
    """EEG float16 [R, 3, 20] of sample i; repetition r of channel c is i + 10 r + c + t / 32 (exact in float16)."""
    r, c, t = np.ogrid[:n_repetitions, :3, :20]
    return (i + 10 * r + c + t / 32).astype(np.float16)


def image_sha(i):
    return hashlib.sha256(f"image {i}".encode()).hexdigest()


def meta(i, n_repetitions=2, part="train", image=None):
    image = i if image is None else image
    return {
        "study": "Simulated",
        "subject": f"sub-{i % 2}",
        "cap": "three",
        "sessions": ["1"] * n_repetitions,
        "runs": [part] * n_repetitions,
        "onsets": [float(10 * i + r) for r in range(n_repetitions)],
        "image_id": f"image-{image}",
        "concept": f"concept-{image % 3}",
        "label": None,
        "image_sha256": image_sha(image),
        "licence": "CC0",
    }


def facts(part="train"):
    return {
        "study": "Simulated",
        "part": part,
        "sfreq": 100.0,
        "tmin": 0.0,
        "n_times": 20,
        "caps": {"three": CH_NAMES},
        "statistics": {"three": {"mean": MEAN, "std": STD}},
    }


def write_part(folder, *, n, part="train", n_repetitions=2, first_image=0):
    """Shards of two samples each: subjects alternate, every sample has a picture of its own."""
    with ShardWriter(folder, kind="paired", samples_per_shard=2) as writer:
        for i in range(n):
            members = {
                "eeg.npy": sample(i, n_repetitions),
                "meta.json": meta(i, n_repetitions, part, first_image + i),
            }
            writer.write(f"sub-{i % 2}_img-{i:04d}", members)
        return writer.finish(facts(part))


def write_targets(root, name, images, value):
    """Targets ``value(image)`` float16 of the given pictures."""
    with ShardWriter(root / "targets" / name, kind="target") as writer:
        for image in images:
            writer.write(image_sha(image), {"target.npy": value(image)})
        writer.finish({"study": "Simulated"})
