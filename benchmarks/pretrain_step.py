"""Samples per second of pretraining: the default encoder and loop beside TTD-net's form and loop, in turn.

    OMP_NUM_THREADS=1 python benchmarks/pretrain_step.py small
    OMP_NUM_THREADS=1 python benchmarks/pretrain_step.py base --batch 4

``small`` is 128 x 3 with a decoder of 128 x 2, ``base`` 1024 x 6 with one of 512 x 4; windows [64, 512] at 160 Hz. The peer is
written after the description of TTD-net's stage A: a DataLoader without workers over one npy file per window, masks drawn window
by window in Python from NumPy's global generator, the original encoder with dropout 0.3, float32, and a loss read at every step.
Ours reads shards through the stream, masks by key, and computes in bfloat16 where ``--precision bf16`` (the default, as in
configs/pretrain/inceptsad.yaml). Two rows: the default encoder, with tokens of at most 64 ms, and with the original's 16
samples per token (100 ms). CPU time of the process tree; on a GPU wall time, with the share of a matrix product's rate.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import compare
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.data.writer import ShardWriter
from ttd.eeg.montage import EEGMMIDB_64
from ttd.encoders import InceptSADConfig, build_encoder
from ttd.encoders.decoder import DecoderConfig
from ttd.engine.schedules import make_optimizer
from ttd.experiments.pretrain import PretrainConfig
from ttd.objectives.masked_reconstruction import MaskedReconstruction, MaskedReconstructionConfig

N_TIMES, SFREQ = 512, 160.0
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": ({"embed_dim": 128, "depth": 3, "n_heads": 4}, {"width": 128, "depth": 2, "n_heads": 4}),
    "base": ({"embed_dim": 1024, "depth": 6, "n_heads": 8}, {"width": 512, "depth": 4, "n_heads": 8}),
}
ORIGINAL: dict[str, Any] = {
    "stem": "original", "whiten": False, "kernels_samples": (7, 15, 31), "pool_samples": 16, "positions": "none",
    "attention_scale": "embed_dim", "block_init": "xavier", "stem_dropout": 0.3, "dropout": 0.3,
}  # fmt: skip


def write(root: Path, n: int) -> None:
    """The same windows as shards and as npy files."""
    rng, names = np.random.default_rng(0), list(EEGMMIDB_64)
    (root / "npy").mkdir()
    with ShardWriter(root / "train", kind="window") as writer:
        for i in range(n):
            eeg = (50 * rng.standard_normal((1, 64, N_TIMES))).astype(np.float16)
            np.save(root / "npy" / f"{i}.npy", eeg[0].astype(np.float32))
            meta = {
                "study": "Benchmark",
                "subject": "01",
                "cap": "cap",
                "sessions": ["1"],
                "runs": ["1"],
                "onsets": [0.0],
            }
            writer.write(f"w{i}", {"eeg.npy": eeg, "meta.json": meta})
        statistics = {"mean": [0.0] * 64, "std": [50.0] * 64}
        facts = {"study": "Benchmark", "part": "train", "sfreq": SFREQ, "tmin": 0.0, "n_times": N_TIMES}
        writer.finish({**facts, "caps": {"cap": names}, "statistics": {"cap": statistics}})


class NpyWindows(Dataset):
    """One file per window, z-scored as a whole."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        eeg = np.load(self.paths[i])
        return torch.from_numpy((eeg - eeg.mean()) / (eeg.std() + 1e-8))


def mask_in_python(n: int) -> Tensor:
    """Eight spans of 32 per window, drawn one by one; they may overlap."""
    mask = np.zeros((n, N_TIMES), bool)
    for row in range(n):
        for _ in range(8):
            start = np.random.randint(0, N_TIMES - 32)
            mask[row, start : start + 32] = True
    return torch.from_numpy(mask)


