"""Per-subject normalisation: whiten a subject's channels and take away the subject's mean response.

Multivariate noise normalisation (Guggenmos, Sterzer & Cichy, 2018, NeuroImage 173:434), fitted per subject on the training
part alone: the covariance of what differs between repetitions, 1 % shrunk to a multiple of the identity. Shards ask for it
by ``normalise: subject`` in their index, so that training, generation and evaluation cannot disagree about it.

Shapes: S subjects, B batch, R repetitions, C channels, T time points.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ttd.config import UserError
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.transforms import scale

SHRINKAGE = 0.01


class SubjectNormaliser:
    """One whitening matrix [C, C] and one mean response [C, T] per subject, for z-scored EEG."""

    def __init__(self, subjects: list[str], matrices: np.ndarray, means: np.ndarray):
        self.subjects, self.matrices, self.means = subjects, matrices, means

    def codes(self, index: ShardIndex) -> np.ndarray:
        """The place [N] of each sample's subject among ``subjects``.

        Raises:
            UserError: a subject without training recordings.
        """
        place = {subject: i for i, subject in enumerate(self.subjects)}
        unknown = sorted(set(index.subjects) - set(place))
        if unknown:
            raise UserError(
                f"{index.folder}: subjects {', '.join(unknown)} have no training part, and these shards are normalised per "
                "subject; build them with normalise: channel"
            )
        return np.array([place[subject] for subject in index.column("subject")], np.int64)

    def apply(self, eeg: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Normalise z-scored EEG [B, C, T] of the subjects ``codes`` [B]."""
        return np.matmul(self.matrices[codes], eeg) - self.means[codes]

    def save(self, path: Path) -> None:
        """Write matrices and means as safetensors; the names of the subjects are the caller's to keep."""
        save_file({"matrices": self.matrices, "means": self.means}, path)

    @classmethod
    def load(cls, path: Path, subjects: list[str], *, n_chans: int, n_times: int) -> SubjectNormaliser:
        """Read what ``save`` wrote.

        Raises:
            UserError: the file is missing or damaged, or for other subjects, channels or times.
        """
        expected = {"matrices": (len(subjects), n_chans, n_chans), "means": (len(subjects), n_chans, n_times)}
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); export the run again") from error
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if shapes != expected:
            raise UserError(f"{path}: holds {shapes}, expected {expected}; export the run again")
        return cls(subjects, tensors["matrices"], tensors["means"])


def fit(reader: ShardReader) -> SubjectNormaliser:
    """Fit on the training part.

    Raises:
        UserError: a subject saw nothing twice, so that nothing tells noise from response.
    """
    index = reader.index
    statistics, subjects = index.facts.statistics[index.cap], index.subjects
    owner = index.codes("subject")
    matrices = np.empty((len(subjects), index.n_chans, index.n_chans), np.float32)
    means = np.empty((len(subjects), index.n_chans, index.n_times), np.float32)
    for s, subject in enumerate(subjects):
        covariance, freedom = np.zeros((index.n_chans, index.n_chans)), 0
        response, rows = np.zeros((index.n_chans, index.n_times)), np.flatnonzero(owner == s)
        for i in rows:
            eeg = reader.eeg(int(i))  # [R, C, T]
            scale(eeg, statistics)
            average = eeg.mean(0)
            residual = (eeg - average).transpose(1, 0, 2).reshape(index.n_chans, -1)
            covariance += residual @ residual.T
            freedom += (len(eeg) - 1) * index.n_times
            response += average
        if not freedom:
            raise UserError(
                f"{index.folder}: subject {subject} saw every picture once; normalise: subject needs repetitions, build the "
                "shards with normalise: channel"
            )
        covariance /= freedom
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(
            len(covariance)
        )
        values, vectors = np.linalg.eigh(shrunk)
        matrices[s] = (vectors * values**-0.5) @ vectors.T
        means[s] = matrices[s] @ (response / len(rows))
    return SubjectNormaliser(subjects, matrices, means)


@lru_cache(maxsize=4)
def _fitted(folder: Path, fingerprint: str) -> SubjectNormaliser:
    return fit(ShardReader.open(folder))


def normaliser_of(index: ShardIndex) -> SubjectNormaliser | None:
    """What the shards of ``index`` ask for, fitted on the training part beside it (once per process); None if nothing."""
    if index.facts.normalise != "subject":
        return None
    train = index.folder.parent / "train"
    return _fitted(train, ShardIndex.read(train).fingerprint)
