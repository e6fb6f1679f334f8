"""The evaluation entry on a small study whose EEG is linear in the targets: ridge reads it, a random encoder cannot."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ttd import eval as entry
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.config import FailedItemsError, UserError
from ttd.data.index import ShardIndex
from ttd.data.splits import SplitManifest, read_ledger
from ttd.data.writer import ShardWriter
from ttd.encoders import build_encoder
from ttd.encoders.inceptsad import InceptSADConfig
from ttd.evaluation import features
from ttd.experiments.eval import EvalConfig, PicturesConfig, RetrievalConfig
from ttd.metrics.row import MEAN, read_rows
from ttd.objectives.contrastive import Contrastive, ContrastiveConfig, TargetSpace, save_aligned
from ttd.simulation.judge import Judge, save_judge
from ttd.simulation.scenes import COLOURS, KINDS

ROOT = Path(entry.__file__).parents[1]
CH_NAMES = ["F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2"]
N_TIMES, SFREQ, D = 80, 125.0, 8
SIZES = {"train": (60, 3), "validation": (20, 3), "test": (30, 6)}
SUBJECTS = ("sub-01", "sub-02")


def picture(part: str, i: int) -> np.ndarray:
    return np.random.default_rng([len(part), i]).integers(0, 256, (64, 64, 3), np.uint8)


def write_study(root: Path) -> None:
    """Shards whose EEG is a fixed mixture of the picture's target at all times, plus noise; scenes.json beside."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(D, len(CH_NAMES)))
    targets, scenes, shown = {}, {}, {}
    for part, (n, _) in SIZES.items():
        for i in range(n):
            path = root / f"stimuli/{part}-{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(part, i)).save(path)
            shown[part, i] = hashlib.sha256(path.read_bytes()).hexdigest()
            targets[shown[part, i]] = rng.normal(size=D).astype(np.float32)
            scenes[f"{part}-{i}"] = {"labels": {"kind": KINDS[i % 6], "colour": COLOURS[i % 8]}}
    (root / "stimuli/scenes.json").write_text(json.dumps({"scenes": scenes}))
    paired = root / "paired"
    for part, (n, repetitions) in SIZES.items():
        with ShardWriter(paired / part, kind="paired") as writer:
            for subject in SUBJECTS:
                for i in range(n):
                    response = (targets[shown[part, i]] @ mixing)[None, :, None]
                    eeg = response + rng.normal(size=(repetitions, len(CH_NAMES), N_TIMES))
                    meta = {
                        "study": "Simulated", "subject": subject, "cap": "eight", "sessions": ["1"] * repetitions,
                        "runs": [part] * repetitions, "onsets": [float(i + 100 * r) for r in range(repetitions)],
                        "image_id": f"{part}-{i}", "concept": KINDS[i % 6], "image_sha256": shown[part, i],
                    }  # fmt: skip
                    writer.write(f"{subject}_{i}", {"eeg.npy": eeg, "meta.json": meta})
            writer.finish({
                "study": "Simulated", "part": part, "sfreq": SFREQ, "tmin": -0.04, "n_times": N_TIMES,
                "simulated": True,
                "caps": {"eight": CH_NAMES}, "statistics": {"eight": {"mean": [0.0] * 8, "std": [1.0] * 8}},
            })  # fmt: skip
    with ShardWriter(paired / "targets/clip", kind="target") as writer:
        for sha, target in targets.items():
            writer.write(sha, {"target.npy": target})
        writer.finish({"study": "Simulated"})
    with ShardWriter(paired / "images", kind="image") as writer:
        for (part, i), sha in shown.items():
            meta = {"image_id": f"{part}-{i}", "concept": None, "sha256": sha}
            writer.write(sha, {"image.png": (root / f"stimuli/{part}-{i}.png").read_bytes(), "meta.json": meta})
        writer.finish({"study": "Simulated"})
    SplitManifest(
        study="Simulated", by="given", assignments={p: [f"{p}-{i}" for i in range(n)] for p, (n, _) in SIZES.items()}
    ).write(paired)


