"""EEG that cannot know the picture."""

import torch

from ttd.data.controls import hide_channels, hide_times, noise_like, pre_stimulus

SFREQ, TMIN = 100.0, -0.1


def epochs() -> torch.Tensor:
    return torch.randn(3, 4, 60, generator=torch.Generator().manual_seed(0)) + 5


def test_before_the_onset_nothing_changes_and_from_it_on_nothing_is_left():
    eeg = epochs()
    blind = pre_stimulus(eeg, tmin=TMIN, sfreq=SFREQ)
    assert torch.equal(blind[..., :10], eeg[..., :10])
    assert not blind[..., 10:].any()
    assert eeg[..., 10:].all(), "the epochs themselves stay"


def test_a_window_is_closed_at_its_start_and_open_at_its_end():
    hidden = hide_times(epochs(), 0.05, 0.10, tmin=TMIN, sfreq=SFREQ)
    assert (hidden == 0).all(dim=(0, 1)).nonzero().flatten().tolist() == list(range(15, 20))
    first, second = (hide_times(epochs(), a, b, tmin=TMIN, sfreq=SFREQ) == 0 for a, b in ((0, 0.05), (0.05, 0.1)))
    assert not (first & second).any()


def test_only_the_named_channels_are_hidden():
    hidden = hide_channels(epochs(), [1, 3])
    assert (hidden == 0).all(dim=(0, 2)).tolist() == [False, True, False, True]


def test_noise_is_as_strong_as_each_channel_and_belongs_to_its_seed_alone():
    eeg = torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 10.0, 0.1])[:, None]
    noise = noise_like(eeg, [7, 8])
    assert torch.allclose(noise.std(2), eeg.std(2), rtol=0.05)
    assert torch.equal(noise_like(eeg[1:], [8]), noise[1:]), "whatever stands beside it in the batch"
    correlation = torch.corrcoef(torch.cat([noise.flatten()[None], eeg.flatten()[None]]))[0, 1]
    assert abs(correlation) < 0.03
