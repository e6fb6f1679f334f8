"""The report: everything beside the page, everything named, nothing invented."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from artificial_runs import (
    CH_NAMES,
    N_IMAGES,
    SFREQ,
    SUBJECTS,
    TMIN,
    response,
    write_evaluation,
    write_generation,
    write_lifting,
    write_pretrain_report,
    write_shards,
    write_training,
)  # fmt: skip
from PIL import Image

from ttd.config import UserError
from ttd.data.reader import ShardReader
from ttd.experiments.report import ReportConfig
from ttd.pages import figures, page, recordings
from ttd.pages.report import build_report, rewrite_readme, stimuli_of
from ttd.pages.runs import RunFolder, curves


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("study")
    write_shards(root / "paired")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name in ("pretrain", "align", "finetune"):
        write_training(root / name)
    write_pretrain_report(root / "pretrain")
    write_generation(root / "generate")
    write_evaluation(root / "eval")
    write_lifting(root / "lift")
    return root


def whole(study: Path, runs: Path, output_dir: Path) -> ReportConfig:
    folders = {name: runs / name for name in ("pretrain", "align", "finetune", "eval", "lift")}
    return ReportConfig(
        output_dir=output_dir,
        shards=study / "paired",
        generate={"LoRA": runs / "generate"},
        commands=["make demo"],
        **folders,
    )


@pytest.fixture(scope="module")
def index(study, runs, tmp_path_factory) -> Path:
    return build_report(whole(study, runs, tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="module")
def html(index) -> str:
    return index.read_text(encoding="utf-8")


def text_of(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.S))


def test_the_page_names_only_files_of_its_folder(html, index):
    addresses = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    beside = {address for address in addresses if not address.startswith("data:image/")}
    assert {address.split("/")[0] for address in beside} == {"assets", "pictures"}
    assert all((index.parent / address).is_file() for address in beside)
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r"<style>.*?</style>|data:[^\"]*", "", html, flags=re.S))


def test_a_simulated_study_says_so_at_the_top(html):
    assert "Simulated study: the recordings were computed" in html[: html.index("<main ")]


def test_pictures_of_a_study_of_people_are_marked_or_left_out(study, runs, tmp_path):
    write_shards(tmp_path / "paired", simulated=False)
    config = ReportConfig(
        output_dir=tmp_path / "out",
        shards=tmp_path / "paired",
        generate={"LoRA": runs / "generate"},
        lift=runs / "lift",
    )
    n = N_IMAGES * len(SUBJECTS) + 3
    marked = build_report(config).read_text(encoding="utf-8")
    assert "Simulated study" not in marked
    assert "not for republication: the licence of the study (not stated)" in marked[: marked.index("<main ")]
    assert marked.count('<span class="mark">not for republication</span>') == n, "on every card"
    shown = {address for address in re.findall(r'src="(pictures/[^"]+)" alt="shown:', marked)}
    assert len(shown) == N_IMAGES
    left_out = build_report(config.model_copy(update={"stimuli": "leave_out"})).read_text(encoding="utf-8")
    assert 'alt="shown:' not in left_out
    assert "<div>from the reconstruction" in left_out
    assert "<div>from the picture shown" not in left_out, "a solid shows what its picture shows"
    assert "are left out; their names stand in their places" in left_out
    assert left_out.count('<div class="left-out">x</div>') == n
    reconstructed = set(re.findall(r'src="(pictures/[^"]+)" alt="(?!shown:)', left_out))
    assert {f"pictures/{p.name}" for p in (tmp_path / "out/pictures").iterdir()} == reconstructed, (
        "no stimulus is in it"
    )


@pytest.mark.parametrize(
    ("licence", "simulated", "said"),
    [
        ("CC0", True, "free"),
        ("CC0", False, "marked"),  # of the recordings
        ("not stated", False, "marked"),
        ("BSD-3-Clause (EEG), CC0 (pictures)", False, "free"),
        ("CC-BY-4.0 (pictures)", False, "free"),
        ("CC-BY-NC-4.0 (pictures)", False, "marked"),
        ("CC-BY-4.0 (recordings); pictures under the terms of THINGS, for research", False, "marked"),
    ],
)
def test_pictures_are_free_only_where_a_licence_says_so_of_the_pictures(licence, simulated, said, tmp_path):
    config = ReportConfig(output_dir=tmp_path, shards=tmp_path)
    assert stimuli_of(config, simulated=simulated, licence=licence) == said
    left_out = config.model_copy(update={"stimuli": "leave_out"})
    assert stimuli_of(left_out, simulated=simulated, licence=licence) == "leave_out"


def test_every_shown_picture_stands_beside_its_reconstruction_and_control(html):
    cards = html[html.index('id="all-items"') :]
    n = N_IMAGES * len(SUBJECTS)
    assert cards.count('<li class="item" data-order') == n
    for word in ("shown", "LoRA", "wrong EEG"):
        assert cards.count(f"<span>{word}</span>") == n
    assert "No items.jsonl beside the evaluation" in html


def test_tables_hold_the_figures_of_the_runs(html, runs):
    rows = json.loads((runs / "eval/metrics.json").read_text())["rows"]
    mean = next(
        r for r in rows if r["subject"] == "mean" and r["model"] == "encoder" and r["metric"] == "two_way_judge"
    )
    text = text_of(html)
    assert f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" in text
    assert "0.710 [0.660, 0.750]" in text, "lifting"
    assert "0.200 [0.170, 0.230]" in text, "its control"
    assert "200 steps, 1,600 samples seen, done, 62 s" in text
    assert "opened 1 time," in text
    assert "make demo" in text
    assert "2.13.0" in text


def test_pretraining_shows_its_error_and_which_frequencies_it_predicts(html, study, runs, tmp_path):
    text = text_of(html)
    assert "masked error, 20 windows of part validation" in text
    assert "0.583" in text, "of the Wiener predictor"
    assert "hidden EEG by frequency" in html
    shutil.copytree(runs / "pretrain", tmp_path / "pretrain")
    (tmp_path / "pretrain/pretrain_report.json").unlink()
    config = ReportConfig(output_dir=tmp_path / "out", shards=study / "paired", pretrain=tmp_path / "pretrain")
    assert "no pretrain_report.json" in text_of(build_report(config).read_text())


def test_what_was_not_run_is_named(study, tmp_path):
    config = ReportConfig(output_dir=tmp_path, shards=study / "paired", align=tmp_path / "nowhere")
    text = text_of(build_report(config.model_copy(update={"output_dir": tmp_path / "out"})).read_text())
    for name in ("pretraining", "fine-tuning", "generation", "evaluation", "lifting"):
        assert f"{name}: not run" in text
    assert f"alignment: not run (no such folder: {tmp_path / 'nowhere'})" in text


def test_a_damaged_result_is_an_error_not_a_gap(study, runs, tmp_path):
    (tmp_path / "lift").mkdir()
    (tmp_path / "lift/lift.json").write_text("{oops")
    config = ReportConfig(output_dir=tmp_path / "out", shards=study / "paired", lift=tmp_path / "lift")
    with pytest.raises(UserError, match=r"lift.json: not valid JSON"):
        build_report(config)
    assert not (tmp_path / "out/index.html").exists()


def test_the_average_of_a_subject_is_its_response_and_its_error_that_of_the_noise(study):
    reader = ShardReader.open(study / "paired/train")
    mean, quality = recordings.read_subject(reader, np.flatnonzero(reader.index.column("subject") == "sub-01"))
    n = 4 * N_IMAGES
    assert np.abs(mean - response()).max() < 5 * 0.5 / np.sqrt(n)
    assert quality.noise_uv == pytest.approx(0.5 / np.sqrt(n), rel=0.05)
    assert (quality.n_samples, quality.n_repetitions, quality.peaks_above_100_uv) == (N_IMAGES, n, 0)
    assert quality.evoked_peak_uv == pytest.approx(5 * np.sqrt(0.2 * 0.8), rel=0.1)  # sd of two ones among ten


def test_an_evoked_has_its_electrodes_in_place_and_its_peak_in_time():
    evoked = figures.evoked(response(), CH_NAMES, SFREQ, TMIN, n_averaged=20)
    name, time = evoked.get_peak(ch_type="eeg")
    assert name in ("O1", "O2")
    assert time == pytest.approx(0.170, abs=0.004)
    places = evoked.get_montage().get_positions()["ch_pos"]
    assert places["O1"][1] < 0 < places["Fp1"][1], "occipital lies behind, frontal in front"


def test_curves_keep_measurements_apart_from_progress(runs):
    log = RunFolder.read(runs / "align").log
    assert set(curves(log, "train")) == {"loss"}
    assert curves(log, "validation") == {"top1": ([50, 100, 150, 200], [0.05, 0.1, 0.15, 0.2])}


def test_a_picture_is_kept_once_by_its_content_and_photographs_small(tmp_path):
    rng = np.random.default_rng(0)
    photograph = np.kron(rng.integers(0, 255, (16, 16, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    sheet = page.Page("title", folder=tmp_path)
    first = sheet.image(photograph, "one", max_side=160)
    assert 'alt="one" width="160" height="160" loading="lazy" decoding="async"' in first
    assert sheet.image(photograph, "two", max_side=160).split()[1] == first.split()[1]
    assert [path.suffix for path in (tmp_path / "pictures").iterdir()] == [".jpeg"]
    small = photograph[::8, ::8]
    place = re.search(r'src="([^"]+)"', sheet.image(small, "three"))[1]
    with Image.open(tmp_path / place) as kept:
        assert np.array_equal(np.asarray(kept), small), "without loss"
    assert page.Page("title").image(small, "four").startswith('<img src="data:image/png;base64,')


def test_text_is_escaped():
    assert "<b>" not in page.table(["<b>"], [["<b>"]]) + page.paragraph("<b>") + page.missing("<b>")


def test_the_results_of_a_readme_come_from_the_evaluation_with_their_command(runs, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# TTD\n<!-- results -->\n<!-- /results -->\nend\n")
    rewrite_readme(readme, runs / "eval")
    text = readme.read_text()
    assert "| two-way identification, judge ↑ | encoder | 6 |" in text
    assert "`python ttd/eval.py`" in text
    assert text.endswith("<!-- /results -->\nend\n")
    readme.write_text("# TTD\n")
    with pytest.raises(UserError, match="no section between"):
        rewrite_readme(readme, runs / "eval")
