"""Without signal every score of generated pictures must lie inside its own chance interval 95 times in 100, each score alone.

    python benchmarks/zero_signal_pictures.py runs/demo/finetune data/simulated [draws, 100]

The demo's fine-tuned models, trained once, draw pictures from noise with the strength of the validation recordings and nothing of
any picture, anew in each draw; and those that they drew from the recordings themselves are scored under permuted names. The
interval is that of the permutation test of ttd/eval.py, here for the pixel scores as well. No test part is opened. The last
lines are the same scores of the recordings under their own names: what the intervals let through.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from ttd.data.controls import noise_like
from ttd.data.index import ShardIndex
from ttd.data.pictures import PictureDecoder
from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.data.targets import TargetTable
from ttd.diffusion.base import BaseConfig, load_base
from ttd.diffusion.sampler import SamplerConfig, sample
from ttd.diffusion.targets import ClipTargets
from ttd.metrics.catalogue import METRICS
from ttd.metrics.picture_scores import Described, Seen
from ttd.metrics.reconstruction import ScoredRun, scored_run
from ttd.metrics.rows import over_seeds, permutation_test
from ttd.objectives.finetuned import load_finetuned
from ttd.seeding import key, numpy_rng
from ttd.simulation.judge import load_judge
from ttd.simulation.scenes import COLOURS, KINDS
from ttd.simulation.study import read_scenes

PER_SUBJECT = 20
"""Pictures of each of the four subjects: 80 to draw in each draw."""
SAMPLER = SamplerConfig(steps=10, guidance=3.0)  # the demo's


class Setting:
    """What is the same in every draw: models, recordings, shown pictures and what the networks see in them."""

    def __init__(self, finetune: Path, study: Path):
        cpu = torch.device("cpu")
        shards = study / "paired"
        self.base = load_base(BaseConfig(path="weights/tiny"), device=cpu, with_vae=True)
        self.conditioner, _ = load_finetuned(finetune / "export", self.base)
        self.clip, self.judge = ClipTargets("weights/tiny/clip", device=cpu), load_judge(Path("weights/tiny/judge"))
        reader = ShardReader.open(shards / "validation")
        index = reader.index
        chosen = sorted(set(index.column("image_sha256")), key=lambda sha: key(0, "item", str(sha)))[:PER_SUBJECT]
        rows = np.flatnonzero(np.isin(index.column("image_sha256"), chosen))
        data = DataConfig(shards=shards, part="validation")
        (epochs,) = evaluation_batches(reader, data, len(rows), indices=rows)
        self.eeg = epochs["eeg"]
        self.subject, self.sha = index.column("subject")[rows], index.column("image_sha256")[rows]
        self.ids = dict(zip(index.column("image_sha256"), index.column("image_id"), strict=True))
        self.pictures = sorted(chosen)
        images, shown = ShardReader.open(shards / "images"), np.empty((len(chosen), 64, 64, 3), np.uint8)
        PictureDecoder(64, 1).batch([(s, images.image(images.index.find(s))) for s in self.pictures], shown)
        scenes = read_scenes(study / "bids")
        labels = [scenes[self.ids[sha]]["labels"] for sha in self.pictures]
        seen = self.describe(torch.from_numpy(shown).permute(0, 3, 1, 2))
        truth = Described(
            seen.described.clip, seen.described.judge, np.array([KINDS.index(w["kind"]) for w in labels]),
            np.array([COLOURS.index(w["colour"]) for w in labels]), {"kind": len(KINDS), "colour": len(COLOURS)},
        )  # fmt: skip
        self.real = Seen(seen.pictures, truth)
        training = np.unique(ShardIndex.read(shards / "train").column("image_sha256"))
        self.centre = TargetTable.read(shards / "targets/clip").array(training).mean(0)

    @torch.no_grad()
    def draw(self, eeg: torch.Tensor, number: int) -> Seen:
        """Pictures that the fine-tuned models draw from epochs, and what the networks see in them."""
        condition = self.conditioner(eeg)
        seeds = [key(number, "picture", row) for row in range(len(eeg))]
        images = sample(self.base, condition.context, condition.pooled, seeds=seeds, config=SAMPLER)
        return self.describe((images * 255).round().byte())

    @torch.no_grad()
    def describe(self, images: torch.Tensor) -> Seen:
        small = images.float() / 255
        words = {name: logits.argmax(1).numpy() for name, logits in self.judge(small).items()}
        clip = self.clip.embed(list(images)).numpy()
        described = Described(clip, self.judge.features(small).numpy(), words["kind"], words["colour"])
        return Seen(small.permute(0, 2, 3, 1).numpy(), described)

    def scored(self, drawn: Seen, shas: np.ndarray) -> ScoredRun:
        items = [
            {"subject": s, "image_sha256": sha, "control": None, "n_repetitions": 1, "candidates": 1, "samples": 1, "seed": 0}
            for s, sha in zip(self.subject, shas, strict=True)
        ]  # fmt: skip
        return scored_run(
            "x", items, drawn, self.pictures, self.real, clip_centre=self.centre, pixel_size=64, ways=50, labels={},
            pairwise=True,
        )  # fmt: skip


def results(run: ScoredRun, seed: int) -> dict[str, tuple[float, float, float]]:
    """Of each metric the mean over subjects and the limits between which 95 % of permutations lie."""
    out = {}
    for metric, (scores, _) in run.table.items():
        score = over_seeds(scores)
        test = permutation_test(score, run.subject, run.own, seed=seed, n_permutations=999)
        everyone = score(np.arange(len(run.own)), run.own)
        value = float(np.mean([everyone[run.subject == name].mean() for name in np.unique(run.subject)]))
        out[metric] = value, test.low, test.high
    return out


def titled(metric: str) -> str:
    return METRICS[metric].title.removesuffix(", {k}-way")


def main(finetune: Path, study: Path, draws: int) -> None:
    setting = Setting(finetune, study)
    own = setting.draw(setting.eeg, -1)
    inside: dict[tuple[str, str], list[bool]] = {}
    for draw in range(draws):
        seeds = [key(draw, "epoch", row) for row in range(len(setting.eeg))]
        noise = setting.draw(noise_like(setting.eeg, seeds), draw)
        names = dict(zip(setting.pictures, numpy_rng(draw, "names").permutation(setting.pictures), strict=True))
        permuted = np.array([names[sha] for sha in setting.sha])
        for what, drawn, shas in (("noise", noise, setting.sha), ("permuted names", own, permuted)):
            for metric, (value, low, high) in results(setting.scored(drawn, shas), draw).items():
                inside.setdefault((what, metric), []).append(low - 1e-12 <= value <= high + 1e-12)
        print(f"{draw + 1}/{draws}", file=sys.stderr)
    for (what, metric), hits in inside.items():
        print(f"{what}, {titled(metric)}: inside its interval in {sum(hits)} of {len(hits)} draws")
    for metric, (value, low, high) in results(setting.scored(own, setting.sha), 0).items():
        print(f"the recordings under their names, {titled(metric)}: {value:.3f}, chance {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 100)
