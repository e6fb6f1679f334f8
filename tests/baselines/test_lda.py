import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ttd.baselines.lda import ShrinkageLDA

SFREQ, TMIN = 128.0, -0.1


def epochs_with_p300(n: int, height: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = TMIN + np.arange(116) / SFREQ
    labels = (rng.uniform(size=n) < 0.2).astype(int)
    noise = np.cumsum(rng.standard_normal((n, 4, len(t))), axis=-1)
    return noise + height * labels[:, None, None] * np.exp(-0.5 * ((t - 0.35) / 0.08) ** 2), labels


def test_a_p300_is_found_in_unseen_epochs():
    epochs, labels = epochs_with_p300(600, 4.0, seed=0)
    unseen, truth = epochs_with_p300(600, 4.0, seed=1)
    assert roc_auc_score(truth, ShrinkageLDA(sfreq=SFREQ, tmin=TMIN).fit(epochs, labels).score(unseen)) > 0.8


def test_without_a_response_the_score_is_at_chance():
    epochs, labels = epochs_with_p300(600, 0.0, seed=0)
    unseen, truth = epochs_with_p300(600, 0.0, seed=1)
    auc = roc_auc_score(truth, ShrinkageLDA(sfreq=SFREQ, tmin=TMIN).fit(epochs, labels).score(unseen))
    assert auc == pytest.approx(0.5, abs=0.08)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="both present"):
        ShrinkageLDA(sfreq=SFREQ, tmin=TMIN).fit(np.zeros((4, 4, 116)), np.zeros(4, int))
