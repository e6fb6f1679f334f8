"""Score aligned encoders on labelled epochs, whole recordings left out, beside shrinkage LDA on the same epochs.

    python ttd/probe.py --config configs/probe/muse_p300.yaml

An epoch's score is the cosine of its embedding to the mean positive embedding of the training part minus that to the
mean negative one. Per recording and as their mean: AUC, 95 % interval over epochs, and the control with permuted labels.
LDA learns from all other recordings, the encoder from all but one more, its validation part.
"""

from __future__ import annotations

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


def check(config: ProbeConfig) -> Plan:
    """Every fold needs its shards and the alignment trained on them."""
    problems = [
        f"folds.{name}: {folder} holds no shards; build them with shards/build_paired.py"
        for name, folder in config.folds.items()
        if not (folder / "test" / "index.json").is_file()
    ]
    problems += [
        f"aligned.{name}: {folder} holds no export; train it with ttd/align.py"
        for name, folder in config.aligned.items()
        if not (folder / "export" / "clip_head" / "config.json").is_file()
    ]
    if config.unrejected and not (config.unrejected / "train" / "index.json").is_file():
        problems.append(f"unrejected: {config.unrejected} holds no shards; build them with shards/build_paired.py")
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


def lda_scores(config: ProbeConfig, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels [n] of one recording by shrinkage LDA on all others, whatever parts they stand in.

    Raises:
        UserError: no epoch belongs to a run of this name.
    """
    parts = [folder / part for part in ("train", "validation", "test")]
    readers = [ShardReader.open(part, open_test=True) for part in parts if (part / "index.json").is_file()]
    labels = np.concatenate([labelled(reader, config.positive) for reader in readers])
    epochs = np.concatenate([reader.eeg(i) for reader in readers for i in range(len(reader))])  # [n, C, T]
    left_out = np.array([reader.meta(i)["runs"][0] == name for reader in readers for i in range(len(reader))])
    if not left_out.any():
        raise UserError(f"folds: {folder} holds no run {name!r}; name each fold after its left-out run")
    facts = readers[0].index
    lda = ShrinkageLDA(sfreq=facts.sfreq, tmin=facts.tmin, start=facts.tmin).fit(epochs[~left_out], labels[~left_out])
    return lda.score(epochs[left_out]), labels[left_out]


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
    who = {"who": "probe", "config_hash": fingerprint(config)}
    opened = {name: open_test(folder, **who) for name, folder in config.folds.items()}
    rows = rows_of("aligned encoder", {n: aligned_scores(config, n) for n in config.folds}, config.seed)
    rows += rows_of("shrinkage LDA", {n: lda_scores(config, f, n) for n, f in config.folds.items()}, config.seed)
    if config.unrejected:
        opened["unrejected"] = open_test(config.unrejected, **who)
        unrejected = {n: lda_scores(config, config.unrejected, n) for n in config.folds}
        rows += rows_of("shrinkage LDA, no epoch dropped", unrejected, config.seed)
    write_json(config.output_dir / "probe.json", {"test_part_opened": opened, "rows": rows})
    (config.output_dir / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    run(main, ProbeConfig, doc=__doc__, check=check)
