"""The direct decoder as a generation run: fitted once on the training part, drawn from like any other run, never mixed up."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_finetune import CHANNELS, N_TIMES, SFREQ, entry, hashes

import ttd.evaluation.direct_decoder
import ttd.generate
from ttd.baselines.direct_decoder import draw_pictures, fit_direct_decoder
from ttd.config import load_config, write_json
from ttd.data.reader import ShardReader
from ttd.data.splits import SplitManifest
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.data.writer import ShardWriter
from ttd.encoders import build_encoder
from ttd.evaluation.direct_decoder import read_pairs
from ttd.experiments.generate import DirectPicturesConfig, GenerateConfig
from ttd.metrics.manifest import read_manifest, read_pictures
from ttd.seeding import key

ROOT = Path(__file__).parents[2]
ENCODER = "{name: brain3d, kernels_samples: [9, 5, 3], n_maps: [4, 6, 8], embed_dim: 16}"


COLOURS = np.random.default_rng(0).choice([40, 200], (64, 3)) + np.random.default_rng(1).integers(0, 20, (64, 3))
"""Red, green and blue are each weak or strong, and no two pictures are the same."""


def png(colour: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(out, format="PNG")
    return out.getvalue()


def build_shards(root: Path, n_train: int, n_test: int, subjects: tuple[str, ...]) -> Path:
    """Pictures of one colour; the height of a wave at each of three electrodes is that of red, green and blue."""
    rng, wave = np.random.default_rng(1), np.sin(np.arange(N_TIMES) / 3)
    files = [png(colour) for colour in COLOURS[: n_train + n_test]]
    shas = [hashlib.sha256(content).hexdigest() for content in files]
    parts = {"train": range(n_train), "test": range(n_train, n_train + n_test)}
    for part, images in parts.items():
        with ShardWriter(root / part, kind="paired") as writer:
            for subject, i in itertools.product(subjects, images):
                height = (COLOURS[i] / 127.5 - 1)[:, None]
                eeg = 14 * (height * wave + 0.1 * rng.standard_normal((2, len(CHANNELS), N_TIMES)))
                meta = {
                    "study": "Simulated", "subject": subject, "cap": "three", "sessions": ["1"] * 2, "runs": ["1"] * 2,
                    "onsets": [0.0, 1.0], "image_id": f"image-{i}", "concept": f"c{i}", "image_sha256": shas[i],
                }  # fmt: skip
                writer.write(f"sub-{subject}_{i}", {"eeg.npy": eeg, "meta.json": meta})
            statistics = {"three": {"mean": [0.0] * 3, "std": [14.0] * 3}}
            facts = {"study": "Simulated", "part": part, "sfreq": SFREQ, "tmin": -0.1, "n_times": N_TIMES}
            writer.finish(facts | {"caps": {"three": CHANNELS}, "statistics": statistics, "simulated": True})
    with ShardWriter(root / "images", kind="image") as writer:
        for i, (sha, content) in enumerate(zip(shas, files, strict=True)):
            meta = {"image_id": f"image-{i}", "concept": f"c{i}", "sha256": sha}
            writer.write(sha, {"image.png": content, "meta.json": meta})
        writer.finish({"study": "Simulated"})
    assignments = {part: [f"image-{i}" for i in images] for part, images in parts.items()}
    SplitManifest(study="Simulated", by="given", assignments=assignments).write(root)
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return build_shards(tmp_path_factory.mktemp("direct") / "shards", 8, 4, ("01", "02"))


def arguments(shards: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"output_dir={folder}", f"shards={shards}", f"direct_decoder.encoder={ENCODER}", "direct_decoder.picture_size=16",
        "direct_decoder.hidden=16", "direct_decoder.steps=4", "direct_decoder.batch_size=8", "n_items=3",
        "controls=[shuffled]", "items.batch_size=5", *more,
    ]  # fmt: skip


def generate(shards: Path, folder: Path, *more: str) -> int:
    return entry(ttd.generate, GenerateConfig, *arguments(shards, folder, *more))


def test_the_pictures_are_those_of_a_decoder_that_is_fitted_and_drawn_from_directly(shards, tmp_path):
    controls = "controls=[shuffled,pre_stimulus,noise]"
    assert generate(shards, tmp_path / "run", controls) == 0
    items = read_manifest(tmp_path / "run")
    assert len(items) == 2 * 3 * 4
    assert (tmp_path / "run" / "sheet.png").is_file()
    assert all(hashlib.sha256(i["shown_path"].read_bytes()).hexdigest() == i["image_sha256"] for i in items)

    config = load_config(GenerateConfig, [], arguments(shards, tmp_path / "run")).direct_decoder
    torch.manual_seed(key(0, "direct decoder's encoder"))
    encoder = build_encoder(config.encoder, n_times=N_TIMES, sfreq=SFREQ, ch_names=CHANNELS)
    train = ShardReader.open(shards / "train")
    (seen,) = evaluation_batches(train, DataConfig(shards=shards, picture_size=16), 100)
    model = fit_direct_decoder(encoder, seen["eeg"], seen["picture"].contiguous(), config, seed=0)
    test = ShardReader.open(shards / "test", open_test=True)
    (unseen,) = evaluation_batches(test, DataConfig(shards=shards, part="test"), 100)
    subjects, names = (test.index.column(name).tolist() for name in ("subject", "image_id"))
    drawn = dict(zip(zip(subjects, names, strict=True), draw_pictures(model, unseen["eeg"]), strict=True))
    for item in (item for item in items if item["control"] in (None, "shuffled")):
        expected = drawn[item["subject"], item["eeg_of"]].permute(1, 2, 0).numpy()
        assert np.abs(np.array(Image.open(item["path"]), int) - expected).max() <= 1
    of_noise = [item["path"].read_bytes() for item in items if item["control"] == "noise"]
    of_eeg = [item["path"].read_bytes() for item in items if item["control"] is None]
    assert not set(of_noise) & set(of_eeg)


def test_a_second_start_fits_nothing_and_draws_nothing(shards, tmp_path, monkeypatch, capsys):
    assert generate(shards, tmp_path, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "4 updates on the 16 epochs" in told
    assert "generation: 12 pictures" in told
    assert generate(shards, tmp_path) == 0
    model, before = tmp_path / "direct_decoder" / "model.safetensors", hashes(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (model, *tmp_path.glob("items/*/picture.png"))}

    def never(*_, **__):
        raise AssertionError("called again")

    monkeypatch.setattr(ttd.evaluation.direct_decoder, "fit_direct_decoder", never)
    monkeypatch.setattr(ttd.evaluation.direct_decoder, "draw_pictures", never)
    assert generate(shards, tmp_path) == 0
    assert len(times) == 13
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert hashes(tmp_path) == before


def test_a_picture_does_not_depend_on_those_it_is_drawn_with(shards, tmp_path):
    assert generate(shards, tmp_path / "five") == 0
    shutil.copytree(tmp_path / "five" / "direct_decoder", tmp_path / "one" / "direct_decoder")
    assert generate(shards, tmp_path / "one", "items.batch_size=1") == 0
    for five, one in zip(read_manifest(tmp_path / "five"), read_manifest(tmp_path / "one"), strict=True):
        pixels = [np.array(Image.open(item["path"]), int) for item in (five, one)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.slow
def test_two_ranks_share_one_fit_and_draw_the_pictures_of_one(shards, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        "launch/ddp.yaml",
    ]
    launcher += ["--num_processes", "2", "--main_process_port", "0", "ttd/generate.py"]
    command = [*launcher, *arguments(shards, tmp_path / "two")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["world_size"] == 2
    assert generate(shards, tmp_path / "one") == 0
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
    assert not list((tmp_path / "two").glob(".*"))


def test_what_was_fitted_on_something_else_is_not_taken(shards, tmp_path, capsys):
    assert generate(shards, tmp_path / "a") == 0
    for more in ("direct_decoder.steps=5", "seed=1", "direct_decoder.picture_size=32"):
        assert generate(shards, tmp_path / "a", more) == 2
        assert "holds another experiment" in capsys.readouterr().err
        shutil.copytree(tmp_path / "a" / "direct_decoder", tmp_path / "b" / "direct_decoder")
        assert generate(shards, tmp_path / "b", more) == 2
        told = capsys.readouterr().err
        assert f"{tmp_path / 'b' / 'direct_decoder'}: fitted with another configuration, seed or training part" in told
        shutil.rmtree(tmp_path / "b")


def test_pictures_of_another_fit_are_made_again(shards, tmp_path):
    for name, steps in (("a", 4), ("b", 9)):
        assert generate(shards, tmp_path / name, f"direct_decoder.steps={steps}") == 0
    before, folder = hashes(tmp_path / "a" / "items"), tmp_path / "a" / "direct_decoder"
    facts = json.loads((folder / "config.json").read_text())
    shutil.rmtree(folder)  # as if fitted again, on a machine that sums in another order
    shutil.copytree(tmp_path / "b" / "direct_decoder", folder)
    others = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", facts | {"sha256": others["sha256"]})
    assert generate(shards, tmp_path / "a") == 0
    after = hashes(tmp_path / "a" / "items")
    assert after.keys() == before.keys()
    assert not any(after[name] == before[name] for name in before)


def test_a_damaged_decoder_is_named_with_its_remedy(shards, tmp_path, capsys):
    assert generate(shards, tmp_path) == 0
    folder = tmp_path / "direct_decoder"
    model, facts = folder / "model.safetensors", folder / "config.json"
    whole, stated = model.read_bytes(), facts.read_bytes()
    for path, content in (
        (model, whole[:-1] + bytes([whole[-1] ^ 1])),
        (model, whole[:99]),
        (facts, b"{"),
        (facts, b"[]"),
    ):
        model.write_bytes(whole)
        facts.write_bytes(stated)
        path.write_bytes(content)
        assert generate(shards, tmp_path) == 2
        told = capsys.readouterr().err
        assert f"{path}: damaged" in told
        assert f"remove {folder}, and the next start fits it again" in told
    shutil.rmtree(folder)
    before = hashes(tmp_path)
    assert generate(shards, tmp_path) == 0
    assert hashes(tmp_path) == before  # the same fit


def test_exactly_one_must_draw(shards, tmp_path, capsys):
    assert generate(shards, tmp_path, "finetune=runs/somewhere") == 2
    assert (
        "give exactly one of finetune and direct_decoder, whichever is to draw; both are given"
        in capsys.readouterr().err
    )
    assert entry(ttd.generate, GenerateConfig, f"output_dir={tmp_path}", f"shards={shards}") == 2
    assert "whichever is to draw; neither is given" in capsys.readouterr().err


def test_what_it_cannot_do_is_refused_all_at_once(shards, tmp_path, capsys):
    asked = "candidates=2", "sampler.steps=9", "base.path=nowhere", "controls=[unconditional]"
    assert generate(shards, tmp_path, *asked, "direct_decoder.picture_size=48") == 2
    told = capsys.readouterr().err
    assert "candidates=2: the direct decoder draws one picture of an EEG, without a base; leave candidates out" in told
    assert "leave sampler out" in told
    assert "leave base out" in told
    assert "no condition that unconditional could leave out" in told
    assert "direct_decoder: picture_size=48 is not 8, 16, 32, 64 or a further doubling" in told
    assert generate(shards, tmp_path, "direct_decoder.encoder.kernels_samples=[25, 13, 7]") == 2
    assert "n_times=64 is too short for convolutions of [25, 13, 7] samples" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_where_the_eeg_determines_the_picture_it_is_nearer_than_that_of_the_wrong_eeg(tmp_path):
    shards = build_shards(tmp_path / "shards", 48, 16, ("01",))
    more = "direct_decoder.steps=80", "direct_decoder.hidden=64", "direct_decoder.batch_size=16", "n_items=16"
    assert generate(shards, tmp_path / "run", *more) == 0
    items, error = read_manifest(tmp_path / "run"), {}
    for control in (None, "shuffled"):
        rows = [item for item in items if item["control"] == control]
        drawn, shown = (
            [read_pictures([item[name]])[0].mean((0, 1)) for item in rows] for name in ("path", "shown_path")
        )
        error[control] = np.square(np.subtract(drawn, shown)).mean(1)
    assert len(error[None]) == 16
    assert error[None].mean() < 0.4 * error["shuffled"].mean()
    assert (error[None] < error["shuffled"]).mean() > 0.7


def test_the_demos_configuration_is_read_and_needs_no_base():
    config = load_config(GenerateConfig, [ROOT / "configs/generate/demo_direct_decoder.yaml"])
    assert config.finetune is None
    assert isinstance(config.direct_decoder, DirectPicturesConfig)
    assert config.controls == ("shuffled",)


def test_pairs_are_read_in_the_order_of_the_index(shards, tmp_path):
    config = load_config(GenerateConfig, [], arguments(shards, tmp_path))
    reader = ShardReader.open(shards / "train")
    eeg, pictures = read_pairs(config, reader)
    names = reader.index.column("image_id").tolist()
    assert pictures.shape == (16, 3, 16, 16)
    for name, picture in zip(names, pictures, strict=True):
        assert picture[:, 0, 0].tolist() == COLOURS[int(name.removeprefix("image-"))].tolist()
        assert torch.equal(picture, picture[:, :1, :1].expand_as(picture))
    stored = torch.stack([torch.from_numpy(np.array(reader.eeg_view(i), np.float32)).mean(0) / 14 for i in range(16)])
    assert torch.allclose(eeg, stored, atol=1e-5)
