"""Say what is wrong with an installation, a node or a launch before a queue does; docs/doctor.md explains every line.

    python ttd/doctor.py
    python ttd/doctor.py shards=[data/simulated/paired]
    accelerate launch --config_file launch/zero2.yaml ttd/doctor.py

Every rank looks, rank 0 prints and leaves ``doctor.json``. Exit status 0, also with warnings; 2 where something is a problem.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from ttd.checkup import machine, packages, shards, world
from ttd.checkup.findings import Finding, RankReport, combine, host_name, look, table, within, worst
from ttd.checkup.meeting import Meeting, collect, meet, part
from ttd.config import Config, UserError, is_main_process, run, write_json
from ttd.redaction import redact

Check = Literal[
    "python",
    "versions",
    "torch",
    "attention",
    "xformers",
    "torchvision",
    "libraries",
    "deepspeed",
    "disk",
    "shm",
    "hub",
    "shards",
    "world",
    "code",
    "shared",
    "all-reduce",
]
"""In the order in which they are printed; docs/doctor.md explains each."""
ORDER = (*get_args(Check), "reports")


class DoctorConfig(Config):
    output_dir: Path = Path("runs/doctor")
    """Where runs will be written: its disk is looked at, and ``doctor.json`` left there."""
    shards: tuple[Path, ...] = ()
    """Folders of shards (or their index.json) that every rank must be able to read."""
    only: tuple[Check, ...] = ()
    """Checks to make beside ``torch`` and ``world``; all where none is named. ``only=[shards,all-reduce]`` skips slow imports."""
    processes: int | None = Field(default=None, ge=1)
    """Processes there must be, nodes × GPUs; None: as many as the launcher says it started."""
    min_disk_gb: float = Field(default=10.0, ge=0)
    """Space for four states of SDXL's LoRA with bridge and encoder (206 million trained weights and their moments)."""
    min_shm_gb: float = Field(default=1.0, ge=0)
    """What NCCL's guide gives a container (--shm-size=1g)."""
    min_bus_gb_s: float = Field(default=0.2, ge=0)
    """Ethernet of 1 Gbit/s carries 0.12: ranks that reach less than this talk over the wrong network."""
    timeout_s: float = Field(default=120.0, gt=0)
    """How long ranks wait for each other, and how long a check may take; a full node imports torch for a minute."""

    @field_validator("shards", mode="before")
    @classmethod
    def _one_is_some(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


def asked(config: DoctorConfig) -> Sequence[str]:
    return config.only or ORDER


def local_checks(config: DoctorConfig, rank: int) -> dict[str, Callable[[], Finding]]:
    """What every rank looks at by itself, beside torch; only what works without torch where it cannot be imported."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": machine.python,
        "versions": packages.versions,
        "disk": lambda: machine.disk(config.output_dir, config.min_disk_gb),
        "shm": lambda: machine.shared_memory(config.min_shm_gb),
        "hub": packages.hub,
    }
    if "torch" in sys.modules:
        checks |= {
            "torchvision": packages.torchvision,
            "libraries": packages.libraries,
            "xformers": packages.xformers,
            "attention": machine.attention,
            "deepspeed": packages.deepspeed,
        }
        if config.shards:
            checks["shards"] = lambda: shards.read_shards(config.shards, rank=rank, budget_s=config.timeout_s / 2)
    return {name: check for name, check in checks.items() if name in asked(config)}


def world_checks(config: DoctorConfig, meeting: Meeting) -> dict[str, Callable[[], Finding]]:
    """What the ranks of a launch do together."""
    if meeting.store is None:
        return {}
    checks = {
        "all-reduce": lambda: world.all_reduce(meeting, config.min_bus_gb_s),
        "shared": lambda: world.shared_folder(meeting, config.output_dir),
    }
    return {name: check for name, check in checks.items() if name in asked(config)}


def everything(config: DoctorConfig) -> tuple[list[RankReport], dict[str, Finding], Meeting]:
    """The reports of all ranks (on rank 0), what only they show together, and the meeting."""
    timeout_s = config.timeout_s
    mine = {"torch": look(machine.torch_build, timeout_s)}
    meeting = Meeting(0, 1, mine["torch"])
    if "torch" in sys.modules:  # together first: a rank that hangs later keeps no other waiting
        meeting = meet(config.processes, timeout_s)
        mine["world"] = meeting.finding
        if meeting.complete:
            mine["world"] = look(lambda: world.join(meeting, timeout_s), 2 * timeout_s)
            together = world_checks(config, meeting) if mine["world"].status == "ok" else {}
            mine |= {name: look(check, 2 * timeout_s) for name, check in together.items()}
    mine |= {name: look(check, timeout_s) for name, check in local_checks(config, meeting.rank).items()}
    report = RankReport(meeting.rank, host_name(), {name: mine[name] for name in ORDER if name in mine})
    if meeting.store is None:
        return [report], {}, meeting
    if "code" in asked(config):
        with contextlib.suppress(TimeoutError, OSError):  # what hangs or is absent has its own line
            report.facts.update(within(timeout_s, lambda: world.facts() | shards.fingerprints(config.shards)))
    reports, silent = collect(meeting, report, 3 * timeout_s)
    compared = {"code": world.agreement(reports, meeting.world)} if "code" in asked(config) else {}
    return reports, compared | ({"reports": silent} if silent else {}), meeting


def main(config: DoctorConfig) -> None:
    reports, compared, meeting = everything(config)
    lines = combine(reports, meeting.world) | {name: [finding] for name, finding in compared.items()}
    lines = {name: lines[name] for name in ORDER if name in lines}
    found = [finding for some in lines.values() for finding in some]
    status = worst(found)
    if is_main_process():
        print(redact(table(lines)), flush=True)
        content = {
            "status": status,
            "world": meeting.world,
            "findings": {name: [asdict(finding) for finding in some] for name, some in lines.items()},
            "ranks": [asdict(report) for report in reports],
        }
        write_json(config.output_dir / "doctor.json", redact(content))
    elif 0 not in meeting.hosts:
        print(redact(f"rank {meeting.rank} on {host_name()}: {meeting.finding.text}"), file=sys.stderr, flush=True)
    decided = part(meeting, status, 4 * config.timeout_s)
    if not decided:
        raise UserError(f"rank 0 ended, or did not answer within {4 * config.timeout_s:g} s")
    if decided == "problem":
        wrong = [name for name, some in lines.items() if worst(some) == "problem"]
        raise UserError(f"{', '.join(wrong)}: see above; all is in {config.output_dir / 'doctor.json'}")
    world.leave()


if __name__ == "__main__":
    run(main, DoctorConfig, doc=__doc__, refuse_unsafe=False)  # it tells of them
