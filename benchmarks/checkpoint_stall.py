"""P9: how long training stands still for a state, against accelerate's ``save_state``, on 23 M weights with Adam's moments.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_stall.py [rounds, 7]

The same module, optimizer and accelerator for both, in turn. Ours is copied into memory and then hashed, written, fsynced,
renamed, read back and verified beside training; accelerate's is written and neither synced nor hashed. After either, ten
steps of training are timed against ten undisturbed ones, so that what our thread takes from training shows as well.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # before torch is imported

import torch
from torch import nn

from ttd.engine.accelerator import make_accelerator
from ttd.engine.checkpoint import save_checkpoint
from ttd.engine.state_files import TrainState, damage, step_folder
from ttd.engine.writing import StateWriter

STEPS, GOAL = 10, 0.25


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(rounds: int) -> bool:
    torch.manual_seed(0)
    accelerator = make_accelerator(global_batch_size=4)
    module = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(23)))
    objective, optimizer = accelerator.prepare(module, torch.optim.AdamW(module.parameters(), lr=1e-4))
    batch, state = torch.randn(4, 1000), TrainState()

    def train() -> None:
        for _ in range(STEPS):
            accelerator.backward(objective(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1

    ours, peer, undisturbed, beside, after_peer, whole = [], [], [], [], [], []
    with tempfile.TemporaryDirectory() as temporary, StateWriter(accelerator) as writer:
        folder = Path(temporary)

        def save() -> None:
            save_checkpoint(folder / "ours", accelerator, module, optimizer, state, writer, fingerprint="")

        train()
        first = seconds(save)  # its memory is fresh
        for _ in range(rounds):
            writer.wait()
            os.sync()
            undisturbed.append(seconds(train))
            start = time.perf_counter()
            ours.append(seconds(save))
            step = state.step
            beside.append(seconds(train))
            writer.wait()
            whole.append(time.perf_counter() - start)
            assert damage(step_folder(folder / "ours", step)) is None
            os.sync()
            peer.append(seconds(lambda: accelerator.save_state(str(folder / "peer"))))
            after_peer.append(seconds(train))
            shutil.rmtree(folder / "peer")
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
    a, b, ratio = statistics.median(ours), statistics.median(peer), statistics.median(ratios)
    slow, free, after = (statistics.median(v) for v in (beside, undisturbed, after_peer))
    print(
        f"P9 stall per state: ours {a:.3f} s, accelerate {b:.3f} s, ratio {ratio:.2f} "
        f"(rounds {ratios[0]:.2f} to {ratios[-1]:.2f}), goal {GOAL}; our first {first:.3f} s"
    )
    print(
        f"P9 {STEPS} steps: {free:.2f} s undisturbed, {slow:.2f} s beside our writing, {after:.2f} s after accelerate's; "
        f"stall and slower steps together: ours {a + slow - free:.2f} s, accelerate {b + after - free:.2f} s"
    )
    print(f"P9 from the copy to the verified state, with {STEPS} steps beside it: {statistics.median(whole):.2f} s")
    return ratio <= GOAL


if __name__ == "__main__":
    sys.exit(0 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 7) else 1)