def write_alignment(folder: Path, *, seed: int = 0) -> None:
    torch.manual_seed(seed)
    encoder = build_encoder(
        InceptSADConfig(embed_dim=16, depth=0, n_filters=4), n_times=N_TIMES, sfreq=SFREQ, ch_names=CH_NAMES
    )
    head = ClipHead(ClipHeadConfig(), embed_dim=encoder.embed_dim, n_tokens=encoder.n_tokens, clip_dim=D)
    space = TargetSpace.fit(torch.randn(50, D), "centred")
    save_aligned(folder / "export", Contrastive(ContrastiveConfig(), encoder=encoder, head=head, space=space))


def write_generation(folder: Path, study: Path) -> None:
    """Perfect pictures, and for the control the next picture."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for subject in SUBJECTS:
        for i in range(SIZES["test"][0]):
            shown = study / f"stimuli/test-{i}.png"
            others = {"shuffled": (i + 1) % SIZES["test"][0], "unconditional": (i + 7) % SIZES["test"][0]}
            for control, j in ((None, i), *others.items()):
                key = f"{subject}_{i}_{control}"
                Image.fromarray(picture("test", j)).save(folder / f"images/{key}.png")
                lines.append({
                    "key": key, "subject": subject, "image_id": f"test-{i}",
                    "image_sha256": hashlib.sha256(shown.read_bytes()).hexdigest(), "concept": None,
                    "path": f"images/{key}.png", "seed": i, "n_repetitions": 6, "candidates": 1, "control": control,
                    "shown_path": str(shown),
                })  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_models(folder: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16,
        projection_dim=D,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    save_judge(folder / "judge", Judge())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[EvalConfig, str]:
    root = tmp_path_factory.mktemp("eval")
    write_study(root)
    write_alignment(root / "align")
    write_generation(root / "generate", root)
    write_models(root / "weights")
    config = EvalConfig(
        output_dir=root / "eval", shards=root / "paired", study=root,
        retrieval=RetrievalConfig(run=root / "align", ways=(10, 50), repetitions=(20, 1)),
        pictures=PicturesConfig(
            runs={"LoRA": root / "generate"}, clip=root / "weights/clip", judge=root / "weights/judge", pixel_size=64
        ),
        n_resamples=200, n_draws=3,
    )  # fmt: skip
    assert not entry.check(config).problems
    entry.main(config)
    return config, (config.output_dir / "table.md").read_text()


def mean_rows(config: EvalConfig, *, control: str | None = None) -> list:
    rows, _ = read_rows(config.output_dir / "metrics.json")
    return [row for row in rows if row.subject == MEAN and row.labels.get("control") == control]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_ridge_reads_the_linear_study_and_a_random_encoder_sits_at_chance(evaluated):
    config, _ = evaluated
    top1 = {
        (r.model, r.labels["repetitions"]): r
        for r in mean_rows(config)
        if r.metric == "retrieval_top1" and r.labels["gallery"] == 10
    }
    assert set(top1) == {(m, n) for m in ("encoder", "ridge") for n in (6, 1)}, "20 repetitions are not there: 6 are"
    assert top1["ridge", 6].value > 0.9
    assert top1["encoder", 6].value < 0.35
    for row in top1.values():
        assert row.chance == 0.1
        assert row.control == pytest.approx(0.1, abs=0.07)


def test_perfect_pictures_are_recognised_and_wrong_eeg_is_not(evaluated):
    config, _ = evaluated
    rows = {row.metric: row for row in mean_rows(config) if row.model == "LoRA"}
    for name in ("ssim", "two_way_clip", "two_way_judge", "image_retrieval_top1"):
        assert rows[name].value == pytest.approx(1), name
    for name in ("two_way_clip", "two_way_judge"):
        assert rows[name].control_generated == pytest.approx(0.5, abs=0.2)
    assert rows["named_kind"].chance == pytest.approx(1 / 6)
    assert rows["named_colour"].chance == pytest.approx(1 / 8)


def test_what_cannot_know_the_picture_stands_in_a_table_of_its_own_and_fails(evaluated):
    config, table = evaluated
    assert {r.labels["control"] for r in read_rows(config.output_dir / "metrics.json")[0] if "control" in r.labels} == {
        "pre-stimulus window", "noise EEG", "wrong EEG", "unconditional generation", "always the mean picture"
    }  # fmt: skip
    for control in ("pre-stimulus window", "noise EEG"):
        (row,) = (r for r in mean_rows(config, control=control) if r.title == "retrieval top-1, 10-way")
        assert row.value == pytest.approx(0.1, abs=0.1)
    mean = {r.metric: r for r in mean_rows(config, control="always the mean picture")}
    assert mean["two_way_clip"].value == pytest.approx(0.5, abs=1e-6), "one drawing for all is ranked by chance exactly"
    unconditional = {r.metric: r for r in mean_rows(config, control="unconditional generation")}
    assert unconditional["two_way_clip"].value < 0.75 < {r.metric: r for r in mean_rows(config)}["two_way_clip"].value
    head, below = table.split("## What must fail")
    assert "unconditional generation" not in head
    assert "controls have p < 0.05" in below
    assert re.search(r"\| PixCorr ↑ \| any model \|.*\| LoRA 1\.000 \|", below), (
        "beside the models it is to be held against"
    )
    assert "| unconditional generation |" in below.split("## By subject")[0]
    assert (config.output_dir / "table.tex").read_text().count(r"\begin{tabular}") == 2


def test_concepts_with_several_pictures_are_a_gallery_and_an_interval_of_their_own(evaluated):
    config, _ = evaluated
    rows = {(r.model, r.metric, r.labels["repetitions"]): r for r in mean_rows(config)}
    prototypes = rows["ridge", "prototype_top1", 6]
    assert prototypes.labels["gallery"] == 6
    assert prototypes.chance == pytest.approx(1 / 6)
    assert prototypes.value > 0.5
    assert rows["encoder", "prototype_top1", 6].value < 0.4
    encoder = rows["encoder", "mean_reciprocal_rank", 6]
    assert encoder.concept_low < encoder.value < encoder.concept_high


def test_every_item_and_every_prediction_is_left_for_the_report(evaluated):
    config, _ = evaluated
    n = SIZES["test"][0]
    items = lines(config.output_dir / "items.jsonl")
    assert len(items) == 3 * n * len(SUBJECTS)
    rows = {row.metric: row for row in mean_rows(config)}
    own = [item for item in items if item["control"] is None]
    for metric in ("two_way_clip", "named_kind", "mse"):
        assert np.mean([i["scores"][metric] for i in own]) == pytest.approx(rows[metric].value, abs=1e-5)
    assert own[0]["true"] == {
        "kind": KINDS[int(own[0]["image_id"].split("-")[1]) % 6], "colour": COLOURS[int(own[0]["image_id"][5:]) % 8]
    }  # fmt: skip
    retrieved = lines(config.output_dir / "retrieval.jsonl")
    assert len(retrieved) == 2 * n * len(SUBJECTS)
    for record in retrieved:
        places = [near["image_sha256"] for near in record["nearest"]]
        assert len(set(places)) == 5
        if record["rank"] <= 5:
            assert places[record["rank"] - 1] == record["image_sha256"]
    ranks = [1 / r["rank"] for r in retrieved if r["model"] == "ridge"]
    assert np.mean(ranks) == pytest.approx(
        next(r for r in mean_rows(config) if (r.title, r.model) == ("mean reciprocal rank, 30-way", "ridge")).value
    )


def test_every_row_has_a_control_and_the_labels_it_is_compared_by(evaluated):
    config, _ = evaluated
    for row in mean_rows(config):
        assert row.low <= row.value <= row.high
        assert row.control_low <= row.control <= row.control_high
        assert {"channels", "repetitions", "subjects", "inductive"} <= set(row.labels)


def test_the_ledger_counts_the_opening(evaluated):
    config, _ = evaluated
    assert [line["who"] for line in read_ledger(config.shards)] == ["eval"]
    assert read_rows(config.output_dir / "metrics.json")[1]["test_part_opened"] == 1


def test_the_same_command_gives_the_same_table_from_kept_features(evaluated, monkeypatch):
    config, table = evaluated
    monkeypatch.setattr(features, "ClipTargets", None)  # would fail if features were computed again
    entry.main(config)
    assert (config.output_dir / "table.md").read_text() == table


def test_runs_of_several_training_seeds_are_their_mean_with_its_spread(evaluated, tmp_path):
    config, _ = evaluated
    write_alignment(tmp_path / "align", seed=1)
    (tmp_path / "align" / "config.yaml").write_text("seed: 1\n")
    runs = (config.retrieval.run, tmp_path / "align")
    none = config.pictures.model_copy(update={"runs": {}})
    retrieval = config.retrieval.model_copy(
        update={"run": runs, "ridge": False, "repetitions": (6,), "occlusion": False}
    )
    both = config.model_copy(update={"output_dir": tmp_path / "eval", "pictures": none, "retrieval": retrieval})
    assert entry.check(both).problems == []
    entry.main(both)
    title = "mean reciprocal rank, 30-way"
    (row,) = (r for r in mean_rows(both) if r.title == title)
    (first,) = (r for r in mean_rows(config) if (r.title, r.model, r.labels["repetitions"]) == (title, "encoder", 6))
    assert row.labels["seeds"] == [None, 1]
    second = 2 * row.value - first.value
    assert row.sd == pytest.approx(abs(first.value - second) / 2**0.5)
    assert ", sd 0." in (tmp_path / "eval" / "table.md").read_text()


def write_many(folder: Path, study: Path, *, n_items: int, n_samples: int) -> int:
    """Pictures between the shown one and noise, several per item, of as many subjects as it takes; returns how many."""
    (folder / "images").mkdir(parents=True)
    rng, records = np.random.default_rng(0), []
    for number in range(n_items):
        i = number % SIZES["test"][0]
        subject = f"sub-{1 + number // SIZES['test'][0]:02d}"
        paths = [f"images/{subject}_{i}_{n}.png" for n in range(n_samples)]
        for path in paths:
            mixed = 0.5 * picture("test", i) + 0.5 * rng.integers(0, 256, (64, 64, 3))
            Image.fromarray(mixed.astype(np.uint8)).save(folder / path)
        shown = study / f"stimuli/test-{i}.png"
        records.append({
            "key": f"{subject}_{i}", "subject": subject, "image_id": f"test-{i}",
            "image_sha256": hashlib.sha256(shown.read_bytes()).hexdigest(), "path": paths[0], "more_paths": paths[1:],
            "seed": i, "n_repetitions": 6, "candidates": n_samples, "control": None, "shown_path": str(shown),
        })  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return len(records) * n_samples


def test_runs_that_drew_otherwise_are_not_compared_and_the_test_part_stays_closed(evaluated, tmp_path):
    config, _ = evaluated
    write_many(tmp_path / "many", config.study, n_items=60, n_samples=2)
    runs = {"LoRA": config.pictures.runs["LoRA"], "many": tmp_path / "many"}
    pictures = config.pictures.model_copy(update={"runs": runs, "compare": [("LoRA", "many")]})
    other = config.model_copy(update={"output_dir": tmp_path / "eval", "pictures": pictures})
    assert entry.check(other).problems == []
    every = pictures.model_copy(update={"samples": "all"})
    (problem,) = entry.check(other.model_copy(update={"pictures": every})).problems
    assert "pictures.compare: LoRA and many drew other pictures, or not as many" in problem


def test_drawn_and_shown_pictures_may_differ_in_size(evaluated, tmp_path):
    config, _ = evaluated
    shutil.copytree(config.pictures.runs["LoRA"], tmp_path / "large")
    for path in (tmp_path / "large" / "images").glob("*.png"):
        with Image.open(path) as image:
            image.resize((128, 128), Image.Resampling.NEAREST).save(path)
    pictures = config.pictures.model_copy(update={"runs": {"large": tmp_path / "large"}})
    none = config.retrieval.model_copy(update={"run": None})
    entry.main(config.model_copy(update={"output_dir": tmp_path / "eval", "pictures": pictures, "retrieval": none}))
    rows, _ = read_rows(tmp_path / "eval" / "metrics.json")
    assert next(row for row in rows if row.metric == "two_way_clip" and row.subject == MEAN).value > 0.95


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_ranks_look_at_each_picture_once_and_make_the_table_of_one_rank_byte_for_byte(evaluated, tmp_path):
    config, _ = evaluated
    n = write_many(tmp_path / "many", config.study, n_items=200, n_samples=5)
    rest = [f"shards={config.shards}", f"study={config.study}", f"pictures.runs={{many: {tmp_path / 'many'}}}"]
    rest += [f"pictures.clip={config.pictures.clip}", f"pictures.judge={config.pictures.judge}", "pictures.samples=all"]
    rest += ["pictures.pixel_size=64", "n_resamples=200", "n_draws=2", "batch_size=32"]
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        "launch/ddp.yaml",
    ]
    two = [*launcher, "--num_processes", "2", "--main_process_port", "0", "ttd/eval.py"]
    started = {}
    for name, command in (("one", [sys.executable, "ttd/eval.py"]), ("two", two), ("two", two)):
        ended = subprocess.run(
            [*command, f"output_dir={tmp_path / name}", *rest], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        looked = {path: path.stat().st_mtime_ns for path in (tmp_path / name / "features").glob("*/features.npz")}
        assert len(looked) == n + SIZES["test"][0] + 1  # and the mean picture
        assert started.setdefault(name, looked) == looked  # the second start of the same command looks at none again
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["world_size"] == 2
    tables = [(tmp_path / name / "table.md").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
    rows, _ = read_rows(tmp_path / "two" / "metrics.json")
    many = [row for row in rows if "control" not in row.labels]
    assert {row.labels["samples"] for row in many} == {5}
    assert all(row.value > row.control + 0.3 for row in many if row.metric == "pixcorr")


def test_a_run_that_a_file_names_is_taken_out_by_null():
    assert set(PicturesConfig(runs={"LoRA": "a", "no LoRA": None}).runs) == {"LoRA"}


@pytest.mark.parametrize(
    ("section", "given", "says"),
    [
        (PicturesConfig, {"runs": {"a": ("x", "x")}}, "a names a folder twice"),
        (PicturesConfig, {"runs": {"a": "x"}, "compare": [("a", "a")]}, "with itself says nothing"),
        (RetrievalConfig, {"run": ("x", "x")}, "names a folder twice"),
    ],
)
def test_a_run_is_no_second_seed_of_itself(section, given, says):
    with pytest.raises(ValidationError, match=says):
        section(**given)


def test_a_picture_that_cannot_be_read_is_named(evaluated, tmp_path):
    config, _ = evaluated
    shutil.copytree(config.pictures.runs["LoRA"], tmp_path / "broken")
    victim = next((tmp_path / "broken" / "images").glob("*.png"))
    victim.write_bytes(b"no picture")
    pictures = config.pictures.model_copy(update={"runs": {"broken": tmp_path / "broken"}})
    none = config.retrieval.model_copy(update={"run": None})
    with pytest.raises(FailedItemsError, match=rf"{victim.name}: cannot be read as a picture"):
        entry.main(config.model_copy(update={"output_dir": tmp_path / "eval", "pictures": pictures, "retrieval": none}))


def test_everything_that_is_missing_is_named_at_once(tmp_path):
    config = EvalConfig(
        output_dir=tmp_path / "out", shards=tmp_path / "none",
        retrieval=RetrievalConfig(run=tmp_path / "align"), 
        pictures=PicturesConfig(runs={"x": tmp_path / "gen"}, clip=tmp_path / "clip"),
    )  # fmt: skip
    text = "\n".join(entry.check(config).problems)
    for words in ("holds no shards", "holds no export/encoder", "holds no manifest.jsonl", "pictures.clip"):
        assert words in text


def test_the_locked_part_cannot_be_opened_without_the_ledger(evaluated):
    with pytest.raises(UserError, match="locked"):
        ShardIndex.read(evaluated[0].shards / "test")
