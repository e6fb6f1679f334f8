"""Score aligned encoders on labelled epochs, whole recordings left out, beside shrinkage LDA on the same epochs.

    python ttd/probe.py --config configs/probe/muse_p300.yaml

An epoch's score is the cosine of its embedding to the mean positive embedding of the training part minus that to the mean
negative one. Per recording and as their mean: AUC, 95 % interval over epochs, and the control with permuted labels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttd.baselines.lda import ShrinkageLDA
from ttd.config import Plan, UserError, fingerprint, run, write_json
from ttd.data.reader import ShardReader
from ttd.data.splits import open_test
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.experiments.probe import ProbeConfig
from ttd.metrics.detection import CHANCE, auc, auc_draws, permuted_aucs
from ttd.objectives.contrastive import load_aligned

Score = Callable[[Path, str], tuple[np.ndarray, np.ndarray]]


def check(config: ProbeConfig) -> Plan:
    """Every fold needs its shards and the alignment trained on them."""
    problems = [
        f"folds.{name}: {folder} holds no shards; build them with shards/build_paired.py"
        for name, folder in [*config.folds.items(), *config.unrejected.items()]
        if not (folder / "test" / "index.json").is_file()
    ]
    problems += [
        f"aligned.{name}: {folder} holds no export; train it with ttd/align.py"
        for name, folder in config.aligned.items()
        if not (folder / "export" / "clip_head" / "config.json").is_file()
    ]
    return Plan(problems)


def labelled(reader: ShardReader, positive: str) -> np.ndarray:
    """1 for samples of the positive class, 0 for others [n].

    Raises:
        UserError: no sample, or every sample, carries the label.
    """
    labels = (reader.index.column("label") == positive).astype(int)
    if labels.min() == labels.max():
        known = sorted(set(reader.index.column("label")))
        raise UserError(f"positive={positive!r}: the labels of {reader.index.folder} are {known}")
    return labels


def aligned_scores(config: ProbeConfig, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels [n] of the left-out recording by the aligned encoder."""
    shards = config.folds[name]
    model, data = load_aligned(config.aligned[name] / "export"), DataConfig(shards=shards)

    @torch.no_grad()
    def embed(reader: ShardReader) -> Tensor:
        return torch.cat([model(batch["eeg"]) for batch in evaluation_batches(reader, data, 200)])

    train, test = ShardReader.open(shards / "train"), ShardReader.open(shards / "test", open_test=True)
    seen, of_class = embed(train), torch.from_numpy(labelled(train, config.positive))
    negative, positive = (F.normalize(seen[of_class == c].mean(0), dim=0) for c in (0, 1))
    return (embed(test) @ (positive - negative)).numpy(), labelled(test, config.positive)


def lda_scores(config: ProbeConfig, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels [n] of the left-out recording by shrinkage LDA on training and validation part."""
    known = [ShardReader.open(folder / p) for p in ("train", "validation") if (folder / p).is_dir()]
    test = ShardReader.open(folder / "test", open_test=True)
    epochs = [
        np.concatenate([reader.eeg(i) for reader in some for i in range(len(reader))]) for some in (known, [test])
    ]
    labels = np.concatenate([labelled(reader, config.positive) for reader in known])
    lda = ShrinkageLDA(sfreq=test.index.sfreq, tmin=test.index.tmin, start=test.index.tmin).fit(epochs[0], labels)
    return lda.score(epochs[1]), labelled(test, config.positive)


def rows_of(model: str, scored: dict[str, tuple[np.ndarray, np.ndarray]], seed: int) -> list[dict]:
    """One row per recording and one for their mean: AUC, interval, control with its interval."""
    draws = {name: auc_draws(*pair, seed=seed) for name, pair in scored.items()}
    permuted = {name: permuted_aucs(*pair, seed=seed) for name, pair in scored.items()}
    values = {name: auc(*pair) for name, pair in scored.items()}
    counts = {name: len(pair[1]) for name, pair in scored.items()}
    draws["mean"], permuted["mean"] = (np.mean(list(v.values()), axis=0) for v in (draws, permuted))
    values["mean"], counts["mean"] = float(np.mean(list(values.values()))), sum(counts.values())
    out = []
    for name, value in values.items():
        interval, control = np.quantile(draws[name], [0.025, 0.975]), np.quantile(permuted[name], [0.025, 0.975])
        row = {"model": model, "recording": name, "n": counts[name], "auc": value, "interval": interval.tolist()}
        out.append(
            row | {"chance": CHANCE, "control": float(permuted[name].mean()), "control_interval": control.tolist()}
        )
    return out


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | left-out recording | epochs | AUC | 95 % interval | chance | permuted labels |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        (low, high), (below, above) = r["interval"], r["control_interval"]
        lines.append(
            f"| {r['model']} | {r['recording']} | {r['n']} | {r['auc']:.3f} | {low:.3f} to {high:.3f} "
            f"| {r['chance']} | {r['control']:.3f} ({below:.3f} to {above:.3f}) |"
        )
    return "\n".join(lines) + "\n"


def main(config: ProbeConfig) -> None:
    opened = {
        name: open_test(folder, who="probe", config_hash=fingerprint(config)) for name, folder in config.folds.items()
    }
    scored = {name: aligned_scores(config, name) for name in config.folds}
    rows = rows_of("aligned encoder", scored, config.seed)
    rows += rows_of("shrinkage LDA", {n: lda_scores(config, f) for n, f in config.folds.items()}, config.seed)
    if config.unrejected:
        kept = {n: lda_scores(config, f) for n, f in config.unrejected.items()}
        rows += rows_of("shrinkage LDA, no epoch dropped", kept, config.seed)
    write_json(config.output_dir / "probe.json", {"test_part_opened": opened, "rows": rows})
    (config.output_dir / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    run(main, ProbeConfig, doc=__doc__, check=check)
