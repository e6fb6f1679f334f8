"""Classifier and probes: counts of the original, learning a response, frozen tokens, settings that matter."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ttd.encoders import InceptSADConfig, build_encoder, save_encoder
from ttd.objectives.classification import ClassHeadConfig, Classifier
from ttd.objectives.probing import EncoderTokens, LinearProbeConfig, NetworkClassifier, NetworkSettings, rate, varied

CH_NAMES, SFREQ = ["Fz", "Cz", "Pz", "Oz"], 125.0
SMALL = {"embed_dim": 16, "depth": 0, "stem_dropout": 0.0}
FACTS = {"sfreq": SFREQ, "ch_names": CH_NAMES, "scale": None}


def responses(n=90, seed=0, labels=("a", "b", "c")):
    """Class k has its peak at 120, 200 or 280 ms on one electrode; noise of the same size."""
    rng, t = np.random.default_rng(seed), np.arange(64) / SFREQ
    label = np.array(labels)[np.arange(n) % 3]
    peak = np.array([0.12, 0.20, 0.28])[np.arange(n) % 3, None]
    eeg = rng.normal(size=(n, 4, 64))
    eeg[:, 2] += 3 * np.exp(-0.5 * ((t - peak) / 0.02) ** 2)
    return eeg.astype(np.float32) * 10, label


def network(seed=0, **changes):
    told = {"encoder": SMALL, "steps": 60, "batch_size": 32, **changes}
    return NetworkClassifier(NetworkSettings.model_validate(told), **FACTS, seed=seed)


def test_the_original_form_has_62_tokens_and_its_head_the_parameters_of_inceptsadnet():
    form = {"embed_dim": 40, "depth": 3, "n_heads": 5, "stem": "original", "kernels_samples": (15, 31, 63)}
    config = InceptSADConfig(**form, pool_samples=16, positions="none", attention_scale="embed_dim", whiten=False)
    encoder = build_encoder(config, n_times=1001, sfreq=250, ch_names=[f"E{i}" for i in range(30)])
    head = ClassHeadConfig(form="original", dropout=0.5)
    module = Classifier(encoder, head, n_classes=3)
    assert encoder.n_tokens == 62
    width = 62 * 40
    linear = (width * 512 + 512) + (512 * 64 + 64) + (64 * 3 + 3)
    assert sum(p.numel() for p in module.head.parameters()) == 2 * width + linear


def test_a_network_learns_when_the_peaks_come_and_reads_unseen_epochs():
    unseen, truth = responses(seed=1)
    assert (network().fit(*responses()).predict(unseen) == truth).mean() > 0.8


def test_the_same_seed_gives_the_same_network_whatever_the_global_generator():
    torch.manual_seed(1)
    first = network(steps=3).fit(*responses()).decision_function(responses()[0])
    torch.manual_seed(2)
    assert np.array_equal(first, network(steps=3).fit(*responses()).decision_function(responses()[0]))
    assert not np.allclose(first, network(steps=3, seed=1).fit(*responses()).decision_function(responses()[0]))


def test_two_members_average_their_logits():
    eeg, label = responses()
    both = network(steps=2, members=2).fit(eeg, label)
    single = network(steps=2).fit(eeg, label)
    own = [type(single).decision_function(_with(single, [member]), eeg) for member in both.members_]
    assert np.allclose(both.decision_function(eeg), np.mean(own, axis=0), atol=1e-5)


def _with(classifier, members):
    classifier.members_ = members
    return classifier


def test_a_rare_class_is_drawn_as_often_as_the_others(monkeypatch):
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, batch: seen.append(batch["label"]) or forward(self, batch))
    eeg, label = responses(n=300)
    rare = np.flatnonzero(label == "c")[10:]
    network(steps=40, batch_size=20).fit(np.delete(eeg, rare, 0), np.delete(label, rare))
    share = torch.bincount(torch.cat(seen)) / len(torch.cat(seen))
    assert share[2] > 0.2  # 10 of 210 epochs; without replacement no batch of 20 can hold more than 10 of them


def test_mixing_stays_within_a_class():
    label = torch.arange(40) % 2
    eeg = label[:, None, None].float().expand(40, 3, 20) * 10
    settings = NetworkSettings(mix=True, noise=0.0, time_jitter=0)
    mixed = varied(eeg, label, torch.arange(40), settings, torch.Generator().manual_seed(0))
    assert torch.allclose(mixed, eeg)


@pytest.mark.parametrize("change", [{"mix": True}, {"time_jitter": 3}, {"noise": 0.1}])
def test_each_variation_changes_the_batch(change):
    eeg, label = torch.randn(10, 3, 20), torch.zeros(10, dtype=torch.long)
    still = {"mix": False, "time_jitter": 0, "noise": 0.0}
    batch = [
        varied(eeg, label, torch.arange(10), NetworkSettings.model_validate(s), torch.Generator().manual_seed(0))
        for s in (still, still | change)
    ]
    assert torch.equal(batch[0], eeg)
    assert not torch.equal(batch[1], eeg)


def test_the_rate_rises_to_its_highest_and_falls_to_none():
    rates = [rate(step, 100) for step in range(100)]
    assert max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.001


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    config = InceptSADConfig(**SMALL, whiten=False)
    encoder = build_encoder(config, n_times=64, sfreq=SFREQ, ch_names=["T8", *reversed(CH_NAMES)])
    save_encoder(tmp_path / "encoder", encoder)
    return tmp_path / "encoder", encoder


def test_frozen_tokens_are_those_of_the_saved_encoder_electrode_by_name(saved):
    folder, encoder = saved
    eeg, _ = responses(n=6)
    tokens = EncoderTokens(LinearProbeConfig(encoder=folder), **FACTS | {"scale": (np.zeros(4), np.ones(4))})
    there = np.concatenate([np.zeros((6, 1, 64), np.float32), eeg[:, ::-1]], axis=1)
    with torch.no_grad():
        expected = encoder.eval()(torch.from_numpy(there)).flatten(1).numpy()
    assert np.allclose(tokens.fit_transform(eeg), expected, atol=1e-4)


def test_a_linear_probe_reads_frozen_tokens_and_a_random_start_has_others(saved):
    folder, _ = saved
    probe = make_pipeline(EncoderTokens(LinearProbeConfig(encoder=folder), **FACTS), LogisticRegression(max_iter=500))
    unseen, truth = responses(seed=1)
    assert (probe.fit(*responses()).predict(unseen) == truth).mean() > 0.5
    start = EncoderTokens(LinearProbeConfig(encoder=folder, random_start=True, tokens="mean"), **FACTS)
    pooled = EncoderTokens(LinearProbeConfig(encoder=folder, tokens="mean"), **FACTS)
    assert start.fit_transform(unseen).shape == pooled.fit_transform(unseen).shape == (90, 16)
    assert not np.allclose(start.fit_transform(unseen), pooled.fit_transform(unseen))


def test_a_random_start_whitens_as_the_trained_encoder_does(tmp_path):
    config = InceptSADConfig(**SMALL, whiten=True)
    encoder = build_encoder(config, n_times=64, sfreq=SFREQ, ch_names=CH_NAMES)
    encoder.whitening.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    save_encoder(tmp_path, encoder)
    start = EncoderTokens(LinearProbeConfig(encoder=tmp_path, random_start=True), **FACTS).fit(responses()[0])
    assert torch.equal(start.encoder_.whitening, encoder.whitening)


def test_fine_tuning_goes_on_from_the_saved_weights(saved):
    folder, encoder = saved
    trained = network(start=folder, steps=1, lr=1e-9).fit(*responses()).members_[0].encoder
    assert torch.allclose(trained.stem.project.weight, encoder.stem.project.weight, atol=1e-6)