def objective(size: str, device: torch.device, **changes: Any) -> MaskedReconstruction:
    encoder_options, decoder = SIZES[size]
    torch.manual_seed(0)
    config = InceptSADConfig(**{**encoder_options, **changes})
    encoder = build_encoder(config, n_times=N_TIMES, sfreq=SFREQ, ch_names=EEGMMIDB_64)
    settings = MaskedReconstructionConfig(decoder=DecoderConfig(**decoder))
    return MaskedReconstruction(settings, encoder=encoder, seed=0).to(device)


def original_steps(root: Path, size: str, batch: int, device: torch.device) -> Iterator[int]:
    """TTD-net's loop, for ever; yields the windows of each step."""
    model = objective(size, device, **ORIGINAL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.05)
    total = 0.0
    while True:
        for eeg in DataLoader(NpyWindows(root / "npy"), batch_size=batch, shuffle=True, num_workers=0, drop_last=True):
            eeg, mask = eeg.to(device), mask_in_python(len(eeg)).to(device)
            predicted = model.decoder(model.encoder(eeg * (~mask)[:, None]))
            hidden = mask[:, None].expand_as(eeg).float()
            loss = ((predicted - eeg).square() * hidden).sum() / (mask.sum() * eeg.shape[1])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.8)
            optimizer.step()
            total += loss.item()
            yield len(eeg)


def our_steps(root: Path, size: str, batch: int, device: torch.device, precision: str, **changes: Any) -> Iterator[int]:
    """Our stream, objective and update, for ever; yields the windows of each step."""
    model, config = objective(size, device, **changes), DataConfig(shards=root)
    optimizer = make_optimizer(PretrainConfig.model_fields["optim"].default, model)
    cast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    for samples in Stream(open_reader(config), config, seed=0, global_batch_size=batch).batches():
        with cast:
            loss = model({name: value.to(device, non_blocking=True) for name, value in samples.items()})["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.8)
        optimizer.step()
        yield batch


def steps(iterator: Iterator[int], n: int, device: torch.device) -> Callable[[], int]:
    """Work for ``compare``: ``n`` steps."""

    def work() -> int:
        total = sum(next(iterator) for _ in range(n))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return total

    return work


def on_gpu(name: str, work: Callable[[], int], flops: float, peak: float) -> None:
    """Samples per second by the clock, and which share of a matrix product's rate that is."""
    work()
    start = time.perf_counter()
    n = work()
    rate = n / (time.perf_counter() - start)
    print(f"{name}: {rate:.0f} samples/s, {100 * rate * flops / peak:.0f} % of {peak / 1e12:.0f} TFLOP/s", flush=True)


def flops_per_sample(model: MaskedReconstruction, batch: int, device: torch.device) -> float:
    """Of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        samples = {"eeg": torch.randn(batch, 64, N_TIMES, device=device), "position": torch.arange(batch)}
        model(samples)["loss"].backward()
    return counter.get_total_flops() / batch


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int = 8192) -> float:
    """Operations per second of a large matrix product."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for repeats in (3, 20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize()
    return 2 * n**3 * repeats / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, max(64, 2 * options.batch))
        forms = {"default": {}, "default, 16 samples per token": {"pool_samples": 16}}
        for name, changes in forms.items():
            mine = our_steps(root, options.size, options.batch, device, options.precision, **changes)
            works = [
                steps(iterator, options.steps, device)
                for iterator in (mine, original_steps(root, options.size, options.batch, device))
            ]
            if device.type == "cpu":
                compare(f"{options.size}, {name}, {options.precision}", *works, goal=">= 2", rounds=options.rounds)
                continue
            dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
            for title, work, model, peak in (
                (name, works[0], objective(options.size, device, **changes), matmul_rate(device, dtype)),
                ("original", works[1], objective(options.size, device, **ORIGINAL), matmul_rate(device, torch.float32)),
            ):
                on_gpu(f"{options.size}, {title}", work, flops_per_sample(model, options.batch, device), peak)


if __name__ == "__main__":
    main()
