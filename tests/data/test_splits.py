"""The split manifest refuses whatever two parts may not share; the ledger counts who opened the test part."""

import pytest

from ttd.config import UserError
from ttd.data.splits import SplitManifest, Use, leave_one_out, open_test, read_ledger


def use(part, start, *, recording="r1", concept="dog", image="a", length=1.0):
    return Use(part, recording, start, start + length, concept, image)


def manifest(by="given", **assignments):
    return SplitManifest(study="S", by=by, assignments=assignments or {"train": ["a"], "test": ["b"]})


def test_disjoint_parts_pass_and_are_counted():
    uses = [use("train", 0.0), use("train", 0.1, image="a2"), use("test", 5.0, image="b", recording="r2")]
    counted = manifest().counted(uses)
    assert counted.counts["train"].model_dump() == {"repetitions": 2, "recordings": 1, "concepts": 1, "images": 2}
    assert counted.counts["test"].images == 1
    assert counted.shared_images == 0


def test_a_shared_image_is_refused():
    with pytest.raises(UserError, match=r"train and test share 1 images \(a\)"):
        manifest().check([use("train", 0.0), use("test", 5.0)])


def test_a_shared_concept_is_refused_when_split_by_concept():
    uses = [use("train", 0.0, image="a"), use("test", 5.0, image="b")]
    manifest("given").check(uses)
    with pytest.raises(UserError, match=r"train and test share 1 concepts \(dog\)"):
        manifest("concept").check(uses)


@pytest.mark.parametrize("by", ["session", "subject", "run"])
def test_a_recording_in_two_parts_is_refused_even_under_two_names(by):
    one = SplitManifest(study="S", by=by, assignments={"train": ["1"], "test": ["2"]}, recordings={"sub-1/1/1": "hash"})
    uses = [use("train", 0.0, recording="hash"), use("test", 50.0, recording="hash", image="b")]
    with pytest.raises(UserError, match=r"share 1 recordings \(sub-1/1/1\)"):
        one.check(uses)


def test_pictures_shown_in_every_run_are_counted_when_split_by_run():
    uses = [use("train", 0.0, recording="r1"), use("test", 0.0, recording="r2")]
    assert manifest("run").counted(uses).shared_images == 1


def test_epochs_of_two_parts_that_share_raw_samples_are_refused_with_the_remedy():
    # Rapid presentation: a picture each 0.1 s, epochs of 1 s.
    uses = [use("train", 0.0), use("test", 0.1, image="b"), use("train", 7.0)]
    with pytest.raises(UserError) as error:
        manifest().check(uses)
    message = str(error.value)
    assert (
        "1 repetitions share raw samples with another part (recording r1: train 0.000 to 1.000 s, test 0.100 to"
        in message
    )
    assert "hold whole sequences out" in message
    assert "leave a gap of 0.900 s" in message


def test_a_long_epoch_is_found_behind_short_ones():
    uses = [use("train", 0.0, length=10.0), use("train", 1.0), use("test", 5.0, image="b")]
    with pytest.raises(UserError, match=r"train 0\.000 to 10\.000 s"):
        manifest().check(uses)


def test_epochs_that_touch_do_not_overlap():
    manifest().check([use("train", 0.0), use("test", 1.0, image="b")])


def test_a_value_assigned_twice_is_refused():
    with pytest.raises(UserError, match="assigned to train and test: a"):
        manifest(train=["a", "b"], test=["a"]).check([])


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(UserError) as error:
        manifest("concept").check([use("train", 0.0), use("test", 0.5)])
    for words in ("concepts (dog)", "images (a)", "raw samples"):
        assert words in str(error.value)


def test_leaving_one_run_out_gives_disjoint_folds():
    runs = ["s/1/1", "s/1/2", "s/1/3"]
    fold = leave_one_out("Muse", "run", runs, "s/1/2", validation="s/1/3")
    assert fold.assignments == {"train": ["s/1/1"], "validation": ["s/1/3"], "test": ["s/1/2"]}
    assert fold.part_of("s/1/2") == "test"
    assert fold.part_of("s/9/9") is None
    with pytest.raises(ValueError, match="is not one of"):
        leave_one_out("Muse", "run", runs, "s/1/4")


def test_a_manifest_survives_the_disk(tmp_path):
    counted = manifest().counted([use("train", 0.0)])
    counted.write(tmp_path)
    assert SplitManifest.read(tmp_path) == counted
    assert SplitManifest.read(tmp_path / "split.json").fingerprint == counted.fingerprint
    (tmp_path / "split.json").write_text('{"study": 1}')
    with pytest.raises(UserError, match="not a split manifest"):
        SplitManifest.read(tmp_path)


def test_the_ledger_counts_who_opened_the_test_part(tmp_path):
    with pytest.raises(UserError, match="no split manifest"):
        open_test(tmp_path, who="generate")
    manifest().write(tmp_path)
    assert read_ledger(tmp_path) == []
    assert open_test(tmp_path, who="generate", config_hash="abc") == 1
    assert open_test(tmp_path / "split.json", who="eval", config_hash="abc") == 2
    entries = read_ledger(tmp_path)
    assert [entry["who"] for entry in entries] == ["generate", "eval"]
    assert entries[0]["config"] == "abc"
    assert entries[0]["split"] == manifest().fingerprint
