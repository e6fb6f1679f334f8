"""P7: what the training loop costs beside the work: TTD's, a bare torch loop, and a loop as diffusers' SDXL LoRA example has it.

    OMP_NUM_THREADS=1 python benchmarks/step_loop.py [steps, 100]

The same module (the tiny SDXL base with LoRA and the conditioning bridge), optimizer, batches and seeds in all three; losses
must be equal step by step. TTD's loop also agrees on stopping, checks that losses are finite, logs every tenth step, keeps the
run folder, and writes one state at the end.

The peer's loop follows the description of the example in diffusers' documentation: ``prepare`` of model and optimizer,
``accumulate``, the mean loss of all processes gathered for every micro-batch, ``backward``, ``clip_grad_norm_``, a step of
optimizer and learning-rate scheduler, the loss as a number in the progress bar after every step.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from figures import compare
from tqdm import tqdm

from ttd.bridge.conditioner import EEGConditioner, PerceiverConditionerConfig
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.data.stream import DataConfig, Stream, open_reader
from ttd.data.writer import ShardWriter
from ttd.diffusion.base import BaseConfig, load_base
from ttd.diffusion.lora import LoRAConfig, add_lora
from ttd.encoders import InceptSADConfig, build_encoder
from ttd.engine.accelerator import EngineConfig, make_accelerator
from ttd.engine.loop import TrainConfig, train
from ttd.engine.schedules import OptimConfig, lr_at, make_optimizer
from ttd.objectives.conditional_diffusion import ConditionalDiffusion, ConditionalDiffusionConfig
from ttd.objectives.contrastive import TargetSpace
from ttd.seeding import key

ROOT = Path(__file__).resolve().parents[1]
B, C, T, SFREQ, N = 16, 63, 75, 125.0, 256
SHAPES = {"clip": (64,), "vae": (8, 16, 16), "vae.size-ids": (6,)}
OPTIM = OptimConfig(lr=1e-3)
TARGETS = DataConfig(shards=Path(), repetitions="random", targets=list(SHAPES))


def write_shards(root: Path) -> None:
    rng, names = np.random.default_rng(0), [f"E{i}" for i in range(C)]
    shas = [hashlib.sha256(f"{i}".encode()).hexdigest() for i in range(N)]
    with ShardWriter(root / "train", kind="paired") as writer:
        for i, sha in enumerate(shas):
            meta = {"study": "Benchmark", "subject": "01", "cap": "cap", "image_id": f"{i}", "image_sha256": sha}
            meta |= {"sessions": ["1"] * 4, "runs": ["1"] * 4, "onsets": [4.0 * i + r for r in range(4)]}
            writer.write(f"s{i}", {"eeg.npy": rng.standard_normal((4, C, T)).astype(np.float16), "meta.json": meta})
        cap = {"caps": {"cap": names}, "statistics": {"cap": {"mean": [0.0] * C, "std": [1.0] * C}}}
        writer.finish({"study": "Benchmark", "part": "train", "sfreq": SFREQ, "tmin": 0.0, "n_times": T, **cap})
    for name, shape in SHAPES.items():
        with ShardWriter(root / "targets" / name, kind="target") as writer:
            for sha in shas:
                writer.write(sha, {"target.npy": rng.standard_normal(shape).astype(np.float32)})
            writer.finish({"study": "Benchmark"})


def objective() -> ConditionalDiffusion:
    """The demo's fine-tuning on random numbers."""
    torch.manual_seed(0)
    base = load_base(BaseConfig(path=str(ROOT / "weights" / "tiny")))
    add_lora(base.unet, LoRAConfig(rank=16))
    encoder = build_encoder(
        InceptSADConfig(embed_dim=128, depth=0, n_filters=32, whiten=False),
        n_times=T,
        sfreq=SFREQ,
        ch_names=[f"E{i}" for i in range(C)],
    )
    head = ClipHead(ClipHeadConfig(), embed_dim=128, n_tokens=encoder.n_tokens, clip_dim=64)
    conditioner = EEGConditioner.build(
        PerceiverConditionerConfig(),
        encoder=encoder,
        clip_head=head,
        context_dim=base.context_dim,
        pooled_dim=base.pooled_dim,
    )
    bank = torch.randn(N, 64)
    space = TargetSpace.fit(bank, "centred")
    config = ConditionalDiffusionConfig()
    return ConditionalDiffusion(
        config, conditioner=conditioner, base=base, space=space, bank=bank, global_batch_size=B, seed=0
    )


