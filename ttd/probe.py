"""Score encoders on labelled epochs, whole recordings or subjects left out, beside linear baselines on the same epochs.

    python ttd/probe.py --config configs/probe/muse_p300.yaml

A frozen encoder under logistic regression (linear probe), a network trained whole (from a random start or from an
encoder: full fine-tuning), aligned encoders as they are, shrinkage LDA, ridge and band power. Settings that are to be
chosen are chosen inside the training groups. Per group and as their mean: figure, 95 % interval, chance, the same scores
against permuted labels, and everything fitted again on permuted labels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ttd.baselines.classifiers import BandPowerConfig, Grid, LDAConfig, RidgeConfig, build_baseline, choosing
from ttd.baselines.leave_out import Scored, permuted_within, score_left_out
from ttd.config import Plan, UserError, fingerprint, run, write_json
from ttd.data.labelled import Labelled, load, locked, missing
from ttd.data.reader import ShardReader
from ttd.data.splits import open_test
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.encoders import read_encoder_facts
from ttd.engine.tracking import talk
from ttd.experiments.probe import AlignedConfig, ClassifierConfig, ProbeConfig, ProbedConfig
from ttd.metrics.probing import GroupScores, difference, rows_of, table
from ttd.objectives.contrastive import load_aligned
from ttd.objectives.inceptsadnet import InceptSADNetConfig
from ttd.objectives.probing import EncoderTokens, LinearProbeConfig, NetworkClassifier, NetworkConfig

log = logging.getLogger("ttd.probe")


def check(config: ProbeConfig) -> Plan:
    """Every source, and every encoder that is not trained here, must be there."""
    plan = Plan([f"data.{name}.{why}" for name, source in config.data.items() if (why := missing(source))])
    for name, probed in config.models.items():
        classifier = probed.classifier
        if isinstance(classifier, AlignedConfig):
            plan.problems += [
                f"models.{name}.runs.{group}: {folder} holds no export; train it with ttd/align.py"
                for group, folder in classifier.runs.items()
                if not (folder / "export" / "clip_head" / "config.json").is_file()
            ]
            plan.problems += [
                f"models.{name}.shards.{group}: {folder} holds no test part; build it with shards/build_paired.py"
                for group, folder in classifier.shards.items()
                if not (folder / "test" / "index.json").is_file()
            ]
        folders = [classifier.encoder] if isinstance(classifier, LinearProbeConfig) else []
        folders += [s.start for s in classifier.settings if s.start] if isinstance(classifier, NetworkConfig) else []
        for folder in folders:
            try:
                read_encoder_facts(folder)
            except UserError as error:
                plan.problems.append(f"models.{name}: {error}")
    plan.notes.append(f"{len(config.pairs())} rows of {len(config.models)} models, scored by {config.metric}")
    return plan


def main(config: ProbeConfig) -> None:
    talk()
    who = {"who": "probe", "config_hash": fingerprint(config)}
    folders = locked(config.data)
    for probed in config.models.values():
        folders += list(probed.classifier.shards.values()) if isinstance(probed.classifier, AlignedConfig) else []
    opened = {str(folder): open_test(folder, **who) for folder in dict.fromkeys(folders)}
    data = {name: load(source) for name, source in config.data.items()}
    rows: list[dict[str, Any]] = []
    scored: dict[tuple[str, str], Scored] = {}
    for name, on in config.pairs():
        start = time.process_time()
        scored[name, on], refits = score(config, config.models[name], data[on])
        groups = by_group(config, scored[name, on])
        own = rows_of(groups, refits, metric=config.metric, unit=config.interval, seed=config.seed)
        own[-1] |= {"cpu_s": round(time.process_time() - start, 1), "chosen": scored[name, on].chosen}
        rows += [{"model": name, "data": on, **row} for row in own]
        log.info("%s on %s: %.3f, %.0f CPU s", name, on, own[-1]["value"], own[-1]["cpu_s"])
    compared = []
    for name, pair in config.differences.items():
        compared += differences(config, name, scored[pair.a], scored[pair.b])
    write_json(
        config.output_dir / "probe.json",
        {
            "test_part_opened": opened,
            "metric": config.metric,
            "epochs": {name: {"n": len(d.labels), "dropped": d.dropped} for name, d in data.items()},
            "rows": rows,
            "differences": compared,
        },
    )
    dropped = [f"{name}: {n} epochs dropped, {why}" for name, d in data.items() for why, n in d.dropped.items()]
    text = table(rows, compared, metric=config.metric) + "".join(f"\n{line}\n" for line in dropped)
    (config.output_dir / "table.md").write_text(text)
    print(text)


def score(config: ProbeConfig, probed: ProbedConfig, data: Labelled) -> tuple[Scored, list[float]]:
    """Every epoch scored with its group left out, and the mean figure after each fit on permuted labels."""
    positive_class(config, data.labels)
    if isinstance(probed.classifier, AlignedConfig):
        return aligned_scores(probed.classifier), []
    estimator, grid = build(probed.classifier, data, seed=config.seed)
    scorer = "roc_auc" if config.metric == "auc" else "accuracy"

    def fitted_on(labels: np.ndarray) -> Scored:
        left_out: dict[str, Any] = {
            "folds": probed.folds,
            "inner_folds": probed.inner_folds,
            "metric": scorer,
            "seed": config.seed,
        }
        return score_left_out(estimator, grid, data.eeg, labels, data.groups, data.keys, **left_out)

    refits = []
    for draw in range(probed.permuted_fits):
        groups = by_group(config, fitted_on(permuted_within(data.labels, data.groups, seed=config.seed, draw=draw)))
        refits.append(float(np.mean([group.value(config.metric) for group in groups.values()])))
    return fitted_on(data.labels), refits


def build(config: ClassifierConfig, data: Labelled, *, seed: int) -> tuple[BaseEstimator, Grid]:
    """The classifier for epochs like these, and what is to be chosen."""
    if isinstance(config, LDAConfig | RidgeConfig | BandPowerConfig):
        return build_baseline(config, sfreq=data.sfreq, tmin=data.tmin)
    facts: dict[str, Any] = {"sfreq": data.sfreq, "ch_names": data.ch_names, "scale": data.scale, "seed": seed}
    if isinstance(config, LinearProbeConfig):
        probe = make_pipeline(EncoderTokens(config, **facts), StandardScaler(), LogisticRegression(max_iter=2000))
        return choosing(probe, "logisticregression__C", config.strengths)
    if isinstance(config, InceptSADNetConfig):
        return NetworkClassifier(config.settings(), **facts), {}
    assert isinstance(config, NetworkConfig)
    network = NetworkClassifier(config.settings[0], **facts)
    return network, {"settings": list(config.settings)} if len(config.settings) > 1 else {}


def positive_class(config: ProbeConfig, labels: np.ndarray) -> tuple[str, int]:
    """The class that should score higher, and 1, or -1 where scikit-learn takes the other one for it.

    Raises:
        UserError: the AUC is wanted, and there are not two classes with the positive one among them.
    """
    classes = np.unique(labels).tolist()
    positive = config.positive or classes[-1]
    if config.metric == "auc" and (len(classes) != 2 or positive not in classes):
        raise UserError(
            f"metric: the AUC needs two classes, positive={positive!r} among them; the labels are {classes}"
        )
    return positive, 1 if positive == classes[-1] else -1


def by_group(
    config: ProbeConfig, scored: Scored, keep: Callable[[str], bool] = lambda key: True
) -> dict[str, GroupScores]:
    """What the metric needs of each group's epochs, of those whose key is to be kept."""
    out = {}
    kept = np.array([keep(str(key)) for key in scored.keys])
    positive, sign = positive_class(config, scored.labels)
    for group in np.unique(scored.groups):
        mine = kept & (scored.groups == group)
        if config.metric == "auc":
            out[str(group)] = GroupScores(sign * scored.scores[mine], (scored.labels[mine] == positive).astype(int))
        else:
            out[str(group)] = GroupScores(scored.predicted[mine], scored.labels[mine])
    return out


