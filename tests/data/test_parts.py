"""Which part a presentation belongs to, and which presentations no part may hold."""

from pathlib import Path

import pytest

from ttd.config import UserError, load_config
from ttd.data.pairing import PartsConfig
from ttd.data.splits import SplitManifest, Use
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.studies import Event, Recording

EPOCH = EpochsConfig(tmin=-0.1, tmax=0.9)


class Made(Recording):
    """Three sequences of ten pictures at 10 Hz with 3 s between them; picture i shows concept i."""

    def __init__(self, pause=3.0, part="train"):
        super().__init__(Path("made"), subject="02")
        self.pause, self.part = pause, part

    def raw(self):
        raise NotImplementedError

    def events(self):
        return [
            Event(s * (0.9 + self.pause) + 0.1 * i, f"i{s}{i}", f"c{i}", None, "", self.part, sequence=str(s))
            for s in range(3)
            for i in range(10)
        ]


def assigned(parts, recording=None):
    recording = recording or Made()
    return parts.assign(recording, recording.events(), EPOCH)


def test_whole_sequences_are_held_out_by_their_number_or_in_full():
    for names in (("2",), ("02///2",)):
        got = assigned(PartsConfig(by="sequence", test=names))
        assert got == [("train", "")] * 20 + [("test", "")] * 10
    assert assigned(PartsConfig(by="sequence", test=("01///2",))) == [("train", "")] * 30  # somebody else's


def test_presentations_too_near_to_a_held_out_sequence_are_left_out_of_the_lower_part():
    # Sequences 0.5 s apart: the epoch of the last picture of one reaches 0.5 s into the next. With a gap of 0.5 s the
    # first test onset must lie more than 1.5 s behind an onset that stays.
    parts = PartsConfig(by="sequence", test=("2",), gap_s=0.5)
    got = assigned(parts, Made(pause=0.5))
    near = [i for i, (_, why) in enumerate(got) if why]
    first = Made(pause=0.5).events()[20].onset_s
    assert near == [i for i, event in enumerate(Made(pause=0.5).events()[:20]) if first - event.onset_s < 1.5 + 1e-6]
    assert {got[i] for i in near} == {("train", "within 0.5 s of another part")}
    assert got[20:] == [("test", "")] * 10


def test_validation_loses_to_test_and_training_to_both():
    parts = PartsConfig(by="sequence", validation=("1",), test=("2",), gap_s=0.0)
    got = assigned(parts, Made(pause=0.5))
    lost = [part for part, why in got if why]
    assert lost.count("test") == 0
    assert lost.count("train") == lost.count("validation") == 6  # of ten, 0.5 to 1.0 s before the next sequence


def test_without_a_gap_epochs_that_share_samples_are_refused():
    recording = Made(pause=0.5)
    for gap_s in (None, 0.0):
        parts = PartsConfig(by="sequence", test=("2",), gap_s=gap_s)
        events = recording.events()
        uses = [
            Use(part, "r", event.onset_s + EPOCH.tmin, event.onset_s + EPOCH.tmax, event.concept, event.image_id)
            for event, (part, why) in zip(events, assigned(parts, recording), strict=True)
            if not why
        ]
        assignments = {"train": ["02///0", "02///1"], "test": ["02///2"]}
        manifest = SplitManifest(study="S", by="sequence", assignments=assignments)
        if gap_s is None:
            with pytest.raises(UserError, match="hold whole sequences out"):
                manifest.check(uses)
        else:
            manifest.check(uses)


def test_concepts_of_a_test_are_left_out_of_training_and_validation_alone():
    parts = PartsConfig(by="sequence", validation=("1",), test=("2",), unseen=("c0", "c3"))
    got = assigned(parts)
    for s, part in enumerate(("train", "validation")):
        left_out = [i for i in range(10) if got[10 * s + i] == (part, "concept of the test")]
        assert left_out == [0, 3]
    assert got[20:] == [("test", "")] * 10


def test_left_out_concepts_keep_nobody_else_away():
    """A validation trial that is left out takes no training trials near it along."""
    parts = PartsConfig(by="concept", validation=("c5",), unseen=("c5",), gap_s=0.0)
    assert {why for part, why in assigned(parts) if part == "train"} == {""}


def test_a_list_of_concepts_is_named_by_its_file(tmp_path):
    (tmp_path / "list.json").write_text('{"about": "two", "concepts": ["c1", "c2"]}')
    parts = load_config(PartsConfig, [], ["by=concept", f"test={tmp_path / 'list.json'}"])
    assert parts.test == ("c1", "c2")
    with pytest.raises(UserError, match=r"unseen: .*nowhere\.json is no list of concepts"):
        load_config(PartsConfig, [], [f"unseen={tmp_path / 'nowhere.json'}"])


def test_lists_that_fit_nothing_are_named():
    recording = Made()
    presentations = [(recording, event) for event in recording.events()]
    assert PartsConfig(unseen=("typo",)).problems(presentations) == [
        "parts.unseen: the study shows none of these concepts (typo)"
    ]
    problems = PartsConfig(by="sequence", test=("7",)).problems(presentations)
    assert problems == ["parts: no sequence is called 7; there are 0, 02///0, 02///1, 02///2, 1, 2"]
    unnumbered = [(recording, Event(0.0, "i", "c", None, ""))]
    assert "numbers no sequences" in PartsConfig(by="sequence", test=("7",)).problems(unnumbered)[0]
