"""The data card says what the shards know; the intended use stands in one place."""

import hashlib
import re
from html import unescape

import pytest
from artificial_runs import CH_NAMES, write_shards

from ttd.config import UserError, write_json
from ttd.data.quarantine import add_to_quarantine
from ttd.data.splits import Counts, SplitManifest
from ttd.data.writer import ShardWriter
from ttd.pages import card


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path / "paired")
    return tmp_path / "paired"


def text(parts: list[str]) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", "\n".join(parts))))


def split(shards) -> None:
    counts = {
        "train": Counts(repetitions=40, recordings=2, concepts=1, images=5),
        "test": Counts(repetitions=1060, recordings=2, concepts=1, images=5),
    }
    assignments = {"train": ["1"], "test": ["2"]}
    SplitManifest(study="Simulated", by="session", assignments=assignments, counts=counts, shared_images=7).write(
        shards
    )


def test_the_card_names_study_electrodes_rate_window_and_licence(shards):
    said = text(card.data_card(shards))
    assert "Simulated (simulated: nobody was recorded)" in said
    assert f"10: {', '.join(CH_NAMES)}" in said
    assert "125 Hz" in said
    assert "-104 to 528 ms" in said  # 80 samples: -0.104 + 79 / 125
    assert "licence of the recordings not stated" in said


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        (None, "licence of the pictures not stated apart from that of the recordings"),
        ("BSD-3-Clause (EEG), CC0 (pictures)", "licence of the pictures BSD-3-Clause (EEG), CC0 (pictures)"),
    ],
)
def test_the_licence_of_recordings_is_not_taken_for_that_of_the_pictures(tmp_path, licence, said):
    write_shards(tmp_path, simulated=False)
    with ShardWriter(tmp_path / "images", kind="image") as writer:
        sha = hashlib.sha256(b"a").hexdigest()
        meta = {"image_id": "a", "concept": None, "sha256": sha, "licence": licence}
        writer.write(sha, {"image.png": b"a", "meta.json": meta})
        writer.finish({"study": "S"})
    assert said in text(card.data_card(tmp_path))


def test_what_nobody_wrote_down_is_said_to_be_unknown(shards):
    said = text(card.data_card(shards))
    assert "split: not stated" in said
    assert "not stated (no build.json)" in said


def test_the_split_names_what_it_was_made_by_and_what_its_parts_share(shards):
    split(shards)
    said = text(card.data_card(shards))
    assert "Split by session. 7 pictures are shown in more than one part." in said
    assert "test 1,060 2 1 5" in said


def test_what_was_left_out_stands_with_its_number_and_reason(shards):
    write_json(
        shards / "build.json",
        {
            "presentations": 1161, "dropped": {"above 75 µV": 18, "target": 0}, "excluded": {"sub-09": "fell asleep"},
            "channels": {"sub-01_run-1": {"bad": {"Oz": "flat"}, "interpolated": ["Oz"]}, "x": {"bad": {}}},
        },
    )  # fmt: skip
    add_to_quarantine(shards / "train", {"sub-01_0": "checksum"})
    said = text(card.data_card(shards))
    assert "presentations 18 of 1,161 above 75 µV" in said
    assert "target" not in said
    assert "subject sub-09 fell asleep" in said
    assert "channels of sub-01_run-1 Oz interpolated" in said
    assert "samples of train 1 damaged, in quarantine" in said


def test_a_study_without_losses_says_so(shards):
    write_json(shards / "build.json", {"presentations": 1200, "dropped": {}, "channels": {}})
    assert "Nothing: all 1,200 presentations are in the shards; no sample is in quarantine." in text(
        card.data_card(shards)
    )


def test_a_damaged_build_record_is_refused(shards):
    (shards / "build.json").write_text("{")
    with pytest.raises(UserError, match=r"build\.json: not valid JSON"):
        card.data_card(shards)


def test_preprocessing_reads_as_a_sentence():
    settings = {
        "sfreq": 128.0, "l_freq": 1.0, "h_freq": 20.0, "notch": 50.0, "reference": "average", "channels": None,
        "interpolate_bad": True, "epochs": {"tmin": -0.1, "tmax": 0.8, "baseline": [None, 0.0], "reject_uv": 75.0},
    }  # fmt: skip
    assert card.preprocessing(settings) == (
        "high-pass 1 Hz; low-pass 20 Hz; notch 50.0 Hz; reference: average; baseline first sample to 0 ms; epochs beyond "
        "±75 µV left out; interpolate bad: True"
    )
    assert card.preprocessing({"sfreq": 250, "l_freq": None}) == "no filter of this chain"


def test_page_and_model_card_carry_the_same_words():
    page, markdown = text(card.intended_use()), card.intended_use_markdown()
    assert page.split() == markdown.replace("**", "").split("\n\n", 1)[1].split()
    assert 120 <= len(page.split()) <= 180
    for word in ("the model's guess", "no medical device", "lie detection", "withdrawn", "No secret", "personal data"):
        assert word in markdown