def stream(root: Path) -> Stream:
    config = TARGETS.model_copy(update={"shards": root})
    return Stream(open_reader(config), config, seed=0, global_batch_size=B)


def keep(module: torch.nn.Module, losses: list[torch.Tensor]) -> torch.nn.Module:
    """Remember every training loss, as a tensor: nothing is waited for."""
    module.register_forward_hook(lambda m, args, out: losses.append(out["loss"].detach()))
    return module


def ours(root: Path, steps: int, losses: list[torch.Tensor]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(EngineConfig(), global_batch_size=B)
        config = TrainConfig(max_steps=steps, checkpoint_every=steps, validate_every=steps)
        data = stream(root)
        module = keep(objective().train(), losses)
        train(
            accelerator, module, OPTIM, data, config, Path(folder) / "run", resolved=TARGETS, seed=0,
            fingerprint=data.fingerprint,
        )  # fmt: skip
    return steps


def bare(root: Path, steps: int, losses: list[torch.Tensor]) -> int:
    module = keep(objective().train(), losses)
    optimizer, data = make_optimizer(OPTIM, module), stream(root)
    weights = [p for p in module.parameters() if p.requires_grad]
    for step, batch in enumerate(islice(data.batches(), steps)):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(OPTIM, step, steps)
        torch.manual_seed(key(0, "dropout", int(batch["position"][0])))
        module(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return steps


def example(root: Path, steps: int, losses: list[torch.Tensor]) -> int:
    accelerator = Accelerator(cpu=True)
    module, data = keep(objective().train(), losses), stream(root)
    optimizer = make_optimizer(OPTIM, module)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_at(OPTIM, min(step, steps - 1), steps) / OPTIM.lr
    )
    module, optimizer, rate = accelerator.prepare(module, optimizer, rate)
    weights = [p for p in module.parameters() if p.requires_grad]
    bar, total = tqdm(total=steps, disable=None), 0.0
    for batch in islice(data.batches(), steps):
        torch.manual_seed(key(0, "dropout", int(batch["position"][0])))
        with accelerator.accumulate(module):
            loss = module(batch)["loss"]
            total += accelerator.gather(loss.repeat(B)).mean().item()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        bar.update(1)
        bar.set_postfix(step_loss=loss.detach().item(), lr=rate.get_last_lr()[0])
    bar.close()
    return steps


def main(steps: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    loops: list[Callable[[Path, int, list[torch.Tensor]], int]] = [ours, bare, example]
    with tempfile.TemporaryDirectory(prefix="ttd-benchmark-") as folder:
        root = Path(folder)
        write_shards(root)
        found: dict[str, list[torch.Tensor]] = {loop.__name__: [] for loop in loops}
        for loop in loops:
            loop(root, min(steps, 20), found[loop.__name__])
        values = {name: torch.stack(losses).tolist() for name, losses in found.items()}
        equal = values["ours"] == values["bare"] == values["example"]
        print(
            f"losses of {len(values['ours'])} steps {'equal bit for bit' if equal else f'differ: {values}'}", flush=True
        )
        for name, peer, goal in (("a bare loop", bare, 1.03), ("diffusers' example", example, 1.05)):
            compare(
                f"P7 (per step of {B} samples, not per sample), ours against {name}", lambda: ours(root, steps, []),
                lambda peer=peer: peer(root, steps, []), goal=f"peer / ours >= {1 / goal:.3f} (ours <= {goal} x)",
            )  # fmt: skip
    sys.exit(not equal)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
