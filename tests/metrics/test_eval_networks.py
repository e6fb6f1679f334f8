"""Networks of the published tables through the evaluation, with small random ones in their places: torchvision is not needed."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_eval_entry import SIZES, entry, mean_rows, write_alignment, write_generation, write_models, write_study
from torch import nn

from ttd.experiments.eval import EvalConfig, PicturesConfig, RetrievalConfig
from ttd.metrics.network_table import NETWORKS


def small(outputs: int) -> nn.Module:
    layers = [("conv", nn.Conv2d(3, 4, 5, stride=4)), ("flat", nn.Flatten()), ("out", nn.LazyLinear(outputs))]
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def config(tmp_path, monkeypatch) -> EvalConfig:
    torch.manual_seed(0)
    for name, outputs in (("alexnet_2", 30), ("swav", 30), ("vit_h_14", 60)):

        def build(outputs: int = outputs, size: int = 32) -> nn.Module:
            model = small(outputs)
            model(torch.zeros(1, 3, size, size))  # the last layer learns its width
            return model

        network = replace(NETWORKS[name], build=build, layer="out", size=32, first_size=None, may_lack=(), ignored=())
        monkeypatch.setitem(NETWORKS, name, network)
        path = (tmp_path / "networks" / network.file).with_name(network.file.split(".")[0] + ".safetensors")
        path.parent.mkdir(exist_ok=True)
        save_file(build().state_dict(), path)
    write_study(tmp_path)
    write_alignment(tmp_path / "align")
    write_generation(tmp_path / "generate", tmp_path)
    write_models(tmp_path / "weights")
    pictures = PicturesConfig(
        runs={"LoRA": tmp_path / "generate"}, clip=tmp_path / "weights/clip", judge=None, pixel_size=64,
        networks=("alexnet_2", "swav", "vit_h_14"), network_weights=tmp_path / "networks",
    )  # fmt: skip
    return EvalConfig(
        output_dir=tmp_path / "eval", shards=tmp_path / "paired", study=tmp_path,
        retrieval=RetrievalConfig(run=tmp_path / "align", ridge=False, repetitions=(20,)), pictures=pictures,
        n_resamples=200, n_draws=3,
    )  # fmt: skip


def test_perfect_pictures_are_perfect_by_every_network_and_their_controls_are_not(config):
    assert not entry.check(config).problems
    entry.main(config)
    rows = {row.metric: row for row in mean_rows(config) if row.model == "LoRA"}
    assert rows["two_way_alexnet_2"].value == pytest.approx(1)
    assert rows["two_way_alexnet_2"].control_generated == pytest.approx(0.5, abs=0.2)
    assert rows["two_way_alexnet_2"].labels["gallery"] == SIZES["test"][0]
    assert rows["distance_swav"].value == pytest.approx(0, abs=1e-6)
    assert rows["distance_swav"].control > 0.01
    assert rows["n_way_top1"].value == 1
    assert rows["n_way_top1"].chance == 1 / 50
    assert rows["n_way_top1"].control < 0.9
    table = (config.output_dir / "table.md").read_text()
    assert "| distance, SwAV ↓ | LoRA |" in table
    entry.main(config)
    assert (config.output_dir / "table.md").read_text() == table


def test_weights_that_are_not_there_are_named_with_the_command_that_fetches_them(config):
    (config.pictures.network_weights / "swav_800ep_pretrain.safetensors").unlink()
    (problem,) = entry.check(config).problems
    assert problem.startswith("pictures.networks: SwAV ResNet-50: weights ")
    assert "curl -L" in problem
