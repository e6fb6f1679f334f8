"""Leave-one-subject-out: neither training nor its validation sees the subject, and nothing else changes."""

from itertools import islice

import numpy as np
import pytest
from small_shards import write_part

from ttd.config import UserError
from ttd.data.covariance import noise_covariance
from ttd.data.stream import DataConfig, Stream, evaluation_batches, kept_rows, open_reader


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_part(root / "train", n=10)
    return root


def stream(root, **options):
    config = DataConfig(shards=root, **options)
    return Stream(open_reader(config), config, seed=0, global_batch_size=4)


@pytest.mark.parametrize(("repetitions", "elements"), [("mean", 5), ("all", 10)])
def test_a_pass_holds_every_sample_of_the_others_and_none_of_the_subject(root, repetitions, elements):
    reader = open_reader(DataConfig(shards=root))
    names = reader.index.column("subject")
    gone, stays = reader.index.subjects
    found = stream(root, leave_out=[gone], repetitions=repetitions)
    assert found.n == elements
    seen = np.concatenate([batch["index"].numpy() for batch in islice(found.batches(), 5)])[: 2 * elements]
    assert set(names[seen]) == {stays}
    assert sorted(seen.tolist()) == sorted(np.flatnonzero(names == stays).tolist() * (2 * elements // 5))


def test_validation_leaves_the_subject_out_and_asked_for_rows_come_all_the_same(root):
    reader = open_reader(DataConfig(shards=root))
    config = DataConfig(shards=root, leave_out=[reader.index.subjects[0]])
    batches = evaluation_batches(reader, config, 20)
    assert {reader.index.column("subject")[i] for b in batches for i in b["index"]} == {reader.index.subjects[1]}
    (all_rows,) = evaluation_batches(reader, config, 20, indices=range(10))
    assert len(all_rows["index"]) == 10


def test_the_data_are_other_data_and_without_the_option_the_same_as_ever(root):
    reader = open_reader(DataConfig(shards=root))
    assert "leave_out" not in DataConfig(shards=root).fingerprint_part()
    assert stream(root, leave_out=[reader.index.subjects[0]]).fingerprint != stream(root).fingerprint


def test_the_noise_is_estimated_on_the_others_alone(tmp_path):
    write_part(tmp_path / "train", n=10, n_repetitions=1)
    reader = open_reader(DataConfig(shards=tmp_path))
    others = kept_rows(reader.index, [reader.index.subjects[0]])
    assert not np.allclose(noise_covariance(reader, others), noise_covariance(reader))


def test_nobody_left_is_refused(root):
    reader = open_reader(DataConfig(shards=root))
    with pytest.raises(UserError, match="holds no other subject"):
        stream(root, leave_out=reader.index.subjects)
