"""Without signal every score must lie inside its own chance interval 95 times in 100: the intervals are checked, not the models.

    python benchmarks/zero_signal.py runs/demo/align data/simulated/paired [draws, 100]

A trained alignment reads noise with the covariance over channels of the validation recordings and nothing of any picture, anew in
each draw; and it reads the recordings themselves under permuted names of pictures. No test part is opened.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from ttd.data.reader import ShardReader
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.data.targets import TargetTable
from ttd.metrics.decoding import retrieval_rows
from ttd.metrics.retrieval import cosine_similarity
from ttd.metrics.row import MEAN
from ttd.objectives.contrastive import load_aligned
from ttd.seeding import numpy_rng

SETTINGS = {"ways": (50, 200), "labels": {}, "n_resamples": 100, "n_draws": 1}


def main(run: Path, shards: Path, draws: int) -> None:
    aligned = load_aligned(run / "export")
    reader = ShardReader.open(shards / "validation")
    index = reader.index
    batches = evaluation_batches(reader, DataConfig(shards=shards, part="validation"), 100)
    eeg = torch.cat([batch["eeg"] for batch in batches])  # [N, C, T]
    n, c, t = eeg.shape
    mixing = torch.linalg.cholesky(torch.cov(eeg.transpose(0, 1).flatten(1)).double() + 1e-6 * torch.eye(c)).float()
    pictures, own = np.unique(index.column("image_sha256"), return_inverse=True)
    targets = TargetTable.read(shards / "targets" / aligned.target)
    gallery = aligned.prepare_targets(torch.from_numpy(targets.array(pictures))).numpy()
    subject, inside = index.column("subject"), {}
    with torch.inference_mode():
        signal = torch.cat([aligned(part) for part in eeg.split(100)]).numpy()
    for draw in range(draws):
        noise = mixing @ torch.randn(n, c, t, generator=torch.Generator().manual_seed(draw))
        with torch.inference_mode():
            predicted = torch.cat([aligned(part) for part in noise.split(100)]).numpy()
        names = numpy_rng(draw, "names").permutation(len(pictures))[own]
        for what, embedding, paired in (("noise", predicted, own), ("permuted names", signal, names)):
            for row in retrieval_rows(
                "x", [cosine_similarity(embedding, gallery)], subject, paired, seed=draw, **SETTINGS
            ):
                if row.subject == MEAN:
                    key = what, row.title
                    inside.setdefault(key, []).append(row.chance_low <= row.value <= row.chance_high)
    for (what, title), hits in inside.items():
        print(f"{what}, {title}: inside its interval in {sum(hits)} of {len(hits)} draws")
    rows = retrieval_rows("x", [cosine_similarity(signal, gallery)], subject, own, seed=0, **SETTINGS)
    for row in (r for r in rows if r.subject == MEAN):
        chance = f"chance {row.chance_low:.3f} to {row.chance_high:.3f}, p {row.p:.4f}"
        print(f"the recordings under their names, {row.title}: {row.value:.3f}, {chance}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 100)
