"""What ranks that found each other can do: start accelerate, sum a gradient at which bandwidth, and run the same code."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median

from ttd.checkup.findings import Finding, RankReport, first_line, ok, places, problem, warning
from ttd.checkup.meeting import Meeting, wait_for
from ttd.config import UserError

PAYLOAD = 23_224_320
"""Numbers of one all-reduce: the gradient of SDXL's LoRA of rank 16, 93 MB in float32, as every update sends it."""
SPENT_S = 5.0
"""Seconds that the repetitions of the all-reduce may take together."""
SEEN_S = 5.0
"""Seconds until a new file of one node must be seen by another: its name was never asked for, so no cache knows better."""
NETWORK = (
    "choose the network: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (`ip -br address` lists the names); NCCL_DEBUG=INFO "
    "prints which one is used"
)


def join(meeting: Meeting, timeout_s: float) -> Finding:
    """Form the process group and start accelerate as every command does."""
    import torch
    import torch.distributed as dist

    from ttd.engine.accelerator import make_accelerator

    if meeting.store is not None:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a hung message raises, where the watchdog would abort us
        from torch.distributed import PrefixStore

        try:
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                store=PrefixStore("group", meeting.store),
                rank=meeting.rank,
                world_size=meeting.world,
                timeout=timedelta(seconds=timeout_s),
            )
        except RuntimeError as error:
            return problem(f"{meeting.finding.text}, but they cannot connect: {first_line(error)}", NETWORK)
    try:
        accelerator = make_accelerator()
    except UserError as error:
        return problem(f"{meeting.finding.text}, but {error}", "start with one of launch/*.yaml")
    kind = f", {accelerator.distributed_type.value} over {dist.get_backend()}" if dist.is_initialized() else ""
    return ok(f"{meeting.finding.text}{kind}, {accelerator.device.type}")


def leave() -> None:
    """End the process group, which NCCL complains about otherwise."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def bus_bandwidth(size: int, seconds: float, world: int) -> float:
    """Bytes per second over the slowest link of an all-reduce of ``size`` bytes: size / seconds × 2 (n − 1) / n.

    Comparable with the hardware's peak whatever the number of ranks: nccl-tests, doc/PERFORMANCE.md.
    """
    return size / seconds * 2 * (world - 1) / world


def all_reduce(meeting: Meeting, min_gb_s: float) -> Finding:
    """Sum ``PAYLOAD`` numbers over all ranks: is the sum right, and at which bandwidth."""
    import torch
    import torch.distributed as dist

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if dist.get_backend() == "nccl" else "cpu"
    x = torch.full((PAYLOAD,), meeting.rank + 1.0, device=device)

    def timed() -> float:
        """Seconds of the slowest rank."""
        start_together = torch.zeros(1, device=device)
        dist.all_reduce(start_together)
        start_together.item()
        start = time.perf_counter()
        dist.all_reduce(x)
        x[0].item()  # waits for the device
        slowest = torch.tensor([time.perf_counter() - start], device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return slowest.item()

    try:
        dist.all_reduce(x[:1024])  # the first message makes the connections
        x.fill_(meeting.rank + 1.0)
        seconds = [timed()]
        expected = meeting.world * (meeting.world + 1) / 2
        if not (x == expected).all():
            return problem(f"a sum over {meeting.world} ranks is {x[0].item():g}, not {expected:g}", NETWORK)
        x.zero_()
        seconds += [timed() for _ in range(min(4, int(SPENT_S / seconds[0])))]  # as often on all: they know the slowest
    except RuntimeError as error:
        return problem(f"ranks do not answer each other: {first_line(error)}", NETWORK)
    size, typical, hosts = x.numel() * x.element_size(), median(seconds), len(set(meeting.hosts.values()))
    speed = bus_bandwidth(size, typical, meeting.world) / 1e9
    text = (
        f"{size / 1e6:.0f} MB (a LoRA's gradient) in {typical:.3f} s over {dist.get_backend()}, {speed:.2f} GB/s bus "
        f"bandwidth, {meeting.world} ranks on {hosts} host{'s' if hosts > 1 else ''}"
    )
    if speed < min_gb_s:
        busy = "ranks of one host share its cores and its memory: is something else running here?"
        return warning(f"{text}; expected at least {min_gb_s:g}", NETWORK if hosts > 1 else busy)
    return ok(text)


def shared_folder(meeting: Meeting, output_dir: Path) -> Finding:
    """Whether ``output_dir`` is one folder for all ranks: states are read and stop files are seen by every node."""
    others = [f"looked/{rank}" for rank in meeting.hosts if rank != 0]
    if meeting.rank == 0:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output_dir, prefix=".doctor-") as file:
            meeting.store.set("file", Path(file.name).name)
            wait_for(meeting.store, others, 2 * SEEN_S)
        return ok(f"{output_dir} is the same folder on {meeting.world} ranks")
    if not wait_for(meeting.store, ["file"], SEEN_S):
        return problem(f"rank 0 could not write into {output_dir}", "see the line of the disk")
    path, end = output_dir / meeting.store.get("file").decode(), time.monotonic() + SEEN_S
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)
    seen = path.exists()
    meeting.store.set(f"looked/{meeting.rank}", "")
    if seen:
        return ok(f"{output_dir} is the same folder on {meeting.world} ranks")
    return problem(
        f"{output_dir} is not the folder that rank 0 writes to", "give an output_dir on a disk that all nodes share"
    )


def facts() -> dict[str, str]:
    """What must be the same on all ranks: Python, packages, CUDA, the commit and the sources of ttd themselves."""
    from ttd.engine.run_folder import environment

    here = environment()
    sources = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        sources.update(str(path.relative_to(root)).encode() + path.read_bytes())
    known = {"python": here["python"], **here["packages"], "CUDA": here["cuda"], "commit": here["commit"]}
    return {name: str(value) for name, value in known.items()} | {"ttd's sources": sources.hexdigest()[:12]}


def agreement(reports: Sequence[RankReport], world: int) -> Finding:
    """Whether all ranks have the same ``facts``; those that differ from the most are named."""
    differing: dict[int, list[str]] = {}
    for name in dict.fromkeys(name for report in reports for name in report.facts):
        values = {report.rank: report.facts.get(name, "absent") for report in reports}
        common = Counter(values.values()).most_common(1)[0][0]
        for rank, value in values.items():
            if value != common:
                differing.setdefault(rank, []).append(f"{name} {value} (others {common})")
    hosts = {report.rank: report.host for report in reports}
    if not differing:
        known = reports[0].facts
        listed = ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "ttd's sources") if name in known)
        return ok(f"the same on {len(reports)} ranks: {listed}")
    groups: dict[str, dict[int, str]] = {}
    for rank, words in differing.items():
        groups.setdefault(", ".join(words), {})[rank] = hosts[rank]
    text = "; ".join(f"{places(ranks, world)}: {words}" for words, ranks in groups.items())
    return problem(text, "use one virtual environment and one checkout on a disk that all nodes share")
