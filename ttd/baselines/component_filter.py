"""A Wiener filter for whole batches: principal components of the channels, filtered by a few shared spectra.

The per-channel Wiener predictor (``interpolation.predict_wiener``) solves C systems of equations for each window. Here the
channels are turned to their principal components, whose spectra differ more than those of channels do, the components are
sorted into a few groups of like spectrum (k-means on their autocorrelations), and one system per group serves them all. So it
is an eighth of the work, fast enough for a training step, and errs a little less (docs/reproduce.md), because an alpha source
that all channels share is one component.

Shapes: B windows, C channels and as many components, T samples, G groups, V visible and H hidden samples of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttd.baselines.interpolation import autocovariance

N_GROUPS = 8
"""More gain nothing: 0.563 with 8, 0.561 with a spectrum per component, 0.580 with 4 (eegmmidb S001, run 07 held out)."""
RIDGE = 1e-3
"""White noise added to each spectrum, as a share of its variance, so that float32 can solve the equations."""
LAGS = 64
"""Lags of the autocorrelation that decide which spectra are alike."""


@dataclass(frozen=True)
class ComponentFilter:
    """What ``fit_component_filter`` estimates: orthogonal components, the group of each, and the groups' autocorrelations."""

    components: Tensor
    """[C, C], a component per row."""
    group: Tensor
    """[C], the group of each component."""
    autocorrelation: Tensor
    """[G, T]."""

    def predict(self, eeg: Tensor, mask: Tensor) -> Tensor:
        """Predict the samples hidden by ``mask`` [B, T] from the visible ones; visible samples stay: [B, C, T] float32."""
        with torch.autocast(eeg.device.type, enabled=False):
            out = eeg.float().clone()
            for n in mask.sum(1).unique().tolist():  # exact masks hide the same number everywhere
                rows = (mask.sum(1) == n).nonzero()[:, 0]
                out[rows] = self._predict(out[rows], mask[rows])
        return out

    def _predict(self, eeg: Tensor, mask: Tensor) -> Tensor:
        components, device = self.components.to(eeg.device), eeg.device
        order = mask.int().argsort(dim=1, stable=True)
        n_visible = int((~mask[0]).sum())
        visible, hidden = order[:, :n_visible], order[:, n_visible:]  # [B, V], [B, H]
        seen = (components @ eeg).gather(2, visible[:, None].expand(-1, len(components), -1))  # [B, C, V]
        predicted = torch.zeros(*seen.shape[:2], hidden.shape[1], device=device)  # [B, C, H]
        among = (visible[:, :, None] - visible[:, None]).abs()  # [B, V, V]
        across = (hidden[:, :, None] - visible[:, None]).abs()  # [B, H, V]
        ridge = RIDGE * torch.eye(n_visible, device=device)
        for g, autocorrelation in enumerate(self.autocorrelation.to(device)):
            mine = (self.group == g).nonzero()[:, 0].to(device)
            if not len(mine):
                continue
            factor = torch.linalg.cholesky(autocorrelation[among] + ridge)
            solved = torch.cholesky_solve(seen[:, mine].transpose(1, 2), factor)  # [B, V, c]
            predicted[:, mine] = (autocorrelation[across] @ solved).transpose(1, 2)
        return eeg.scatter(2, hidden[:, None].expand(-1, eeg.shape[1], -1), components.T @ predicted)


def fit_component_filter(windows: Tensor, n_groups: int = N_GROUPS) -> ComponentFilter:
    """Estimate the filter on training windows [B, C, T] of mean 0; electrodes that a window lacks are zero there."""
    flat = windows.transpose(0, 1).flatten(1).double()  # [C, B T]
    components = torch.linalg.eigh(flat @ flat.T / flat.shape[1]).eigenvectors.T.float()  # smallest variance first
    covariance = autocovariance(components @ windows)
    lags = covariance / covariance[:, :1].clamp(min=1e-12)  # [C, T]
    features = lags[:, :LAGS]
    centres = features[torch.linspace(len(lags) - 1, 0, min(n_groups, len(lags))).long()]
    for _ in range(50):
        group = torch.cdist(features, centres).argmin(1)
        centres = torch.stack([_mean(features[group == g], old) for g, old in enumerate(centres)])
    weighted = torch.stack([_mean(covariance[group == g], covariance[0]) for g in range(len(centres))])
    return ComponentFilter(components, group, (weighted / weighted[:, :1].clamp(min=1e-12)).float())


def _mean(rows: Tensor, otherwise: Tensor) -> Tensor:
    return rows.mean(0) if len(rows) else otherwise
