"""P8: InfoNCE over four gloo ranks, beside one process and beside open_clip's loss.

    pip install --no-deps --target peers open_clip_torch
    OMP_NUM_THREADS=1 python benchmarks/infonce.py peers

64 rows per rank of width 768, every picture once. Gradients are compared with those of one process that holds all rows
(largest difference over largest gradient); time is the CPU time of all ranks for forward and backward, in interleaved
rounds, beside ``ClipLoss(local_loss=True, gather_with_grad=True)``, whose loss.py is imported alone. In training the
targets are fixed, which saves gathering their gradients ("fixed"); open_clip trains both towers ("both").
"""

from __future__ import annotations

import importlib.util
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from ttd.objectives.contrastive import symmetric_info_nce

WORLD, ROWS, WIDTH = 4, 64, 768
ROUNDS, CALLS = 5, 20


def rows() -> tuple[Tensor, Tensor]:
    """Unit vectors [G, K] of EEG and targets, the same on every rank."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(WORLD * ROWS, WIDTH, generator=g) for _ in range(2))
    return F.normalize(a + 0.5 * b, dim=1), F.normalize(b, dim=1)


def open_clip_loss(peers: Path) -> ModuleType:
    """``open_clip/loss.py`` by itself: the package around it wants more than it needs."""
    spec = importlib.util.spec_from_file_location("open_clip_loss", peers / "open_clip" / "loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradients(eeg: Tensor, target: Tensor, image: Tensor, scale: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (eeg, target, scale)]
    symmetric_info_nce(leaves[0], leaves[1], image, leaves[2])[0].backward()
    return [x.grad for x in leaves if x.grad is not None]


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def worker(rank: int, folder: str, peers: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    eeg, target = rows()
    image, mine = torch.arange(len(eeg)), slice(rank * ROWS, (rank + 1) * ROWS)
    scale = torch.tensor(1 / 0.07)
    own = gradients(eeg[mine], target[mine], image[mine], scale)
    dist.all_reduce(own[2])
    torch.save([own[0] / WORLD, own[1] / WORLD, own[2] / WORLD], f"{folder}/rank{rank}.pt")

    peer = open_clip_loss(Path(peers)).ClipLoss(
        local_loss=True, gather_with_grad=True, cache_labels=True, rank=rank, world_size=WORLD
    )

    def ours(both: bool) -> None:
        a, b = eeg[mine].clone().requires_grad_(), target[mine].clone().requires_grad_(both)
        symmetric_info_nce(a, b, image[mine], scale)[0].backward()

    def theirs(both: bool) -> None:
        a, b = eeg[mine].clone().requires_grad_(), target[mine].clone().requires_grad_(both)
        peer(a, b, scale).backward()

    def seconds(work, both: bool) -> float:
        dist.barrier()
        start = cpu_s()
        for _ in range(CALLS):
            work(both)
        spent = torch.tensor([cpu_s() - start], dtype=torch.float64)
        dist.all_reduce(spent)
        return float(spent)

    for both in (True, False):
        ours(both), theirs(both)
        pairs = [(seconds(ours, both), seconds(theirs, both)) for _ in range(ROUNDS)]
        ratios = sorted(a / b for a, b in pairs)
        a, b = (1e3 * statistics.median(column) / CALLS for column in zip(*pairs, strict=True))
        if not rank:
            print(
                f"P8 InfoNCE, {WORLD} ranks x {ROWS} x {WIDTH}, gradients to {'both' if both else 'fixed targets: EEG'}: "
                f"ours {a:.2f} ms, open_clip {b:.2f} ms CPU per step of all ranks, ratio {statistics.median(ratios):.3f} "
                f"(rounds {ratios[0]:.3f} to {ratios[-1]:.3f}), goal <= 1.05",
                flush=True,
            )
    dist.destroy_process_group()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ttd-benchmark-") as folder:
        mp.spawn(worker, (folder, sys.argv[1]), nprocs=WORLD)
        ranks = [torch.load(f"{folder}/rank{rank}.pt", weights_only=True) for rank in range(WORLD)]
    eeg, target = rows()
    whole = gradients(eeg, target, torch.arange(len(eeg)), torch.tensor(1 / 0.07))
    together = [torch.cat([r[0] for r in ranks]), torch.cat([r[1] for r in ranks]), ranks[0][2]]
    for name, a, b in zip(("EEG", "targets", "scale"), together, whole, strict=True):
        print(f"P8 gradient of {name}: largest difference / largest gradient {(a - b).abs().max() / b.abs().max():.1e}")


if __name__ == "__main__":
    main()
