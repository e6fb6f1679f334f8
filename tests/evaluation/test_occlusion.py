"""Hiding times and electrodes from an encoder that is known to read two electrodes between 100 and 200 ms."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.bridge.linear_readout import LinearReadout
from ttd.data.splits import SplitManifest, open_test
from ttd.data.writer import ShardWriter
from ttd.encoders import build_encoder
from ttd.encoders.inceptsad import InceptSADConfig
from ttd.evaluation.occlusion import neighbourhoods, occlude, windows
from ttd.evaluation.retrieval import TestPart
from ttd.experiments.eval import EvalConfig, RetrievalConfig
from ttd.objectives.contrastive import Contrastive, ContrastiveConfig, TargetSpace, save_aligned

CH_NAMES = ["Fz", "C3", "C4", "Pz", "O1", "O2"]
N_TIMES, SFREQ, TMIN, D, N = 70, 100.0, -0.1, 6, 40
CARRIES = slice(20, 30)  # 100 to 200 ms


def eeg_of(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two repetitions [2, C, T] in which O1 and O2 carry the target from 100 to 200 ms and nothing else does."""
    eeg = 0.3 * rng.normal(size=(2, len(CH_NAMES), N_TIMES))
    for channel, half in ((4, target[:3]), (5, target[3:])):
        for k, value in enumerate(half):
            eeg[:, channel, CARRIES.start + 3 * k : CARRIES.start + 3 * k + 3] += value
    return eeg


@pytest.fixture(scope="module")
def occluded(tmp_path_factory) -> dict:
    root: Path = tmp_path_factory.mktemp("occlusion")
    rng = np.random.default_rng(0)
    paired, targets, shas, made = root / "paired", {}, {}, {}
    for part in ("train", "validation", "test"):
        with ShardWriter(paired / part, kind="paired") as writer:
            for i in range(N):
                sha = hashlib.sha256(f"{part} {i}".encode()).hexdigest()
                targets[sha], shas[part, i] = rng.normal(size=D).astype(np.float32), sha
                made[part, i] = eeg_of(targets[sha], rng)
                meta = {
                    "study": "Simulated", "subject": "01", "cap": "six", "sessions": ["1"] * 2, "runs": [part] * 2,
                    "onsets": [float(i), float(i + 100)], "image_id": f"{part}-{i}", "concept": None, "image_sha256": sha,
                }  # fmt: skip
                writer.write(f"01_{i}", {"eeg.npy": made[part, i], "meta.json": meta})
            writer.finish({
                "study": "Simulated", "part": part, "sfreq": SFREQ, "tmin": TMIN, "n_times": N_TIMES,
                "caps": {"six": CH_NAMES}, "statistics": {"six": {"mean": [0.0] * 6, "std": [1.0] * 6}},
            })  # fmt: skip
    with ShardWriter(paired / "targets/clip", kind="target") as writer:
        for sha, target in targets.items():
            writer.write(sha, {"target.npy": target})
        writer.finish({"study": "Simulated"})
    parts = {part: [f"{part}-{i}" for i in range(N)] for part in ("train", "validation", "test")}
    SplitManifest(study="Simulated", by="given", assignments=parts).write(paired)

    torch.manual_seed(0)
    encoder = build_encoder(
        InceptSADConfig(embed_dim=16, depth=0, n_filters=4), n_times=N_TIMES, sfreq=SFREQ, ch_names=CH_NAMES
    )
    space = TargetSpace.fit(torch.from_numpy(np.stack(list(targets.values()))), "centred")
    linear = LinearReadout(n_chans=6, n_times=N_TIMES, bin_samples=1, clip_dim=D)

    def pairs(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        eeg = torch.from_numpy(np.stack([made[part, i].mean(0) for i in range(N)])).float()
        return eeg, space(torch.from_numpy(np.stack([targets[shas[part, i]] for i in range(N)])))

    linear.fit(*pairs("train"), held_out=pairs("validation"))
    head = ClipHead(ClipHeadConfig(), embed_dim=encoder.embed_dim, n_tokens=encoder.n_tokens, clip_dim=D, linear=linear)
    save_aligned(root / "align/export", Contrastive(ContrastiveConfig(), encoder=encoder, head=head, space=space))
    config = EvalConfig(
        output_dir=root / "eval", shards=paired, retrieval=RetrievalConfig(run=root / "align"), n_resamples=200
    )
    open_test(paired, who="test", config_hash="")
    return occlude(config, TestPart(config))


def test_what_carries_the_picture_is_missed_and_nothing_else_is(occluded):
    intact = occluded["intact"]["value"]
    assert intact > 0.3 > 2 * occluded["chance"]
    for window in occluded["time"]:
        carries = window["start_s"] < 0.2 and window["stop_s"] > 0.1
        assert (window["low"] > 0.02) == carries, window
    hidden = {e["ch_name"]: e for e in occluded["electrodes"]}
    for name, electrode in hidden.items():
        assert (electrode["low"] > 0.02) == (name in ("O1", "O2")), electrode
        assert electrode["drop"] == pytest.approx(intact - electrode["value"])


def test_windows_touch_cover_the_epoch_and_break_at_the_onset():
    cut = windows(-0.104, 0.712)
    assert cut[0][0] == -0.104
    assert cut[-1][1] == pytest.approx(0.608)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cut))
    assert 0.0 in [start for start, _ in cut]
    assert windows(0.0, 0.02) == [(0.0, 0.02)]


def test_electrodes_are_hidden_with_their_neighbours_on_the_head():
    names = ["O1", "Oz", "O2", "Fp1", "unknown"]
    assert neighbourhoods(names) == [[0, 1], [1, 0, 2], [2, 1], [3], [4]]
