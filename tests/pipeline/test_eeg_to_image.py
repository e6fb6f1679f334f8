"""The exported face: what it draws is what ``ttd/generate.py`` draws, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pytest
import torch
from PIL import Image
from test_finetune import CHANNELS, N_TIMES, SFREQ, align, build_shards, finetune, generate, weights

import ttd
from ttd.config import UserError, fingerprint
from ttd.data.reader import ShardReader
from ttd.seeding import key

RNG = np.random.default_rng(1)
EEG = 10 * RNG.standard_normal((2, len(CHANNELS), N_TIMES))  # µV
STEPS = {"num_inference_steps": 3}
KINDS = {"channel": "lora.rank=2", "subject": "lora.rank=0"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_base) -> dict[str, Path]:
    """Places with shards/, run/ and pictures/, by how the shards are normalised; one run has adapters, the other none."""
    places = {}
    for normalise, rank in KINDS.items():
        place = places[normalise] = tmp_path_factory.mktemp(normalise)
        write_base(place / "base")
        build_shards(place / "shards", normalise=normalise)
        align(place / "align")
        assert finetune(place, "run", rank) == 0
        assert generate(place) == 0
    return places


@pytest.fixture(scope="module")
def pipe(runs):
    return ttd.EEGToImagePipeline.from_pretrained(runs["channel"] / "run" / "export")


@pytest.fixture
def export(runs, tmp_path) -> Path:
    """A copy of the export that a test may spoil."""
    return Path(shutil.copytree(runs["channel"] / "run" / "export", tmp_path / "export"))


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def draw(pipe, eeg=EEG, ch_names=CHANNELS, sfreq=SFREQ, generator=(3, 4), **more) -> np.ndarray:
    return pixels(pipe(eeg, ch_names, sfreq, generator=generator, **STEPS, **more).images)


EPOCHS = mne.EpochsArray(EEG * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="ERROR")


def evoked(data, ch_names=CHANNELS, sfreq=SFREQ, tmin=0.0) -> mne.EvokedArray:
    """What is in µV here is in volts there."""
    return mne.EvokedArray(data * 1e-6, mne.create_info(list(ch_names), sfreq, "eeg"), tmin=tmin)


@pytest.mark.parametrize("normalise", KINDS)
def test_the_pictures_are_those_of_generation_bit_for_bit(runs, normalise):
    place = runs[normalise]
    pipe = ttd.EEGToImagePipeline.from_pretrained(place / "run" / "export")
    reader = ShardReader.open(place / "shards" / "test", open_test=True)
    rows = {
        (str(subject), str(image)): row
        for row, (subject, image) in enumerate(
            zip(reader.index.column("subject"), reader.index.column("image_id"), strict=True)
        )
    }
    items = [json.loads(line) for line in (place / "pictures" / "manifest.jsonl").read_text().splitlines()]
    assert len(items) == 12
    for start in range(0, len(items), 5):  # items.batch_size of generate()
        some = items[start : start + 5]
        first, second = np.stack([reader.eeg(rows[item["subject"], item["eeg_of"]]) for item in some], 1)
        whose = {"subject": [item["subject"] for item in some]} if normalise == "subject" else {}
        drawn = draw(pipe, (first + second) / 2, generator=[item["seed"] for item in some], **whose)
        assert np.array_equal(drawn, pixels([Image.open(place / "pictures" / item["path"]) for item in some]))


def test_channels_are_found_by_name_whatever_their_order_spelling_and_company(pipe, caplog):
    caplog.set_level("INFO", logger="ttd.data.eeg_reader")
    wide = np.concatenate([EEG[:, ::-1], 99 * np.ones((2, 1, N_TIMES))], axis=1)
    assert np.array_equal(draw(pipe, wide, ["EEG Pz-Ref", "CZ", "fz.", "HEOG"]), draw(pipe))
    assert "1 channels that the encoder does not read are left out: HEOG" in caplog.text


def test_mne_objects_give_the_picture_of_the_same_array_in_microvolts(pipe):
    one = draw(pipe, EEG[0], generator=5)
    assert len(one) == 1
    assert np.array_equal(draw(pipe, evoked(EEG[0, ::-1], CHANNELS[::-1]), None, None, generator=5), one)
    assert np.array_equal(draw(pipe, EPOCHS, None, None), draw(pipe))


@pytest.mark.parametrize("rate", [512.0, 1000.0, 250.0])
@pytest.mark.parametrize("more", range(4))
def test_another_rate_is_resampled_without_aliasing_or_shift_and_cut_by_time(pipe, rate, more):
    t = np.arange(-round(0.5 * rate) - more, round(0.9 * rate) + more) / rate
    slow = 20 * np.sin(2 * np.pi * 10 * t)
    fast = 20 * np.sin(2 * np.pi * 0.45 * rate * t)  # above the encoder's 64 Hz
    scaled = pipe.reader(evoked(np.stack([slow, slow + fast, 0 * t + 20]), sfreq=rate, tmin=t[0]))[0]
    away = min(0.5 / rate, 0.5 / SFREQ)  # of the nearest sample, where no sample falls on the encoder's own times
    expected = 20 * np.sin(2 * np.pi * 10 * np.arange(N_TIMES) / SFREQ) / 14
    assert scaled[:2] == pytest.approx(np.stack([expected, expected]), abs=20 / 14 * 2 * np.pi * 10 * away + 0.01)
    assert scaled[2] == pytest.approx(np.full(N_TIMES, 20 / 14), abs=0.01)
    if rate == 512:
        assert scaled[0] == pytest.approx(expected, abs=0.01)  # one of four samples falls on them


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((EEG[:, :2], CHANNELS[:2], SFREQ), "no electrode Pz"),
        ((EEG, ["Fz", "Cz", "FZ."], SFREQ), "several channels are called Fz"),
        ((EEG, CHANNELS[:2], SFREQ), "2 names, but eeg has 3 channels"),
        ((EEG, CHANNELS, 250), "sfreq=250: the encoder reads 128 Hz"),
        ((EEG[..., :60], CHANNELS, SFREQ), "has 60 time points, the encoder reads 64"),
        ((EEG * 1e-6, CHANNELS, SFREQ), "in volts: multiply by 1e6"),
        ((EEG * 1e6, CHANNELS, SFREQ), "not in µV"),
        ((EEG * np.nan, CHANNELS, SFREQ), "NaN"),
        ((EEG, None, SFREQ), "ch_names: an array does not tell"),
        ((EEG, CHANNELS, None), "sfreq: an array does not tell"),
        ((EEG[0, 0], CHANNELS, SFREQ), r"of shape \[64\]"),
        ((evoked(EEG[0]), CHANNELS, None), "an MNE object has its own"),
        ((evoked(EEG[0] * 1e6), None, None), "in µV, but MNE objects are in volts"),
        ((evoked(EEG[0], tmin=0.02), None, None), "covers 0.02.* s to .* cut longer epochs"),
        ((evoked(EEG[0], tmin=-0.1), None, None), "cut longer epochs"),
        ((evoked(EEG[0], ["Fz", "Cz", "EOG"]), None, None), "no electrode Pz"),
        ((EPOCHS[:0], None, None), "holds no epoch"),
        ((mne.io.RawArray(EEG[0], mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="ERROR"), None, None), "mne.Epochs"),
    ],
)
def test_eeg_that_does_not_fit_is_refused(pipe, given, words):
    with pytest.raises(UserError, match=words):
        pipe(*given)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"generator": [1]}, "1 seeds for 2 pictures"),
        ({"generator": -1}, "-1 is no seed"),
        ({"generator": 0.5}, "give a torch.Generator"),
        ({"n_images": 0}, "n_images=0"),
        ({"output_type": "latent"}, "output_type='latent'"),
        ({"subject": "01"}, "treats all subjects alike"),
    ],
)
def test_other_arguments_that_mean_nothing_are_refused(pipe, more, words):
    with pytest.raises(UserError, match=words):
        draw(pipe, **more)


def test_a_person_whose_whitening_was_not_learnt_is_refused(runs):
    pipe = ttd.EEGToImagePipeline.from_pretrained(runs["subject"] / "run" / "export")
    with pytest.raises(UserError, match="give one of 01, 02"):
        draw(pipe)
    with pytest.raises(UserError, match="another person's EEG needs training of its own"):
        draw(pipe, subject="03")
    with pytest.raises(UserError, match="1 names for 2 epochs"):
        draw(pipe, subject=["01"])
    assert not np.array_equal(draw(pipe, subject="01"), draw(pipe, subject="02"))


def test_seeds_are_told_and_draw_the_same_pictures_again(pipe):
    drawn = pipe(EEG, CHANNELS, SFREQ, n_images=2, generator=torch.Generator().manual_seed(0), **STEPS)
    again = pipe(EEG, CHANNELS, SFREQ, n_images=2, generator=torch.Generator().manual_seed(0), **STEPS)
    assert len(drawn.images) == len(set(drawn.seeds)) == 4
    assert np.array_equal(pixels(drawn.images), pixels(again.images))
    assert np.array_equal(draw(pipe, generator=drawn.seeds, n_images=2), pixels(drawn.images))
    second = draw(pipe, EEG[1], generator=drawn.seeds[2:], n_images=2).astype(
        int
    )  # in a batch of its own: all but the bits
    assert np.abs(second - pixels(drawn.images[2:])).max() <= 1
    fresh = [pipe(EEG[0], CHANNELS, SFREQ, **STEPS).seeds for _ in range(2)]
    assert fresh[0] != fresh[1]
    candidates = pipe(EEG[0], CHANNELS, SFREQ, n_images=3, generator=7, **STEPS).seeds
    assert candidates == [7, key(7, "candidate", 1), key(7, "candidate", 2)]  # those of ttd/generate.py


def test_arrays_and_tensors_hold_the_same_pictures(pipe):
    arrays, tensors = (
        pipe(EEG, CHANNELS, SFREQ, generator=[3, 4], output_type=kind, **STEPS).images for kind in ("np", "pt")
    )
    assert arrays.shape == (2, 32, 32, 3)
    assert np.array_equal(tensors.permute(0, 2, 3, 1).numpy(), arrays)
    assert np.array_equal((arrays * 255).round().astype(np.uint8), draw(pipe))


@pytest.mark.parametrize("normalise", KINDS)
def test_what_was_saved_draws_the_same_pictures(runs, normalise, tmp_path):
    whose = {"subject": "02"} if normalise == "subject" else {}
    pipe = ttd.EEGToImagePipeline.from_pretrained(runs[normalise] / "run" / "export")
    pipe.save_pretrained(tmp_path / "a" / "saved")
    again = ttd.EEGToImagePipeline.from_pretrained(tmp_path / "a" / "saved")
    assert np.array_equal(draw(pipe, **whose), draw(again, **whose))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["saved"]
    exported, saved = weights(runs[normalise] / "run" / "export"), weights(tmp_path / "a" / "saved")
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], saved[name]) for name in exported)
    assert "simulation" in (tmp_path / "a" / "saved" / "README.md").read_text()
    with pytest.raises(UserError, match="exists"):
        pipe.save_pretrained(tmp_path / "a" / "saved")


def test_a_save_that_fails_leaves_nothing(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ttd.pipeline.write_export_facts", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def rewrite(export: Path, change) -> None:
    """Change ``pipeline.json`` and give it the right hash."""
    content = json.loads((export / "pipeline.json").read_text())
    del content["sha256"]
    change(content)
    (export / "pipeline.json").write_text(json.dumps(content | {"sha256": fingerprint(content, 64)}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["eeg"]["std"].pop(), "std has 2 numbers, ch_names 3 names"),
        (lambda c: c["eeg"]["std"].__setitem__(0, -1.0), "eeg.std"),
        (lambda c: c["eeg"].pop("tmin"), "eeg.tmin"),
        (lambda c: c["eeg"]["ch_names"].reverse(), "eeg.ch_names is .* that of encoder/config.json"),
        (lambda c: c["eeg"].update(sfreq=100.0), "eeg.sfreq is 100.0"),
        (lambda c: c.update(adapters=False), "unet_lora: was not there when it was exported"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.update(format=2), "format is 2, this code reads 1"),
        (lambda c: c["eeg"].update(normalise="subject", subjects=["01"]), "subjects.safetensors: cannot be read"),
    ],
)
def test_a_description_that_contradicts_itself_or_the_weights_is_refused(export, change, words):
    rewrite(export, change)
    with pytest.raises(UserError, match=words):
        ttd.EEGToImagePipeline.from_pretrained(export)


def test_a_description_that_was_edited_damaged_or_lost_is_refused(export):
    path = export / "pipeline.json"
    path.write_text(path.read_text().replace("14.0", "15.0"))
    with pytest.raises(UserError, match="differs from its own sha256"):
        ttd.EEGToImagePipeline.from_pretrained(export)
    for damaged in ("{", "[]", "\xff", '{"format": 1'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"pipeline\.json: damaged"):
            ttd.EEGToImagePipeline.from_pretrained(export)
    path.unlink()
    with pytest.raises(UserError, match=r"pipeline\.json: missing; .* when the same command is run again"):
        ttd.EEGToImagePipeline.from_pretrained(export)


def test_lost_adapters_are_refused(export):
    shutil.rmtree(export / "unet_lora")
    with pytest.raises(UserError, match="unet_lora: is missing"):
        ttd.EEGToImagePipeline.from_pretrained(export)


def test_a_base_that_moved_is_asked_for_and_can_be_given(runs, export, tmp_path, pipe):
    rewrite(export, lambda c: c["base"].update(path=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"gone.* neither a folder .* pass base="):
        ttd.EEGToImagePipeline.from_pretrained(export)
    moved = ttd.EEGToImagePipeline.from_pretrained(export, base=runs["channel"] / "base")
    assert np.array_equal(draw(moved), draw(pipe))


def test_another_base_of_the_same_widths_is_refused_by_the_pipeline_and_by_generation(runs, tmp_path, capsys):
    place = Path(shutil.copytree(runs["channel"], tmp_path / "place"))
    unet = place / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(unet.read_bytes())
    content[-1] ^= 1
    unet.write_bytes(content)
    with pytest.raises(UserError, match=r"base\.sha256: .* other weights than the ones named: unet/"):
        ttd.EEGToImagePipeline.from_pretrained(place / "run" / "export", base=place / "base")
    capsys.readouterr()
    assert generate(place, f"output_dir={place / 'more'}") == 2
    assert "was trained on another unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().err
    assert not (place / "more").exists()


def test_attention_kernels_that_this_machine_lacks_are_replaced_and_that_is_said(export, pipe, caplog):
    if torch.cuda.is_available():
        pytest.skip("xformers may be there")
    rewrite(export, lambda c: c["base"].update(attention="xformers"))
    assert np.array_equal(draw(ttd.EEGToImagePipeline.from_pretrained(export)), draw(pipe))
    assert "PyTorch's own are used" in caplog.text


def test_a_finished_run_writes_a_description_that_it_lacks_when_it_is_started_again(runs):
    path = runs["channel"] / "run" / "export" / "pipeline.json"
    before = path.read_bytes()
    path.unlink()
    assert finetune(runs["channel"], "run", KINDS["channel"]) == 0
    assert path.read_bytes() == before


def test_it_moves_like_a_pipeline_of_diffusers_and_keeps_its_number_formats(pipe):
    assert pipe.to("cpu") is pipe
    assert pipe.device.type == "cpu"
    assert pipe.dtype == torch.float32
    assert set(pipe.components) == {"unet", "vae", "noise_scheduler", "conditioner", "reader", "origin"}
    with pytest.raises(UserError, match="give a device alone"):
        pipe.to(torch.float16)


def test_importing_ttd_imports_neither_torch_nor_diffusers():
    code = "import sys, ttd; assert not {'torch', 'diffusers', 'mne'} & set(sys.modules); ttd.EEGToImagePipeline"
    subprocess.run([sys.executable, "-c", code], check=True)
