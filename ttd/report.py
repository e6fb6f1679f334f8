"""Make one folder with a web page of finished runs: pictures, curves, tables, EEG and solids.

    python ttd/report.py --config configs/report/demo.yaml

Open its index.html from disk; no server and no network is needed. A run that is not there is named as not run.
"""

from __future__ import annotations

from ttd.config import Plan, run
from ttd.experiments.report import ReportConfig
from ttd.pages import report_folder
from ttd.pages.report import build_report, rewrite_readme


def check(config: ReportConfig) -> Plan:
    """The shards must be there; runs may be missing."""
    problems = [problem] if (problem := report_folder.problem(config.output_dir)) else []
    if not (config.shards / "train" / "index.json").is_file():
        problems.append(f"shards: {config.shards} holds no training part; build the shards first")
    if config.readme is not None and not (config.eval and (config.eval / "metrics.json").is_file()):
        problems.append("readme: there is no evaluation to take the table from; give eval, or leave readme out")
    runs = {"pretrain": config.pretrain, "align": config.align, "finetune": config.finetune, "eval": config.eval}
    runs |= {"lift": config.lift, **{f"generate.{name}": folder for name, folder in config.generate.items()}}
    missing = {key: folder for key, folder in runs.items() if folder and not folder.is_dir()}
    absent = [f"{key}={folder}: no such folder; the page will say so" for key, folder in missing.items()]
    return Plan(problems=problems, notes=[*absent, "report: writes one folder of a few MB in about a minute"])


def main(config: ReportConfig) -> None:
    print(f"report: {build_report(config)}")
    if config.readme is not None and config.eval is not None:
        rewrite_readme(config.readme, config.eval)


if __name__ == "__main__":
    run(main, ReportConfig, doc=__doc__, check=check)
