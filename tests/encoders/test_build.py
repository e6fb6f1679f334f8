"""Which encoder a section of YAML names, and what a mistake in it is answered with."""

import pytest
import torch

from ttd.config import Config, UserError, describe_fields, load_config, to_yaml
from ttd.encoders import EncoderConfig, InceptSADConfig, build_encoder
from ttd.encoders.brain3d import Brain3DConfig
from ttd.encoders.mae import MAEConfig
from ttd.encoders.nice import NiceConfig


class Experiment(Config):
    encoder: EncoderConfig = InceptSADConfig()


def read(tmp_path, text: str, *overrides: str) -> Experiment:
    (tmp_path / "x.yaml").write_text(text)
    return load_config(Experiment, [tmp_path / "x.yaml"], overrides)


def test_a_section_without_a_name_is_inceptsad(tmp_path):
    assert read(tmp_path, "encoder: {embed_dim: 64}").encoder == InceptSADConfig(embed_dim=64)
    assert Experiment().encoder == InceptSADConfig()


def test_the_name_chooses_and_the_resolved_experiment_reads_back(tmp_path):
    experiment = read(tmp_path, "encoder: {embed_dim: 64, depth: 2}", "encoder={name: nice, kernel_ms: 50}")
    assert experiment.encoder == NiceConfig(kernel_ms=50)
    assert read(tmp_path, to_yaml(experiment)) == experiment


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("encoder: {name: nicer}", "encoder: no encoder 'nicer'; there are inceptsad, nice, mae, brain3d and braindecode:"),
        ("encoder: {name: nice, kernl_ms: 3}", "encoder.kernl_ms: unknown key (value 3); did you mean 'kernel_ms'?"),
        ("encoder: {embed_dm: 3}", "encoder.embed_dm: unknown key (value 3); did you mean 'embed_dim'?"),
        ("encoder: {name: nice, stride_ms: -1}", "encoder.stride_ms: Input should be greater than 0"),
        ("encoder: {name: 'braindecode:os.system'}", "encoder.name: String should match pattern"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_for_the_encoder_that_is_named_alone(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_help_lists_every_encoder_with_its_fields():
    text = "\n".join(describe_fields(Experiment))
    for words in (
        "- inceptsad",
        "- nice",
        "- mae",
        "- brain3d",
        "- braindecode:",
        "patch_samples: int",
        "gate_width: int",
        "kernel_ms: float",
        "token_ms: float",
        "options: dict",
    ):
        assert words in text


def test_each_name_builds_its_encoder():
    facts = {"n_times": 100, "sfreq": 125, "ch_names": ["O1", "O2"]}
    small = {"embed_dim": 16, "depth": 0, "n_heads": 1}
    expected = (
        (InceptSADConfig(**small), 12),
        (NiceConfig(), 32),
        (MAEConfig(**small), 25),
        (Brain3DConfig(kernels_samples=(13, 7, 3)), 1),
    )
    for config, n_tokens in expected:
        encoder = build_encoder(config, **facts).eval()
        assert encoder.n_tokens == n_tokens
        assert encoder(torch.zeros(2, 2, 100)).shape == (2, n_tokens, encoder.embed_dim)
