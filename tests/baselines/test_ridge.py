import numpy as np
import pytest

from ttd.baselines.bins import time_bins
from ttd.baselines.ridge import HalfWhitening, Part, PooledRidge, channel_whitener, pooled_half_whitened_ridge
from ttd.metrics.retrieval import cosine_similarity, top_k_in_random_galleries
from ttd.metrics.uncertainty import shuffled_control

C, K, D = 12, 10, 24


def small_study(noise: float = 6.0, n_subjects: int = 3) -> tuple[Part, Part, Part]:
    """Subjects that share a mapping from embeddings to [C, K] patterns, under noise correlated over channels."""
    rng = np.random.default_rng(0)
    spectrum = 1 / np.arange(1, D + 1)  # uneven, as that of an image embedding
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    mapping = rng.standard_normal((D, C * K)) / D**0.5
    mixing = [np.eye(C) + 0.7 * rng.standard_normal((C, C)) for _ in range(n_subjects)]
    own = [mapping + 0.3 * rng.standard_normal(mapping.shape) / D**0.5 for _ in range(n_subjects)]
    parts = []
    for n, repetitions in ((300, 4), (60, 4), (100, 20)):
        latent = rng.standard_normal((n, D))
        eeg = [
            (latent @ m).reshape(n, 1, C, K)
            + noise * np.einsum("cd,nrdk->nrck", mix, rng.standard_normal((n, repetitions, C, K)))
            for m, mix in zip(own, mixing, strict=True)
        ]
        targets = 1.0 + (latent * spectrum) @ rotation
        parts.append(Part([e.astype(np.float32) for e in eeg], [targets] * n_subjects))
    return parts[0], parts[1], parts[2]


def top1(result) -> float:
    pairs = zip(result.predictions, result.gallery, strict=True)
    return float(np.mean([top_k_in_random_galleries(cosine_similarity(p, g), ways=50).mean() for p, g in pairs]))


@pytest.fixture(scope="module")
def study():
    return small_study()


def test_retrieval_grows_with_the_repetitions_and_beats_shuffled_pictures(study):
    levels = {n: top1(pooled_half_whitened_ridge(*study, n_repetitions=n)) for n in (1, 4, 20)}
    assert levels[20] > levels[4] > levels[1] - 0.02
    assert levels[20] > 0.2
    result = pooled_half_whitened_ridge(*study)
    similarity = cosine_similarity(result.predictions[0], result.gallery[0])
    control = shuffled_control(lambda own: top_k_in_random_galleries(similarity, own, ways=50), np.arange(100), seed=0)
    assert control.mean() <= 0.05  # chance 0.02


def test_shuffled_training_pictures_leave_nothing_to_decode(study):
    train, validation, test = study
    order = np.random.default_rng(0).permutation(len(train.targets[0]))
    wrong = Part(train.eeg, [targets[order] for targets in train.targets])
    assert top1(pooled_half_whitened_ridge(wrong, validation, test)) <= 0.06


def test_half_whitening_leaves_the_square_root_of_the_spectrum():
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((2000, 6)) * np.array([4, 2, 1, 0.5, 0.25, 0.1]) + np.array([9, 0, 0, 0, 0, 0])
    half = HalfWhitening(targets)
    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    before = np.linalg.eigvalsh(np.cov(unit, rowvar=False))
    after = np.linalg.eigvalsh(np.cov(half(targets), rowvar=False))
    assert after == pytest.approx(before**0.5, rel=1e-6)
    assert half(targets).mean(axis=0) == pytest.approx(np.zeros(6), abs=1e-9)


def test_whitening_makes_the_residuals_of_repetitions_white():
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.standard_normal((C, C)))[0]
    mixing = turned * np.linspace(1, 2, C) @ turned.T  # well conditioned: the 1 % shrinkage hardly shows
    signal = 5 * rng.standard_normal((200, 1, C, K))
    trials = signal + np.einsum("cd,nrdk->nrck", mixing, rng.standard_normal((200, 6, C, K)))
    white = np.einsum("cd,nrdk->nrck", channel_whitener(trials), trials - signal)
    covariance = np.cov(white.transpose(2, 0, 1, 3).reshape(C, -1))
    assert covariance[~np.eye(C, dtype=bool)] == pytest.approx(0, abs=0.05)
    assert np.median(np.diag(covariance)) == pytest.approx(1, abs=0.05)


def test_a_single_repetition_cannot_be_whitened():
    with pytest.raises(ValueError, match="at least 2 repetitions, got 1"):
        channel_whitener(np.zeros((5, 1, C, K)))


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one target array per subject"):
        Part([np.zeros((3, 2, C, K))], [])
    with pytest.raises(ValueError, match="need trials"):
        Part([np.zeros((3, 2, C, K))], [np.zeros((4, D))])


def test_bins_hold_whole_samples_from_the_onset_on():
    epochs = np.arange(88.0)[None, None] * np.ones((2, C, 1))  # 125 Hz from -0.096 s
    bins = time_bins(epochs, sfreq=125.0, tmin=-12 / 125, start=0.0, stop=0.6, width_s=0.024)
    assert bins.shape == (2, C, 25)
    assert bins[0, 0, 0] == pytest.approx(13.0)  # samples 12, 13, 14
    assert np.diff(bins[0, 0]) == pytest.approx(3.0)


def test_bins_outside_the_epoch_are_refused():
    with pytest.raises(ValueError, match="does not hold"):
        time_bins(np.zeros((1, C, 50)), sfreq=125.0, tmin=0.1, start=0.0, stop=0.6, width_s=0.024)
    with pytest.raises(ValueError, match="shorter than a sample"):
        time_bins(np.zeros((1, C, 50)), sfreq=125.0, tmin=0.0, start=0.0, stop=0.4, width_s=0.001)


def test_plain_ridge_stands_in_the_space_of_centred_targets_and_reads_less(study):
    plain = PooledRidge(*study[:2], half_whitened=False).predict(study[2])
    unit = study[2].targets[0] / np.linalg.norm(study[2].targets[0], axis=1, keepdims=True)
    train = np.concatenate(study[0].targets)
    mean = (train / np.linalg.norm(train, axis=1, keepdims=True)).mean(axis=0)
    assert plain.gallery[0] == pytest.approx(unit - mean)
    assert top1(plain) < top1(pooled_half_whitened_ridge(*study)) - 0.02


def test_a_subject_that_is_left_out_is_read_by_the_others_fit_alone(study):
    train, validation, test = study
    fitted = PooledRidge(train, validation, left_out=2)
    others = PooledRidge(*(Part(p.eeg[:2], p.targets[:2]) for p in (train, validation)))
    assert np.array_equal(fitted.weights, others.weights)
    wrong = [train.targets[0], train.targets[1], train.targets[2][::-1]]  # its own pairs play no part
    assert np.array_equal(PooledRidge(Part(train.eeg, wrong), validation, left_out=2).weights, fitted.weights)
    result = fitted.predict(test)
    similarity = cosine_similarity(result.predictions[2], result.gallery[2])
    assert top_k_in_random_galleries(similarity, ways=50).mean() > 0.1  # chance 0.02


def test_the_only_subject_cannot_be_left_out(study):
    alone = [Part(p.eeg[:1], p.targets[:1]) for p in study[:2]]
    with pytest.raises(ValueError, match="nobody to learn from"):
        PooledRidge(*alone, left_out=0)
