"""Per-subject normalisation: what it must do to training data is known in closed form."""

import numpy as np
import pytest
from small_shards import facts, meta

from ttd.config import UserError
from ttd.data.stream import DataConfig, evaluation_batches, open_reader
from ttd.data.whitening import SHRINKAGE, normaliser_of
from ttd.data.writer import ShardWriter

MIXES = {0: np.array([[2.0, 0, 0], [0.5, 3, 0], [0, 0.5, 2]]), 1: np.array([[2.0, 0.5, 0], [0, 2.5, 0], [0.5, 0, 3]])}


def write(folder, part, *, n=120, n_repetitions=4, subjects=2, seed=0):
    """Pictures without any response: noise, mixed over channels by a matrix of each subject's own, plus a constant."""
    rng = np.random.default_rng(seed)
    with ShardWriter(folder, kind="paired", samples_per_shard=64) as writer:
        for i in range(n):
            eeg = np.einsum("cd,rdt->rct", MIXES[i % 2], rng.normal(size=(n_repetitions, 3, 20))) + 5.0 * (i % 2)
            content = meta(i, n_repetitions, part) | {"subject": f"sub-{i % subjects}"}
            writer.write(f"img-{part}-{i:04d}", {"eeg.npy": eeg.astype(np.float16), "meta.json": content})
        statistics = {"three": {"mean": [0.0, 0.0, 0.0], "std": [2.0, 3.0, 2.0]}}
        writer.finish(facts(part) | {"statistics": statistics, "normalise": "subject"})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write(root / "train", "train")
    return root


def read(root, part):
    config = DataConfig(shards=root, part=part)
    reader = open_reader(config)
    batches = list(evaluation_batches(reader, config, 50, n_repetitions=1))
    return np.concatenate([b["eeg"].numpy() for b in batches]), reader.index.codes("subject")


def test_every_subject_has_unit_covariance_and_no_mean_response(root):
    eeg, subject = read(root, "train")
    for s in (0, 1):
        mine = eeg[subject == s]
        covariance = np.cov(mine.transpose(1, 0, 2).reshape(3, -1))
        assert covariance == pytest.approx(np.eye(3), abs=0.15)  # 1,200 samples, and 1 % of shrinkage
        assert mine.mean() == pytest.approx(0, abs=0.06)


def test_the_matrix_is_the_inverse_square_root_of_the_known_covariance(root):
    index = open_reader(DataConfig(shards=root)).index
    normaliser = normaliser_of(index)
    std = np.array(index.facts.statistics["three"].std)
    for s, mix in MIXES.items():
        known = mix @ mix.T / np.outer(std, std)
        known = (1 - SHRINKAGE) * known + SHRINKAGE * np.trace(known) / 3 * np.eye(3)
        assert normaliser.matrices[s] @ known @ normaliser.matrices[s].T == pytest.approx(np.eye(3), abs=0.1)


def test_other_parts_use_the_training_part(root):
    write(root / "validation", "validation", n=20, seed=1)
    eeg, subject = read(root, "validation")
    alone = eeg[:1]
    assert alone.shape == (1, 3, 20)
    assert np.abs(eeg[subject == 1].mean()) < 0.2  # the constant 5 is gone though the validation part was never fitted


def test_a_subject_without_training_part_is_refused_by_name(root):
    write(root / "validation2" / "train", "train", n=10, subjects=1)
    write(root / "validation2" / "validation", "validation", n=10, subjects=2)
    with pytest.raises(UserError, match="subjects sub-1 have no training part"):
        read(root / "validation2", "validation")


def test_single_presentations_are_refused(tmp_path):
    write(tmp_path / "train", "train", n=6, n_repetitions=1)
    with pytest.raises(UserError, match="saw every picture once; normalise: subject needs repetitions"):
        read(tmp_path, "train")


def test_shards_that_do_not_ask_are_left_alone(tmp_path):
    from small_shards import write_part

    write_part(tmp_path / "train", n=4)
    assert normaliser_of(open_reader(DataConfig(shards=tmp_path)).index) is None
