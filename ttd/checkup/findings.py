"""What a check says: how it is, what was measured in one line, and the remedy; and how several ranks' lines become one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import environ
from typing import Any, Literal, TypeVar

Status = Literal["ok", "warning", "problem"]
MARKS: dict[Status, str] = {"ok": "✓", "warning": "!", "problem": "✗"}
"""``problem``: a run here fails or is wrong. ``warning``: it works, but worse than it could."""
SHOWN = 4
"""Hosts that are named; the others are counted."""

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    status: Status
    text: str
    remedy: str = ""
    where: str = ""
    """The ranks and hosts that say so, where others do not."""


def ok(text: str) -> Finding:
    return Finding("ok", text)


def warning(text: str, remedy: str) -> Finding:
    return Finding("warning", text, remedy)


def problem(text: str, remedy: str) -> Finding:
    return Finding("problem", text, remedy)


def worst(findings: Sequence[Finding]) -> Status:
    """The gravest status among them."""
    return max((finding.status for finding in findings), key=list(MARKS).index, default="ok")


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}".rstrip(": ")


def host_name() -> str:
    """This machine's name, as Slurm calls it where it does."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises; whatever hangs in it stays behind in a thread.

    Raises:
        TimeoutError: no answer within ``timeout_s`` seconds.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return answers[0]


def look(check: Callable[[], Finding], timeout_s: float) -> Finding:
    """The finding of ``check``; a problem where it hangs or fails."""
    try:
        return within(timeout_s, check)
    except TimeoutError as error:
        return problem(str(error), "a disk, a driver or a server hangs; `dmesg`, `df` and `nvidia-smi` show which")
    except BaseException as error:
        return problem(f"the check failed: {first_line(error)}", "the installation is damaged: install ttd again")


@dataclass(frozen=True)
class RankReport:
    """What one process found."""

    rank: int
    host: str
    findings: dict[str, Finding]
    facts: dict[str, str] = field(default_factory=dict)
    """What must be the same on all ranks."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> RankReport:
        return cls(**tree | {"findings": {name: Finding(**finding) for name, finding in tree["findings"].items()}})


def places(ranks: Mapping[int, str], world: int) -> str:
    """``{1: "node2"}`` → ``rank 1 on node2``; ranks in a row are joined, hosts beyond the first few counted."""
    if len(ranks) == world:
        return f"all {world} ranks" if world > 1 else ""
    by_host: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(ranks[rank], []).append(rank)
    named = []
    for host, some in list(by_host.items())[:SHOWN]:
        spans: list[list[int]] = []
        for rank in some:
            if spans and spans[-1][-1] == rank - 1:
                spans[-1].append(rank)
            else:
                spans.append([rank])
        listed = ", ".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)
        named.append(f"rank{'s' if len(some) > 1 else ''} {listed} on {host}")
    rest = len(by_host) - SHOWN
    return ", ".join(named) + (f" and {rest} more hosts" if rest > 0 else "")


def combine(reports: Sequence[RankReport], world: int) -> dict[str, list[Finding]]:
    """One line for each check where all ranks are well, else one for each different remedy, saying whose it is."""
    lines: dict[str, list[Finding]] = {}
    for name in dict.fromkeys(name for report in reports for name in report.findings):
        said = [(report, report.findings[name]) for report in reports if name in report.findings]
        groups: dict[tuple[Status, str], list[tuple[RankReport, Finding]]] = {}
        for report, finding in said:
            if finding.status != "ok":
                groups.setdefault((finding.status, finding.remedy), []).append((report, finding))
        lines[name] = [
            replace(group[0][1], where=places({report.rank: report.host for report, _ in group}, world))
            for group in groups.values()
        ] or [said[0][1]]
    return lines


def table(lines: Mapping[str, Sequence[Finding]]) -> str:
    """The findings for people: a mark, the check, what was measured; below it the remedy."""
    width = max(len(name) for name in lines)
    out = []
    for name, findings in lines.items():
        for finding in findings:
            where = f" [{finding.where}]" if finding.where else ""
            out.append(f"{MARKS[finding.status]} {name:{width}s}  {finding.text}{where}")
            if finding.remedy:
                out.append(f"  {'':{width}s}  → {finding.remedy}")
    return "\n".join(out)
