import pytest
import torch
from test_interpolation import ar1, hide

from ttd.baselines.component_filter import fit_component_filter
from ttd.baselines.interpolation import autocovariance, predict_wiener
from ttd.encoders.masking import MaskingConfig, temporal_mask
from ttd.objectives.masked_reconstruction import masked_mse


def test_the_filter_reaches_the_error_known_for_an_autoregression():
    windows, mask = ar1(400), hide(128, (60, 64)).expand(400, -1)
    error = masked_mse(fit_component_filter(ar1(3000)).predict(windows, mask), windows, mask)
    k, m = torch.arange(1, 5), 5  # see test_interpolation
    known = ((1 - 0.81**k) * (1 - 0.81 ** (m - k)) / (1 - 0.81**m)).mean()
    assert error.item() == pytest.approx(known.item(), rel=0.08)


def mixed(n: int, seed: int) -> torch.Tensor:
    """Windows [n, 3, 128]: a slow and a fast source of different power seen by three channels, and a little noise."""
    g = torch.Generator().manual_seed(seed)
    slow, fast = torch.randn(n, 128, generator=g), torch.randn(n, 128, generator=g)
    for t in range(1, 128):
        slow[:, t] = 0.95 * slow[:, t - 1] + (1 - 0.95**2) ** 0.5 * slow[:, t]
        fast[:, t] = -0.9 * fast[:, t - 1] + (1 - 0.9**2) ** 0.5 * fast[:, t]
    mixing = torch.tensor([[1.0, 1.0, 1.0], [0.5, -0.5, 0.0]])
    return torch.einsum("snt,sc->nct", torch.stack([slow, fast]), mixing) + 0.1 * torch.randn(n, 3, 128, generator=g)


def test_sources_shared_by_the_channels_are_told_apart_where_single_channels_cannot():
    train, windows = mixed(2000, 0), mixed(60, 1)
    mask = temporal_mask(MaskingConfig(span=4), 128, torch.arange(60), seed=0)
    ours = masked_mse(fit_component_filter(train).predict(windows, mask), windows, mask)
    single = masked_mse(predict_wiener(windows, mask, autocovariance(train)), windows, mask)
    assert ours < 0.9 * single


def test_windows_with_different_numbers_of_hidden_samples_are_predicted_each_as_alone():
    windows = ar1(6)
    mask = torch.cat([hide(128, (10, 10 + n)) for n in (3, 3, 9, 20, 9, 1)])
    filter_ = fit_component_filter(ar1(300))
    together = filter_.predict(windows, mask)
    apart = torch.cat([filter_.predict(w[None], m[None]) for w, m in zip(windows, mask, strict=True)])
    assert torch.allclose(together, apart, atol=1e-5)
    assert torch.equal(together.masked_fill(mask[:, None], 0), windows.masked_fill(mask[:, None], 0))


def test_hidden_values_are_not_looked_at():
    windows, mask = ar1(2), hide(128, (50, 70)).expand(2, -1)
    filter_ = fit_component_filter(ar1(300))
    assert torch.allclose(
        filter_.predict(windows, mask)[..., 50:70], filter_.predict(windows + 9.0 * mask[:, None], mask)[..., 50:70]
    )


def test_mixed_precision_does_not_reach_the_equations():
    windows, mask = ar1(4), hide(128, (50, 70)).expand(4, -1)
    filter_ = fit_component_filter(ar1(300))
    with torch.autocast("cpu", torch.bfloat16):
        mixed_precision = filter_.predict(windows, mask)
    assert torch.equal(mixed_precision, filter_.predict(windows, mask))
