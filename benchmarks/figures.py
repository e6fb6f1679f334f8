"""Compare two ways of doing the same work: in turn, by the CPU time of the whole process tree, one line per figure."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable


def cpu_s() -> float:
    """User and system seconds of this process, its threads and its finished children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def measure(work: Callable[[], int]) -> float:
    """CPU microseconds per sample; ``work`` returns how many samples it made."""
    start = cpu_s()
    n = work()
    return (cpu_s() - start) / n * 1e6


def compare(name: str, ours: Callable[[], int], peer: Callable[[], int], *, goal: str, rounds: int = 5) -> float:
    """Run ``ours`` and ``peer`` in turn after one warm round; print medians and the spread of the ratio of each round."""
    ours(), peer()
    pairs = [(measure(ours), measure(peer)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    a, b = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    print(
        f"{name}: ours {a:.1f} us, peer {b:.1f} us CPU per sample, ratio {ratio:.2f} "
        f"(rounds {ratios[0]:.2f} to {ratios[-1]:.2f}), goal {goal}",
        flush=True,
    )
    return ratio
