"""P6, P10 and R3: who reads what on several ranks, what resuming costs, and whether a change of ranks loses a sample.

OMP_NUM_THREADS=1 python benchmarks/order.py P6 P10 R3
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from figures import cpu_s
from loader import eeg, facts, meta

from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.data.writer import ShardWriter


def write(root: Path, n: int, per_shard: int) -> int:
    """Uneven shards: the last one holds what is left. Returns the bytes of all shards."""
    rng = np.random.default_rng(0)
    with ShardWriter(root / "train", kind="paired", samples_per_shard=per_shard) as writer:
        for i in range(n):
            writer.write(f"s{i:06d}", {"eeg.npy": eeg(rng), "meta.json": meta(i)})
        return sum(shard.size for shard in writer.finish(facts()).shards)


def stream(root: Path, total: int, *, rank: int = 0, world: int = 1) -> Stream:
    config = DataConfig(shards=root)
    return Stream(open_reader(config), config, seed=0, global_batch_size=total, rank=rank, world_size=world)


def bytes_read() -> int:
    """Bytes that this process asked the system for."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def rank_of_p6(rank: int, world: int, root: Path, n: int, total: int, passes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=world)
    own = stream(root, total, rank=rank, world=world)
    own.read(next(own.positions(0)))  # opens files and imports what is needed
    seen, before = [], bytes_read()
    for positions in islice(own.positions(0), -(-passes * n // total)):
        mine = positions[positions < passes * n]
        if len(mine):
            batch = own.read(mine)
            seen += zip(batch["position"].tolist(), batch["index"].tolist(), strict=True)
    gathered: list = [None] * world
    dist.all_gather_object(gathered, (seen, bytes_read() - before))
    if not rank:
        report(root, n, passes, gathered)
    dist.destroy_process_group()


def report(root: Path, n: int, passes: int, gathered: list) -> None:
    size = sum(path.stat().st_size for path in (root / "train").glob("*.tar"))
    for number in range(passes):
        one = [[i for p, i in seen if p // n == number] for seen, _ in gathered]
        times = Counter(i for part in one for i in part)
        coverage = 100 * len(times) / n
        lengths = [len(part) for part in one]
        twice = sum(k - 1 for k in times.values())
        print(
            f"P6 pass {number + 1}, {len(gathered)} ranks: coverage {coverage:.1f} % (goal 100.0), {twice} read twice, "
            f"imbalance {max(lengths) - min(lengths)} samples (goal <= 1)"
        )
    total = sum(n_bytes for _, n_bytes in gathered)
    print(f"P6 bytes read {total / size / passes:.3f} x dataset (goal <= 1.02)", flush=True)


def p6(folder: Path) -> None:
    n = 1003
    write(folder, n, 97)
    mp.spawn(rank_of_p6, (4, folder, n, 32, 2), nprocs=4)


def p10(folder: Path) -> None:
    n, costs = 4000, {}
    write(folder, n, 512)
    for _ in range(9):
        for percent in (5, 50, 95):
            start = cpu_s()
            own = stream(folder, 32)
            own.read(next(own.positions(n * percent // 100 // 32 * 32)))
            costs.setdefault(percent, []).append(cpu_s() - start)
    medians = {percent: 1e3 * statistics.median(values) for percent, values in costs.items()}
    shown = ", ".join(f"{percent} %: {ms:.1f} ms" for percent, ms in medians.items())
    print(f"P10 resume, CPU until the first batch: {shown}; ratio 95 : 5 {medians[95] / medians[5]:.2f} (goal <= 1.2)")


def r3(folder: Path, trials: int = 40) -> None:
    n, total = 203, 8
    write(folder, n, 17)
    alone = stream(folder, total)
    truth = [alone.read(positions) for positions in islice(alone.positions(0), 3 * n // total + 1)]
    rng, bad = np.random.default_rng(0), 0
    for _ in range(trials):
        cuts = sorted(rng.integers(1, len(truth), 2).tolist())
        seen: Counter = Counter()
        for world, start, stop in zip((2, 1, 4), (0, *cuts), (*cuts, len(truth)), strict=True):
            ranks = [stream(folder, total, rank=rank, world=world) for rank in range(world)]
            sources = [map(own.read, own.positions(start * total)) for own in ranks]
            for step in range(start, stop):
                batches = [next(source) for source in sources]
                joined = {name: torch.cat([b[name] for b in batches]) for name in ("position", "index", "eeg")}
                place = joined["position"].argsort()
                bad += not all(torch.equal(joined[name][place], truth[step][name]) for name in joined)
                seen.update(
                    (p // n, i) for p, i in zip(joined["position"].tolist(), joined["index"].tolist(), strict=True)
                )
        bad += sum(seen[number, i] != 1 for number in range(3) for i in range(n))
    print(
        f"R3 ranks 2 -> 1 -> 4 at random points, {trials} runs of 3 passes of {n}: {bad} samples missing, repeated or in "
        "another global batch than on one rank (goal 0)"
    )


def main() -> None:
    torch.set_num_threads(1)
    figures = {"P6": p6, "P10": p10, "R3": r3}
    for name in sys.argv[1:] or figures:
        with tempfile.TemporaryDirectory(prefix="ttd-benchmark-") as folder:
            figures[name](Path(folder))


if __name__ == "__main__":
    main()
