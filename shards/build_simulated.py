"""Write the simulated study: a BIDS dataset of pictures, events and EEG of simulated brains.

    python shards/build_simulated.py --config configs/shards/simulated.yaml

Run the same command again to continue an interrupted run; a finished study is recognised and left alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ttd.config import Plan, run
from ttd.experiments.simulated import SimulatedConfig, is_finished

CPU_S_PER_HOUR = 12
"""CPU seconds per simulated hour of 63 channels at 250 Hz, measured on one core of an AMD EPYC."""


def check(config: SimulatedConfig) -> Plan:
    """Say what will be written, and refuse a disk that cannot hold it."""
    plan = Plan()
    if is_finished(config):
        plan.notes.append(f"{config.output_dir}: finished already, nothing to do")
        return plan
    parent = next(p for p in [config.output_dir, *config.output_dir.absolute().parents] if p.exists())
    need, free = config.megabytes(), shutil.disk_usage(parent).free / 1e6
    if need > free:
        plan.problems.append(
            f"output_dir: {config.output_dir} needs {need:.0f} MB, {free:.0f} MB are free; give another disk"
        )
    hours = config.n_subjects * sum(config.seconds(part) for part in config.parts) / 3600
    plan.notes.append(
        f"simulated study: {config.n_subjects} subjects, {hours:.1f} h of EEG, {need:.0f} MB on disk, "
        f"about {hours * CPU_S_PER_HOUR * config.sfreq / 250 + 10:.0f} CPU seconds, under 2 GB of memory"
    )
    return plan


def main(config: SimulatedConfig) -> None:
    """Write the study, unless it is there."""
    if is_finished(config):
        return
    from ttd.simulation.study import write_study  # imports torch and MNE, which a finished study does not need

    write_study(config)
    print(f"simulated study: {Path(config.output_dir)}")


if __name__ == "__main__":
    run(main, SimulatedConfig, doc=__doc__, check=check)
