"""The quality page: its numbers are those of the shards, and it costs little."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from bids_study import CH_NAMES, write_run, write_study

from ttd.config import UserError, load_config
from ttd.data.index import ShardIndex
from ttd.experiments.shards import BuildPairedConfig, BuildUnlabelledConfig
from ttd.pages import quality

ROOT = Path(__file__).parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "shards" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planted(root: Path) -> Path:
    """The tiny study; in training, every picture is followed by 40 µV at Oz after 200 ms, one epoch has an artefact, and
    C3 of subject 02 is seven times as loud as the others."""
    write_study(root)
    rng = np.random.default_rng(5)
    for subject in ("01", "02"):
        stem = f"sub-{subject}_task-things_run-01"
        lines = (root / f"sub-{subject}/eeg/{stem}_events.tsv").read_text(encoding="utf-8-sig").splitlines()
        rows = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
        data = rng.normal(0, 10, (len(CH_NAMES), int(10.4 * 250)))
        for row in rows[:-1]:  # the last one is the pause
            centre = int((float(row["onset"]) + 0.2) * 250)
            data[CH_NAMES.index("Oz"), centre - 8 : centre + 9] += 40 * np.hanning(17)
        if subject == "01":
            data[0, int(2.3 * 250)] += 1_500
        else:
            data[CH_NAMES.index("C3")] *= 7
        write_run(root / f"sub-{subject}" / "eeg", stem, data, 250.0, rows)
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> BuildPairedConfig:
    folder = tmp_path_factory.mktemp("quality")
    overrides = [f"study.root={planted(folder / 'study')}", f"output_dir={folder / 'paired'}", "epochs.reject_uv=250"]
    config = load_config(BuildPairedConfig, [ROOT / "configs/shards/simulated_paired.yaml"], overrides)
    script("build_paired").main(config)
    return config


@pytest.fixture(scope="module")
def facts(built) -> dict:
    return json.loads((built.output_dir / "quality" / "quality.json").read_text())


def test_every_presentation_is_either_in_the_shards_or_left_out_for_a_reason(built, facts):
    index = {p: ShardIndex.read(built.output_dir / p, open_test=True) for p in ("train", "validation", "test")}
    kept = sum(int(part.n_repetitions.sum()) for part in index.values())
    assert facts["presentations"] == 36  # 2 subjects: 4 · 2, 2 · 2 and 2 · 3 presentations
    assert facts["left_out"] == {"above 250 µV": 1}
    assert facts["kept"] == kept == 35
    assert facts["parts"]["train"]["repetitions"] == 15
    assert {part: facts["parts"][part]["samples"] for part in index} == {p: len(i) for p, i in index.items()}


def test_the_evoked_response_peaks_where_it_was_planted(facts):
    assert facts["signals"]["n_epochs"] == 15
    assert facts["signals"]["evoked_peak_s"] == pytest.approx(0.2, abs=0.017)


def test_bad_channels_stand_in_the_page_by_recording(built, facts):
    assert list(facts["channels"]) == ["sub-02_run-01"]
    assert list(facts["channels"]["sub-02_run-01"]["bad"]) == ["C3"]
    text = (built.output_dir / "quality" / "index.html").read_text()
    assert re.search(r"<td>sub-02_run-01</td><td>C3: varies by .* where the median channel has", text)


def test_parts_of_the_studys_own_split_share_the_concept_but_no_picture(facts):
    assert facts["split"]["forbids"] == ["image"]
    for pair in ("train and validation", "train and test", "validation and test"):
        assert facts["leaks"][pair] == {"concepts": 1, "images": 0, "assigned": 0, "subjects": 2, "raw_time": 0}


def test_the_page_carries_everything_and_says_that_it_is_simulated(built, facts):
    text = (built.output_dir / "quality" / "index.html").read_text()
    assert "Simulated: no person was recorded." in text
    assert "licence: CC0" in text
    assert text.count("<img") == 3
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "<script" not in text
    assert facts["citation"] == "Simulated"  # the title of the configuration, as the dataset names no citation


def test_a_page_that_is_gone_comes_back_without_building_anew_and_one_that_stands_is_left(built):
    page = built.output_dir / "quality" / "index.html"
    page.unlink()
    shards = {p: p.stat().st_mtime_ns for p in built.output_dir.rglob("*.tar")}
    script("build_paired").main(built)
    written = page.stat().st_mtime_ns
    assert {p: p.stat().st_mtime_ns for p in built.output_dir.rglob("*.tar")} == shards
    assert quality.write(built.output_dir) == page
    assert page.stat().st_mtime_ns == written


def test_a_bounded_number_of_training_samples_is_read_and_none_of_the_test_part(built, monkeypatch):
    seen: list[str] = []
    original = ShardIndex.read_member

    def spy(self, i, name):
        seen.append(f"{self.facts.part} {name}")
        return original(self, i, name)

    monkeypatch.setattr(ShardIndex, "read_member", spy)
    monkeypatch.setattr(quality, "MAX_SAMPLES", 3)
    (built.output_dir / "quality" / "quality.json").unlink()
    quality.write(built.output_dir)
    assert seen == ["train eeg.npy"] * 3 + ["train meta.json"]


def test_windows_have_a_page_without_presentations(built, tmp_path):
    overrides = [f"study.root={built.study.root}", f"output_dir={tmp_path / 'windows'}", "windows.n_times=125"]
    config = load_config(BuildUnlabelledConfig, [ROOT / "configs/shards/simulated_unlabelled.yaml"], overrides)
    script("build_unlabelled").main(config)
    facts = json.loads((config.output_dir / "quality" / "quality.json").read_text())
    index = ShardIndex.read(config.output_dir / "train")
    assert (facts["kind"], facts["presentations"]) == ("window", None)
    assert facts["kept"] == index.n_samples + ShardIndex.read(config.output_dir / "validation").n_samples
    assert facts["signals"]["evoked_peak_uv"] is None


def test_a_folder_without_a_finished_build_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no finished build"):
        quality.write(tmp_path)