def differences(config: ProbeConfig, name: str, a: Scored, b: Scored) -> list[dict[str, Any]]:
    """a minus b; once more on the epochs that both scored, where they did not score the same ones."""
    told: dict[str, Any] = {"metric": config.metric, "seed": config.seed}
    out = [{"name": name, **difference(by_group(config, a), by_group(config, b), **told)}]
    common = set(a.keys) & set(b.keys)
    if len(common) < max(len(a.keys), len(b.keys)):
        mine, other = (by_group(config, s, common.__contains__) for s in (a, b))
        out.append({"name": f"{name}, on the {len(common)} epochs that both score", **difference(mine, other, **told)})
    return out


def aligned_scores(aligned: AlignedConfig) -> Scored:
    """Every group's test part scored by the encoder that was aligned without it."""
    scores, labels, groups, keys = [], [], [], []
    for group, shards in aligned.shards.items():
        model, data = load_aligned(aligned.runs[group] / "export"), DataConfig(shards=shards)

        @torch.no_grad()
        def embed(reader: ShardReader, model: torch.nn.Module = model, data: DataConfig = data) -> Tensor:
            return torch.cat([model(batch["eeg"]) for batch in evaluation_batches(reader, data, 200)])

        train, test = ShardReader.open(shards / "train"), ShardReader.open(shards / "test", open_test=True)
        of_class = train.index.column("label")
        if len(np.unique(of_class)) != 2:
            raise UserError(f"{shards}: needs two labels, holds {sorted(set(of_class))}")
        seen = embed(train)
        first, second = (F.normalize(seen[torch.from_numpy(of_class == c)].mean(0), dim=0) for c in np.unique(of_class))
        scores.append((embed(test) @ (second - first)).numpy())
        labels.append(test.index.column("label"))
        groups.append(np.full(len(test), group))
        keys.append(np.array(test.index.keys))
    joined = (np.concatenate(values) for values in (scores, labels, groups, keys))
    found, true, of, names = joined
    classes = np.unique(true)
    return Scored(found, classes[(found > 0).astype(int)], true, of, names, [])


if __name__ == "__main__":
    run(main, ProbeConfig, doc=__doc__, check=check)
