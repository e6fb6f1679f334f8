"""P1 to P4: reading, delivering and packing samples, beside webdataset (and litdata where it can be imported).

    OMP_NUM_THREADS=1 python benchmarks/loader.py P1 P2 P3 P4
    OMP_NUM_THREADS=1 PYTHONPATH=<folder of pip install --no-deps --target> python benchmarks/loader.py P1

W2: latent [4, 64, 64], CLIP [768], EEG [63, 512], all float16, 99 kB. W1: the same EEG and a 512-pixel JPEG of quality 90.
TTD reads its own shards in random order (targets and pictures joined by image); webdataset reads what ``shards/materialise.py``
makes of them, front to back. Page cache warm.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset as wds
from figures import compare
from scipy.ndimage import gaussian_filter

from ttd.data import targets
from ttd.data.materialise import Pairs, materialise
from ttd.data.pictures import decode_into
from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.data.writer import ShardWriter

B, C, T = 32, 63, 512
MEAN, STD = 0.1, 1.1
SHAPES = {"clip": (768,), "vae": (4, 64, 64)}


def sha(i: int) -> str:
    return hashlib.sha256(f"image {i}".encode()).hexdigest()


def meta(i: int) -> dict[str, Any]:
    about = {"study": "Benchmark", "subject": "01", "cap": "cap", "image_id": f"{i}", "image_sha256": sha(i)}
    return {**about, "sessions": ["1"], "runs": ["1"], "onsets": [float(i)]}


def facts() -> dict[str, Any]:
    cap = {"caps": {"cap": [f"E{c}" for c in range(C)]}, "statistics": {"cap": {"mean": [MEAN] * C, "std": [STD] * C}}}
    return {"study": "Benchmark", "part": "train", "sfreq": 512.0, "tmin": 0.0, "n_times": T, **cap}


def eeg(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((1, C, T), np.float32).astype(np.float16)


def write_latents(root: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(root / "train", kind="paired") as writer:
        for i in range(n):
            writer.write(f"s{i:06d}", {"eeg.npy": eeg(rng), "meta.json": meta(i)})
        writer.finish(facts())
    for name, shape in SHAPES.items():
        with ShardWriter(root / "targets" / name, kind="target") as writer:
            for i in range(n):
                writer.write(sha(i), {"target.npy": rng.standard_normal(shape, np.float32).astype(np.float16)})
            writer.finish({"study": "Benchmark"})
    pairs = Pairs(root, "train", list(SHAPES), images=False)
    list(materialise(root / "pairs" / "train", pairs, samples_per_shard=512, seed=0))


def jpeg(rng: np.random.Generator) -> bytes:
    noise = gaussian_filter(rng.standard_normal((512, 512, 3)), (2, 2, 0))
    return simplejpeg.encode_jpeg(np.clip(noise * 350 + 128, 0, 255).astype(np.uint8), quality=90)


def write_pictures(root: Path, n: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    contents = [jpeg(rng) for _ in range(n)]
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    with ShardWriter(root / "train", kind="paired") as writer:
        for i in range(n):
            writer.write(f"s{i:06d}", {"eeg.npy": eeg(rng), "meta.json": meta(i) | {"image_sha256": hashes[i]}})
        writer.finish(facts())
    with ShardWriter(root / "images", kind="image") as writer:
        for i, content in enumerate(contents):
            writer.write(hashes[i], {"image.jpg": content, "meta.json": {"image_id": f"{i}", "sha256": hashes[i]}})
        writer.finish({"study": "Benchmark"})
    list(materialise(root / "pairs" / "train", Pairs(root, "train", [], images=True), samples_per_shard=512, seed=0))
    return contents


def tars(root: Path) -> list[str]:
    return [str(path) for path in sorted((root / "pairs" / "train").glob("*.tar"))]


def stream(root: Path, **options: Any) -> Stream:
    config = DataConfig(shards=root, **options)
    return Stream(open_reader(config), config, seed=0, global_batch_size=B)


def read(stream: Stream) -> int:
    """One pass in this thread."""
    steps = stream.n // B
    for positions in islice(stream.positions(0), steps):
        stream.read(positions)
    return steps * B


def delivered(stream: Stream) -> int:
    """One pass through the prefetch thread."""
    return sum(len(batch["eeg"]) for batch in islice(stream.batches(), stream.n // B))


def finish(batch: tuple) -> list[torch.Tensor]:
    """What TTD hands out, from what a peer does: float32, EEG standardised."""
    tensors = map(torch.as_tensor, batch)
    first, *rest = (part if part.dtype == torch.uint8 else part.float() for part in tensors)
    return [first.sub_(MEAN).mul_(1 / STD), *rest]


def collate(samples: list[tuple]) -> tuple:
    columns = zip(*samples, strict=True)
    return tuple(torch.stack(c) if isinstance(c[0], torch.Tensor) else np.stack(c) for c in columns)


def latents(urls: list[str], *, same: bool) -> wds.WebDataset:
    dataset = wds.WebDataset(urls, shardshuffle=False).decode(only=["eeg.npy", "clip.npy", "vae.npy"])
    dataset = dataset.to_tuple("eeg.npy", "clip.npy", "vae.npy").batched(B, collation_fn=collate, partial=False)
    return dataset.map(finish) if same else dataset


def count(batches: Any) -> int:
    return sum(len(batch[0]) for batch in batches)


def litdata_pass(folder: Path) -> Any:
    """One pass of litdata over the same arrays, or None where it is not installed."""
    try:
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming.writer import BinaryWriter
    except ImportError as error:
        print(f"litdata: not measured ({error})")
        return None
    writer = BinaryWriter(str(folder), chunk_bytes=64 * 2**20)
    rng, n = np.random.default_rng(0), 0
    for n in range(2000):
        vae = rng.standard_normal(SHAPES["vae"], np.float32).astype(np.float16)
        clip = rng.standard_normal(SHAPES["clip"], np.float32).astype(np.float16)
        writer.add_item(n, {"eeg": eeg(rng), "clip": clip, "vae": vae})
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(folder), shuffle=False, drop_last=True)

    def work() -> int:
        loader = StreamingDataLoader(
            dataset, batch_size=B, num_workers=0, collate_fn=lambda items: collate([tuple(i.values()) for i in items])
        )
        return count(map(finish, loader))

    return work


def p1(folder: Path) -> None:
    write_latents(folder, 2000)
    urls = tars(folder)
    targets.MAX_IN_MEMORY = 0
    on_disk = stream(folder, targets=["clip", "vae"])
    targets.MAX_IN_MEMORY = 2**28
    held = stream(folder, targets=["clip", "vae"])
    for name, own in (("everything read and verified", on_disk), ("targets held in memory, as by default", held)):
        ours = partial(read, own)
        compare(
            f"P1 {name}, webdataset to the same float32", ours, lambda: count(latents(urls, same=True)), goal=">= 10"
        )
        compare(
            f"P1 {name}, webdataset's float16 as it is", ours, lambda: count(latents(urls, same=False)), goal=">= 10"
        )
    ordered = stream(folder, targets=["clip", "vae"])
    ordered._permutations[0] = np.arange(ordered.n)
    compare("order: a full permutation, front to back", partial(read, held), partial(read, ordered), goal="about 1")
    work = litdata_pass(folder / "litdata")
    if work is not None:
        compare(
            "P1 everything read and verified, litdata to the same float32", partial(read, on_disk), work, goal=">= 3"
        )
        compare("P1 targets held in memory, litdata to the same float32", partial(read, held), work, goal=">= 3")


def p2(folder: Path) -> None:
    contents = write_pictures(folder, 256)
    ours = partial(read, stream(folder, picture_size=512, decode_threads=1))

    def webdataset(handler: str) -> int:
        dataset = wds.WebDataset(tars(folder), shardshuffle=False).decode(handler, only=["eeg.npy", "image.jpg"])
        return count(
            map(finish, dataset.to_tuple("eeg.npy", "image.jpg").batched(B, collation_fn=collate, partial=False))
        )

    def bare() -> int:
        out = np.empty((B, 512, 512, 3), np.uint8)
        for i, content in enumerate(contents):
            decode_into(content, out[i % B])
        return len(contents)

    for handler in ("torchrgb8", "rgb8"):
        compare(
            f"P2 JPEG, webdataset .decode('{handler}')", ours, partial(webdataset, handler), goal=">= 1.6", rounds=7
        )
    compare("P2 JPEG, bare decoding of the same files into a batch", ours, bare, goal=">= 0.91 (1 / 1.10)", rounds=7)


def p3(folder: Path) -> None:
    write_latents(folder, 2000)
    own = stream(folder, targets=["clip", "vae"])

    def webdataset() -> int:
        dataset = latents(tars(folder), same=True)
        return count(wds.WebLoader(dataset, batch_size=None, num_workers=2))

    compare("P3 delivered, webdataset with 2 workers", partial(delivered, own), webdataset, goal=">= 6")


def p4(folder: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        {"eeg.npy": eeg(rng), "meta.json": meta(i)}
        | {f"{name}.npy": rng.standard_normal(shape, np.float32).astype(np.float16) for name, shape in SHAPES.items()}
        for i in range(512)
    ]

    def ours() -> int:
        with ShardWriter(folder / "ours", kind="materialised", samples_per_shard=256) as writer:
            for i, sample in enumerate(samples):
                writer.write(f"s{i:06d}", sample)
            writer.finish(facts())
        return len(samples)

    def peer(*, sync: bool) -> int:
        shutil.rmtree(folder / "peer", ignore_errors=True)
        (folder / "peer").mkdir()
        with wds.ShardWriter(str(folder / "peer" / "%06d.tar"), maxcount=256, verbose=0) as writer:
            for i, sample in enumerate(samples):
                writer.write({"__key__": f"s{i:06d}", **sample})
        for path in (folder / "peer").iterdir() if sync else ():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return len(samples)

    name = "P4 packing with index, xxh3 per member, sha256 and fsync per shard, webdataset.ShardWriter"
    compare(name, ours, partial(peer, sync=False), goal=">= 2")
    compare(name + " and fsync", ours, partial(peer, sync=True), goal=">= 2")


def main() -> None:
    torch.set_num_threads(1)
    figures = {"P1": p1, "P2": p2, "P3": p3, "P4": p4}
    print(json.dumps({"torch": torch.__version__, "webdataset": wds.__version__, "numpy": np.__version__}))
    for name in sys.argv[1:] or figures:
        with tempfile.TemporaryDirectory(prefix="ttd-benchmark-") as folder:
            figures[name](Path(folder))


if __name__ == "__main__":
    main()
