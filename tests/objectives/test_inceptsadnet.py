"""InceptSADNet: the published numbers at the published size, computed ones elsewhere, and that it learns."""

import numpy as np
import pytest
import torch

from ttd.config import Config, UserError, load_config
from ttd.encoders import build_encoder
from ttd.experiments.probe import ClassifierConfig
from ttd.objectives.classification import Classifier
from ttd.objectives.inceptsadnet import InceptSADNetConfig
from ttd.objectives.probing import NetworkClassifier


def network(n_chans, n_times, n_classes, **changes):
    settings = InceptSADNetConfig(**changes).settings()
    names = [f"E{i}" for i in range(n_chans)]
    with torch.device("meta"):
        encoder = build_encoder(settings.encoder, n_times=n_times, sfreq=250, ch_names=names)
        return Classifier(encoder, settings.head, n_classes=n_classes)


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_thirty_channels_of_1001_samples_give_62_tokens_and_the_parameters_of_the_original():
    module = network(30, 1001, 3)
    with torch.device("meta"):
        assert module.encoder(torch.empty(2, 30, 1001)).shape == (2, 62, 40)
        assert module.logits(torch.empty(2, 30, 1001)).shape == (2, 3)
    filters = 8 * (15 + 31 + 63) + 3 * 16  # three widths, eight each, and their norms
    spatial, gate, project = 48 * 30 + 96, 2 * 48 * 3, 48 * 40 + 80
    block = 2 * 80 + 4 * (40 * 40 + 40) + (40 * 160 + 160) + (160 * 40 + 40)
    head = 2 * 2480 + (2480 * 512 + 512) + (512 * 64 + 64) + (64 * 3 + 3)
    assert n_parameters(module) == filters + spatial + gate + project + 3 * block + head == 1_372_163
    dropouts = [layer.p for layer in module.head.modules() if isinstance(layer, torch.nn.Dropout)]
    assert dropouts == pytest.approx([0.5, 0.3])


def test_other_data_get_sizes_of_their_own():
    module = network(63, 276, 5)
    assert module.encoder.n_tokens == 17
    with torch.device("meta"):
        assert module.logits(torch.empty(2, 63, 276)).shape == (2, 5)
    with pytest.raises(ValueError, match="n_times=15 is shorter than one token of 16 samples"):
        network(30, 15, 3)


def responses(seed):
    """Class k has a wave of 4, 8 or 16 Hz on one of four electrodes; noise of the same size."""
    rng, t = np.random.default_rng(seed), np.arange(96) / 128
    label = np.arange(96) % 3
    eeg = 0.7 * rng.normal(size=(96, 4, 96))
    eeg[np.arange(96), label] += np.sin(2 * np.pi * np.array([4, 8, 16])[label, None] * t + rng.uniform(0, 6, (96, 1)))
    return eeg.astype(np.float32), np.array(["slow", "middle", "fast"])[label]


def test_it_learns_what_can_be_told_apart_in_as_many_updates_as_the_passes_take(monkeypatch):
    settings = InceptSADNetConfig(passes=15, batch_size=32, dropout=0.2).settings()
    updates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: updates.append(1) or step(self, *args))
    facts = {"sfreq": 128.0, "ch_names": ["Fz", "Cz", "Pz", "Oz"], "scale": None}
    unseen, truth = responses(1)
    assert (NetworkClassifier(settings, **facts).fit(*responses(0)).predict(unseen) == truth).mean() > 0.9
    assert len(updates) == 15 * 3


class Experiment(Config):
    classifier: ClassifierConfig


def test_it_is_chosen_by_its_name(tmp_path):
    (tmp_path / "x.yaml").write_text("classifier: {name: inceptsadnet, passes: 3}")
    assert load_config(Experiment, [tmp_path / "x.yaml"], []).classifier == InceptSADNetConfig(passes=3)
    with pytest.raises(UserError, match="classifier.inceptsadnet.pases|classifier.pases"):
        load_config(Experiment, [tmp_path / "x.yaml"], ["classifier.pases=3"])
