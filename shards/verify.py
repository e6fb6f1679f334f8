"""Check shards: archives, checksums, the sample contract, and that the parts of the split share nothing.

    python shards/verify.py shards=data/shards/simulated
    python shards/verify.py shards=data/shards/simulated quarantine=true

Exit status 0: all is well (or all damage is in quarantine); 2: something is wrong, each finding in one line.
"""

from __future__ import annotations

from ttd.config import Plan, UserError, run
from ttd.data.verify import Finding, index_folders, quarantine, verify
from ttd.experiments.verify import VerifyConfig

SHOWN = 50
"""Findings that are listed; the rest is counted."""


def check(config: VerifyConfig) -> Plan:
    folders = index_folders(config.shards)
    if not folders:
        return Plan(problems=[f"shards={config.shards}: no index.json in it or below; give a folder of shards"])
    size = sum(path.stat().st_size for folder in folders for path in folder.glob("*.tar"))
    return Plan(notes=[f"reading {len(folders)} folders of shards, {size / 1e9:.2f} GB twice"])


def remedy(findings: list[Finding]) -> str:
    """What helps against these findings, in a sentence or two."""
    some = [
        "copy what is named again from where it was built, or delete the study's folder and build it again",
        "quarantine=true leaves the named samples out from the next start on" if any(f.key for f in findings) else "",
    ]
    return "remedy: " + "; or ".join(filter(None, some))


def main(config: VerifyConfig) -> None:
    report = verify(config.shards)
    lines = [str(finding) for finding in report.findings]
    shown = "\n".join(lines[:SHOWN]) + (f"\nand {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
    rest = quarantine(report.findings) if config.quarantine else report.findings
    if rest:
        raise UserError(f"{len(lines)} findings\n{shown}\n{remedy(rest)}")
    if lines:
        print(f"{shown}\nthese samples are in quarantine now and left out from the next start on")
    before = f", {report.quarantined} of them in quarantine before" if report.quarantined else ""
    print(f"{config.shards}: {report.n_samples} samples in {report.n_shards} shards{before}: all is well")


if __name__ == "__main__":
    run(main, VerifyConfig, doc=__doc__, check=check)
