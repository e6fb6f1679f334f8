import pytest
import torch

from ttd.encoders.masking import MaskingConfig, electrode_mask, temporal_mask


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the stretches of True."""
    edges = torch.diff(torch.cat([torch.zeros(1), row.float(), torch.zeros(1)]))
    return (torch.where(edges == -1)[0] - torch.where(edges == 1)[0]).tolist()


def test_exactly_half_of_the_time_is_hidden_in_separate_spans():
    mask = temporal_mask(MaskingConfig(), 512, torch.arange(200), seed=0)
    for row in mask:
        assert runs(row) == [32] * 8


def test_one_span_is_shorter_where_the_ratio_is_no_multiple():
    mask = temporal_mask(MaskingConfig(ratio=0.4, span=16), 100, torch.arange(50), seed=0)
    assert all(sorted(runs(row)) == [8, 16, 16] for row in mask)
    assert len({tuple(runs(row)) for row in mask}) == 3  # any of the three


def test_away_from_the_edges_every_moment_is_hidden_about_equally_often():
    share = temporal_mask(MaskingConfig(span=8), 64, torch.arange(4000), seed=1).float().mean(0)
    assert share[16:-16].min() > 0.4
    assert share[16:-16].max() < 0.6


def test_a_mask_belongs_to_seed_and_position_alone():
    config = MaskingConfig()
    mask = temporal_mask(config, 512, torch.tensor([5, 9, 2]), seed=0)
    assert torch.equal(mask[1:2], temporal_mask(config, 512, torch.tensor([9]), seed=0))
    assert not torch.equal(mask[1:2], temporal_mask(config, 512, torch.tensor([9]), seed=1))
    assert not torch.equal(mask[0], mask[1])


def test_the_original_form_hides_forty_percent_where_half_is_asked_for():
    mask = temporal_mask(MaskingConfig(overlapping=True), 512, torch.arange(2000), seed=0)
    assert mask.float().mean().item() == pytest.approx(0.402, abs=0.01)
    assert mask.float().mean(1).std().item() == pytest.approx(0.045, abs=0.01)


@pytest.mark.parametrize(("ratio", "span", "words"), [(0.0, 8, "hides 0 of 64"), (1.0, 8, "hides 64 of 64"),
                                                      (0.9, 1, "cannot stand apart")])  # fmt: skip
def test_impossible_masks_are_refused(ratio, span, words):
    with pytest.raises(ValueError, match=words):
        temporal_mask(MaskingConfig(ratio=ratio, span=span), 64, torch.arange(2), seed=0)


def test_exactly_the_asked_share_of_the_electrodes_that_are_there_is_hidden():
    present = torch.zeros(60, 64, dtype=torch.bool)
    present[:20] = True
    present[20:40, 5:22] = True  # 17 electrodes
    present[40:, :4] = True
    config = MaskingConfig(electrodes=0.25)
    hidden = electrode_mask(config, present, torch.arange(60), seed=0)
    assert hidden.sum(1).tolist() == [16] * 20 + [4] * 20 + [1] * 20
    assert not bool((hidden & ~present).any())
    again = electrode_mask(config, present[30:31], torch.tensor([30]), seed=0)
    assert torch.equal(hidden[30:31], again)  # by seed and position alone
    assert len({tuple(row.tolist()) for row in hidden[:20]}) == 20


def test_one_electrode_is_always_left():
    hidden = electrode_mask(MaskingConfig(electrodes=0.9), torch.ones(5, 2, dtype=torch.bool), torch.arange(5), seed=0)
    assert hidden.sum(1).tolist() == [1] * 5
