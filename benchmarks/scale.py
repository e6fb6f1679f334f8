"""What N nodes cost: bytes a rank sends per update, step time and efficiency, from one rank's step and the speed of the links.

    python benchmarks/scale.py                                    # tables for --model finetune on nodes of 8 GPUs
    python benchmarks/scale.py --model lora --sample-ms 5.4 --batch 32 --accumulation 1 --nodes 1 2 4
    python benchmarks/scale.py --check --markdown scale.md        # and the same bytes counted on 2 and 4 ranks, 4 minutes

A ring of N ranks sums S bytes in two halves, reduce-scatter and all-gather; in each a rank sends (N-1)/N S (Patarasuk & Yuan,
2009, J. Parallel Distrib. Comput. 69:117). DDP: both halves, once per update. ZeRO-2 (Rajbhandari et al., 2020,
arXiv:1910.02054): gradients to their owners, then the all-gather of the new weights. DeepSpeed 0.19.8 by itself sends gradients
after each of A micro-batches, and to all ranks (``use_multi_rank_bucket_allreduce``), so it sends (2 A + 1)(N-1)/N S; to their
owners alone it would be (A + 1)(N-1)/N S. The engine's ``one_reduction`` makes A one. Under bf16 DDP's gradients stay float32;
DeepSpeed sends those of linear and convolution layers as bfloat16, half as many bytes.

On M nodes of g ranks a half is done first inside the node, then between ranks of the same place, g of them through the node's
one link: S ((g-1)/g / inside + (M-1)/M / link) seconds. A rank's bytes are the same as on one ring. Not counted: latency (10 µs
a hop are 1.3 ms on a ring of 64), collectives of a few numbers, and that DDP sends while the last micro-batch still goes
backward. So efficiencies are lower bounds for large gradients.

Exit status 1 when a count differs from its prediction, or a figure of ``A4`` is not found again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKS = {"NVLink 450 GB/s": 450e9, "400 Gb/s": 50e9, "100 Gb/s": 12.5e9, "25 Gb/s": 3.125e9}
"""Bytes per second, one direction."""
INSIDE = LINKS["NVLink 450 GB/s"]
RATE = 0.4 * 788e12
"""Operations per second of one GPU: 40 % of what a matrix product reaches on an H200 (A4's)."""
UNET, LORA, BRIDGE, CLIP_HEAD, ENCODER = 2_567_463_684, 23_224_320, 115_419_136, 14_156_545, 75_635_392
MODELS = {
    "lora": (LORA, 3.103e12),
    "finetune": (LORA + BRIDGE + CLIP_HEAD, 3.103e12),  # configs/finetune/sdxl_lora_gifford2022.yaml
    "unet": (UNET, 4.64e12),
    "encoder": (ENCODER + CLIP_HEAD, 8.2e9),  # configs/align/gifford2022.yaml
}
"""Trained weights, and operations per sample at 512 pixels without checkpointing of activations (FlopCounterMode)."""
COUNT_TOLERANCE, WIRE_TOLERANCE = 0.001, 0.02
"""Padding of ZeRO's partitions; TCP's headers and acknowledgements, and collectives of a few numbers."""


@dataclass(frozen=True)
class Way:
    """How gradients and weights travel in one update of A micro-batches."""

    name: str
    every: bool = False
    """Gradients travel after every micro-batch."""
    sharded: bool = True
    """Each rank updates its part of the weights, which are gathered then."""
    owners: bool = False
    """Gradients go to the owner of their part alone, not to all ranks."""

    half: bool = False
    """Gradients travel as bfloat16; weights never do."""

    def bytes_per_weight(self, accumulation: int, *, gloo_ranks: int = 0, both: int | None = None) -> float:
        """Bytes of all halves of one update, for each weight; ``both``: of a gradient and of a weight, if not the engine's.

        Gloo (``gloo_ranks``) gathers at an owner what a reduce-scatter left everywhere: a half and 1/N of one.
        """
        halves = (1 + (1 / gloo_ranks if gloo_ranks else 0.0)) if self.owners else 2.0
        gradient, weight = (both, both) if both else (2 if self.half else 4, 4)
        return halves * (accumulation if self.every else 1) * gradient + self.sharded * weight

    def sent(self, n: float, ranks: int, accumulation: int, *, gloo: bool = False, both: int | None = None) -> float:
        """Bytes that a rank sends per update of ``n`` weights, mean over ranks."""
        each = self.bytes_per_weight(accumulation, gloo_ranks=ranks if gloo else 0, both=both)
        return (ranks - 1) / ranks * n * each

    def seconds(
        self, n: float, nodes: int, per_node: int, link: float, accumulation: int, both: int | None = None
    ) -> float:
        """Time of an update's messages, nothing overlapping."""
        inside, between = (per_node - 1) / per_node / INSIDE, (nodes - 1) / nodes / link
        return n * self.bytes_per_weight(accumulation, both=both) * (inside + between)


DDP = Way("DDP", sharded=False)
ONE = Way("ZeRO-2, one reduction (this engine)")
EVERY = Way("ZeRO-2, every micro-batch (DeepSpeed alone)", every=True)
ONE_OWNER = Way("ZeRO-2, one reduction, to owners", owners=True)
EVERY_OWNER = Way("ZeRO-2, every micro-batch, to owners", every=True, owners=True)
CHECKED = [(way, "no") for way in (DDP, ONE, EVERY, ONE_OWNER, EVERY_OWNER)]
CHECKED += [(DDP, "bf16"), (replace(ONE, half=True), "bf16")]

A4 = {
    "NVLink 450 GB/s": ((0.995, 0.96), (0.999, 0.995)),
    "400 Gb/s": ((0.96, 0.74), (0.995, 0.96)),
    "100 Gb/s": ((0.86, 0.42), (0.98, 0.85)),
    "25 Gb/s": ((0.60, 0.15), (0.92, 0.59)),
}
"""What was expected of eight ranks with a link each before anything was built: {link: (one reduction, one after each of 16
micro-batches) for 4 and for 32 samples}."""


def efficiency(compute: float, messages: float) -> float:
    """Part of the time in which the GPU computes."""
    return compute / (compute + messages)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def guarantees() -> tuple[str, bool]:
    """A4's table again: gradients and weights of the LoRA in 2 bytes, no bridge, to owners, 16 micro-batches in one update."""
    sent = [way.sent(LORA, 8, 16, both=2) / 1e6 for way in (DDP, EVERY_OWNER)]
    good = [round(mb) for mb in sent] == [81, 691]
    rows = []
    for link, expected in A4.items():
        row = [link]
        for batch, pair in zip((4, 32), expected, strict=True):
            compute = batch * MODELS["lora"][1] / RATE
            found = [
                efficiency(compute, way.seconds(LORA, 8, 1, LINKS[link], 16, both=2)) for way in (DDP, EVERY_OWNER)
            ]
            decimals = [3 if value > 0.99 else 2 for value in pair]
            shown = [round(value, n) for value, n in zip(found, decimals, strict=True)]
            good &= shown == [*pair]
            row.append(" / ".join(f"{value:.{n}f}" for value, n in zip(found, decimals, strict=True)))
        rows.append(row)
    text = table(["link, N=8", "4 samples: one reduction / after each of 16", "32 samples"], rows)
    sums = f"sent per rank and update: {sent[0]:.0f} and {sent[1]:.0f} MB; {'all as' if good else 'NOT as'} in A4"
    return f"{text}\n\n{sums}", good


def ways(arguments: argparse.Namespace) -> list[Way]:
    """What is compared; under bf16 DeepSpeed's gradients are half as wide."""
    bf16 = arguments.precision == "bf16"
    return [DDP, *(replace(way, half=bf16) for way in (ONE, EVERY, EVERY_OWNER))]


def prediction(arguments: argparse.Namespace) -> str:
    """Bytes, seconds and efficiency of each way on each number of nodes and link."""
    weights, operations = MODELS[arguments.model]
    sample_s = arguments.sample_ms / 1e3 if arguments.sample_ms else operations / RATE
    compute, rows = arguments.batch * arguments.accumulation * sample_s, []
    for nodes in arguments.nodes:
        ranks = nodes * arguments.gpus
        for way in ways(arguments):
            sent = way.sent(weights, ranks, arguments.accumulation)
            row = [f"{nodes}", f"{ranks}", way.name, f"{sent / 1e6:,.0f}"]
            for speed in LINKS.values():
                messages = way.seconds(weights, nodes, arguments.gpus, speed, arguments.accumulation)
                row.append(f"{1e3 * (compute + messages):,.0f} ms, {efficiency(compute, messages):.3f}")
            rows.append(row)
    head = (
        f"{arguments.model}: {weights:,} trained weights, {arguments.precision}; {arguments.gpus} ranks a node; "
        f"{arguments.batch} samples × {arguments.accumulation} micro-batches on a rank, {1e3 * sample_s:.2f} ms a sample "
        f"({'given' if arguments.sample_ms else '40 % of 788 TFLOP/s'}): {1e3 * compute:,.0f} ms of work in an update"
    )
    return head + "\n\n" + table(["nodes", "ranks", "way", "MB sent per rank", *(f"over {k}" for k in LINKS)], rows)


def launch(folder: Path, ranks: int, way: Way, accumulation: int, precision: str) -> dict[str, float]:
    """Counts per update of real ranks, in a network namespace of their own, so that ``lo`` carries nothing else."""
    folder.mkdir()
    launcher = "launch/zero2.yaml" if way.sharded else "launch/ddp.yaml"
    if way.owners:
        content = json.loads((ROOT / "launch/deepspeed/zero2.json").read_text())
        content["zero_optimization"]["use_multi_rank_bucket_allreduce"] = False
        (folder / "zero2.json").write_text(json.dumps(content))
        text = (ROOT / launcher).read_text().replace("launch/deepspeed/zero2.json", str(folder / "zero2.json"))
        (folder / "zero2.yaml").write_text(text)
        launcher = str(folder / "zero2.yaml")
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"'] if os.geteuid() == 0 else []
    command += [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", launcher]
    command += ["--mixed_precision", precision, "--num_processes", f"{ranks}", "--main_process_port", "0"]
    command += ["benchmarks/scale_rank.py", str(folder)]
    command += ["default" if way.every else "engine", f"{accumulation}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"{way.name} on {ranks} ranks: {done.stdout}{done.stderr}")
    counts = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    assert all(count["ranks"] == ranks for count in counts)
    return {name: sum(count[name] for count in counts) / ranks for name in counts[0]}


def check(sizes: Sequence[int], checked: Sequence[tuple[Way, str]], accumulation: int = 4) -> tuple[str, bool]:
    """Predicted bytes beside those counted on gloo ranks, for each of ``sizes`` and of ``checked`` (way, precision)."""
    rows, good = [], True
    with tempfile.TemporaryDirectory(prefix="ttd-benchmark-") as temporary:
        for ranks in sizes:
            for way, precision in checked:
                found = launch(Path(temporary) / f"{ranks}-{len(rows)}", ranks, way, accumulation, precision)
                n = found["trainable"]
                given = (n * (2 if way.half else 4) * (accumulation if way.every else 1), 4 * n * way.sharded)
                counted = (found["gradients"], found["weights"])
                good &= all(abs(a - b) <= COUNT_TOLERANCE * 4 * n for a, b in zip(given, counted, strict=True))
                sent, wire = way.sent(n, ranks, accumulation, gloo=True), found["wire"] / ranks
                row = [
                    f"{ranks}",
                    way.name + (", bf16" if precision == "bf16" else ""),
                    *(f"{a / 1e6:.3f} / {b / 1e6:.3f}" for a, b in zip(given, counted, strict=True)),
                ]
                if os.geteuid() == 0:
                    good &= abs(wire - sent) <= WIRE_TOLERANCE * sent
                    row.append(f"{sent / 1e6:.3f} / {wire / 1e6:.3f} ({100 * (wire / sent - 1):+.2f} %)")
                else:
                    row.append("not measured: needs root for a network namespace")
                rows.append(row)
                print("| " + " | ".join(row) + " |", flush=True)
    header = ["ranks", "way", "gradients given to collectives, MB: predicted / counted", "weights", "sent per rank, MB"]
    verdict = (
        f"{accumulation} micro-batches; {'all' if good else 'NOT all'} within {100 * COUNT_TOLERANCE:g} % (given) and "
        f"{100 * WIRE_TOLERANCE:g} % (sent)"
    )
    return table(header, rows) + f"\n\n{verdict}", good


def counted_weights() -> dict[str, int]:
    """The weights of ``UNET`` to ``ENCODER``, from the modules themselves, without memory for them."""
    import torch
    from diffusers import UNet2DConditionModel
    from sdxl_shapes import UNET as SHAPES

    from ttd.bridge.conditioner import EEGConditioner, PerceiverConditionerConfig
    from ttd.bridge.heads import ClipHead, ClipHeadConfig
    from ttd.diffusion.lora import LoRAConfig, add_lora
    from ttd.encoders import InceptSADConfig, build_encoder

    def n(module: torch.nn.Module, *, trained: bool = False) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SHAPES)
        whole = n(unet)
        add_lora(unet, LoRAConfig(rank=16))
        facts = {"n_times": 300, "sfreq": 250.0, "ch_names": [f"E{i}" for i in range(63)]}
        encoder = build_encoder(InceptSADConfig(whiten=False), **facts)
        width = InceptSADConfig().embed_dim
        head = ClipHead(ClipHeadConfig(), embed_dim=width, n_tokens=encoder.n_tokens, clip_dim=768)
        parts = {"encoder": encoder, "clip_head": head, "context_dim": 2048, "pooled_dim": 1280}
        bridge = EEGConditioner.build(PerceiverConditionerConfig(), **parts).bridge
    return {
        "UNET": whole,
        "LORA": n(unet, trained=True),
        "BRIDGE": n(bridge),
        "CLIP_HEAD": n(head),
        "ENCODER": n(encoder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="finetune")
    parser.add_argument(
        "--sample-ms", type=float, help="measured work of one sample on one rank; else 40 %% of 788 TFLOP/s"
    )
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of an update")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16", help="of the forward pass")
    parser.add_argument("--gpus", type=int, default=8, help="ranks of a node")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--check", action="store_true", help="count the same bytes on 2 and 4 ranks of this machine")
    parser.add_argument("--markdown", type=Path, help="write the tables here as well")
    arguments = parser.parse_args()
    again, good = guarantees()
    parts = [
        "## A4 again: eight ranks with a link each, the LoRA alone, 2 bytes a number",
        again,
        f"## {arguments.model}",
        prediction(arguments),
    ]
    print("\n\n".join(parts), flush=True)
    if arguments.check:
        constants = {"UNET": UNET, "LORA": LORA, "BRIDGE": BRIDGE, "CLIP_HEAD": CLIP_HEAD, "ENCODER": ENCODER}
        same = counted_weights() == constants
        parts += ["## Counted", f"weights counted in the modules: {'as above' if same else counted_weights()}"]
        print("\n\n".join(["", *parts[-2:], ""]), flush=True)
        counts, as_predicted = check((2, 4), CHECKED)
        print("\n" + counts.rpartition("\n")[2])
        parts.append(counts)
        good &= same and as_predicted
    if arguments.markdown:
        arguments.markdown.write_text("\n\n".join(parts) + "\n")
    sys.exit(not good)


if __name__ == "__main__":
    main()
