"""Find the gain of a simulated study at which the pooled half-whitened ridge reads the wanted 50-way top-1.

    python shards/calibrate_simulated.py output_dir=runs/calibration seed=0

Every study seed has a gain of its own: write the printed one beside the seed in configs/shards/simulated.yaml. The
scenes it is found on occur in no study.
"""

from __future__ import annotations

import shutil

from ttd.config import Plan, UserError, load_config, run, write_json
from ttd.experiments.shards import BuildPairedConfig
from ttd.experiments.simulated import CalibrationConfig, SimulatedConfig


def check(config: CalibrationConfig) -> Plan:
    """Everything the calibration reads must be there."""
    plan = Plan()
    try:
        study = load_config(SimulatedConfig, [config.study])
        load_config(BuildPairedConfig, [config.paired])
    except UserError as error:
        return Plan(problems=[str(error)])
    if not (config.clip / "config.json").is_file():
        plan.problems.append(f"clip={config.clip}: holds no CLIP model; train it with ttd/train_base.py")
    plan.notes.append("calibration: about 3 GB of memory, 4 CPU minutes for the demo's study")
    if config.check_files:
        parent = next(p for p in [config.output_dir, *config.output_dir.absolute().parents] if p.exists())
        need, free = study.megabytes(), shutil.disk_usage(parent).free / 1e6
        plan.notes.append(f"the last check needs {need:.0f} MB on disk for a moment")
        if need > free:
            plan.problems.append(f"output_dir={config.output_dir}: {need:.0f} MB needed, {free:.0f} MB free")
    return plan


def main(config: CalibrationConfig) -> None:
    """Calibrate and leave ``calibration.json``."""
    from ttd.simulation.calibration import calibrate, clip_embedding

    study, paired = load_config(SimulatedConfig, [config.study]), load_config(BuildPairedConfig, [config.paired])
    found = calibrate(config, study, paired, clip_embedding(config.clip), say=lambda text: print(text, flush=True))
    write_json(config.output_dir / "calibration.json", found)
    print(f"seed: {found['study_seed']}\nbrain:\n  gain: {found['gain']:g}")


if __name__ == "__main__":
    run(main, CalibrationConfig, doc=__doc__, check=check)
