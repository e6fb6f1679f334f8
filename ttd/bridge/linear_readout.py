"""A linear map from EEG to a picture's embedding, fitted in closed form, that stands beside the network.

On a thousand pictures a ridge reads about as much as a small network and makes other mistakes, so the mean of both reads
more than either (benchmarks/demo_cpu_2026-11-20.md). The ridge stays as it was fitted and the network is trained without
it: one trained on top of it would learn only what the ridge misses on the pictures it was fitted to.

Shapes: n samples, B batch, C channels, T time points, F features (C times the number of bins), K width of the embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttd.baselines.ridge import Ridge


class LinearReadout(nn.Module):
    """EEG [B, C, T] → embedding [B, K] from the means of successive bins; nothing in it is trained by gradients.

    Args:
        n_chans, n_times: C and T.
        bin_samples: time points per bin; what is left at the end is not read.
        clip_dim: K.

    Raises:
        ValueError: a bin is longer than the epoch.
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, *, n_chans: int, n_times: int, bin_samples: int, clip_dim: int):
        super().__init__()
        if not 1 <= bin_samples <= n_times:
            raise ValueError(f"a bin of {bin_samples} time points does not fit into an epoch of {n_times}")
        self.sizes = {"n_chans": n_chans, "n_times": n_times, "bin_samples": bin_samples}
        n_features = n_chans * (n_times // bin_samples)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("weight", torch.zeros(n_features, clip_dim))

    def features(self, eeg: Tensor) -> Tensor:
        """Bin means [B, F] of EEG [B, C, T]."""
        return F.avg_pool1d(eeg, self.sizes["bin_samples"]).flatten(1)

    def forward(self, eeg: Tensor) -> Tensor:
        """Map EEG [B, C, T], scaled as in training, to an embedding [B, K], not normalised."""
        return (self.features(eeg) - self.mean) @ self.weight

    def fit(self, eeg: Tensor, target: Tensor, *, held_out: tuple[Tensor, Tensor]) -> float:
        """Ridge regression of targets [n, K] on EEG [n, C, T].

        ``held_out`` is such a pair of the validation part; the penalty with the highest mean cosine there is taken.

        Returns:
            The penalty, in units of the mean eigenvalue of the features' Gram matrix.
        """
        x = self.features(eeg)
        self.mean = x.mean(0)
        ridge = Ridge((x - self.mean).numpy(), target.numpy())
        other, wanted = held_out
        penalty, _ = ridge.select((self.features(other) - self.mean).numpy(), wanted.numpy())
        self.weight = torch.from_numpy(ridge.weights[penalty]).to(self.mean)
        return penalty
