"""The linear readout knows its answer in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge as SklearnRidge

from ttd.baselines.ridge import LAMBDAS
from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.bridge.linear_readout import LinearReadout

SIZES = {"n_chans": 3, "n_times": 20, "bin_samples": 4, "clip_dim": 5}


def fitted() -> tuple[LinearReadout, float, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    eeg, other = torch.randn(200, 3, 20) + 1.0, torch.randn(40, 3, 20) + 1.0
    truth = torch.randn(3 * 5, 5)
    readout = LinearReadout(**SIZES)
    target, wanted = (readout.features(x - 1.0) @ truth + torch.randn(len(x), 5) for x in (eeg, other))
    target = target - target.mean(0)
    return readout, readout.fit(eeg, target, held_out=(other, wanted)), eeg, target


def test_features_are_the_means_of_whole_bins():
    eeg = torch.arange(2 * 3 * 22, dtype=torch.float32).reshape(2, 3, 22)
    got = LinearReadout(**(SIZES | {"n_times": 22})).features(eeg)
    wanted = eeg[:, :, :20].reshape(2, 3, 5, 4).mean(-1).flatten(1)  # two time points are left over
    assert torch.allclose(got, wanted)


def test_the_fit_is_scikit_learns_ridge_with_the_chosen_penalty():
    readout, penalty, eeg, target = fitted()
    assert penalty in LAMBDAS
    x = readout.features(eeg).double().numpy()
    x = x - x.mean(0)
    peer = SklearnRidge(alpha=penalty * np.trace(x.T @ x) / x.shape[1], fit_intercept=False).fit(x, target.numpy())
    assert np.allclose(readout(eeg).numpy(), peer.predict(x), atol=1e-3)


def test_a_head_averages_directions_only_where_the_eeg_is_given_and_nothing_is_trained():
    readout, _, eeg, _ = fitted()
    head = ClipHead(ClipHeadConfig(dropout=0), embed_dim=4, n_tokens=2, clip_dim=5, linear=readout)
    tokens = torch.randn(200, 2, 4)
    alone = head.train()(tokens, eeg)
    both = head.eval()(tokens, eeg)
    assert torch.equal(head(tokens), alone)
    assert torch.allclose(both, (F.normalize(alone, dim=1) + F.normalize(readout(eeg), dim=1)) / 2)
    assert not torch.allclose(both, alone)


def test_a_bin_longer_than_the_epoch_is_refused():
    with pytest.raises(ValueError, match="a bin of 21 time points does not fit into an epoch of 20"):
        LinearReadout(**(SIZES | {"bin_samples": 21}))
