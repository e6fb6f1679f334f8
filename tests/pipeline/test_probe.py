"""The probe as an entry: a table with controls from averages made here, refusals before anything is written, real data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bids_study import real_data

from ttd.config import Plan, UserError, load_config
from ttd.data.labelled import load
from ttd.experiments.probe import ProbeConfig
from ttd.probe import by_group, check, main, score

__all__ = ["real_data"]


@pytest.fixture
def averages(tmp_path):
    """12 subjects, 3 categories: peaks at 150, 250 and 350 ms on channel 0, none before the event; noise of half that."""
    rng, time_s = np.random.default_rng(0), -0.1 + np.arange(200) / 250
    centre = np.array([0.15, 0.25, 0.35])[:, None, None, None]
    evoked = 0.5 * rng.normal(size=(3, 12, 4, 200))
    evoked[:, :, :1] += np.exp(-0.5 * ((time_s - centre) / 0.03) ** 2)
    file, names = tmp_path / "evoked.npz", {"channels": ["Fz", "Cz", "Pz", "Oz"], "categories": ["a", "b", "c"]}
    np.savez(file, evoked_uV=evoked.astype(np.float32), time_s=time_s, **{n: np.array(v) for n, v in names.items()})
    return file


def configured(tmp_path, averages, **changes) -> ProbeConfig:
    data = {"response": {"name": "evoked", "file": averages}}
    data["before"] = {"name": "evoked", "file": averages, "tmin": -0.1, "tmax": 0.0}
    network = {"name": "network", "settings": [{"encoder": {"embed_dim": 16, "depth": 0}, "steps": 40}]}
    models = {
        "ridge": {"classifier": {"name": "ridge", "penalties": [10, 1000]}, "permuted_fits": 2, "inner_folds": 2},
        "network": {"classifier": network, "data": ["response"], "folds": 2, "permuted_fits": 0},
    }
    told = {"output_dir": tmp_path / "out", "metric": "accuracy", "interval": "groups", "data": data, "models": models}
    told["differences"] = {"gain": {"a": ["network", "response"], "b": ["ridge", "response"]}}
    return ProbeConfig.model_validate(told | changes)


def test_categories_are_read_and_their_controls_stay_at_chance(tmp_path, averages):
    config = configured(tmp_path, averages)
    assert check(config).problems == []
    main(config)
    content = json.loads((tmp_path / "out" / "probe.json").read_text())
    mean = {(r["model"], r["data"]): r for r in content["rows"] if r["group"] == "mean"}
    ridge, before = mean["ridge", "response"], mean["ridge", "before"]
    assert ridge["value"] > 0.8
    assert mean["network", "response"]["value"] > 0.6
    assert before["value"] == pytest.approx(1 / 3, abs=0.25)  # 36 epochs: 3 standard errors
    assert np.mean(ridge["refits"]) == pytest.approx(1 / 3, abs=0.2)
    assert ridge["control"] == pytest.approx(1 / 3, abs=0.02)
    assert len(ridge["chosen"]) == 12
    assert content["differences"][0]["name"] == "gain"
    assert "| ridge | response | mean of 12 | 36 |" in (tmp_path / "out" / "table.md").read_text()


def test_every_missing_source_is_named_before_anything_is_written(tmp_path, averages):
    data = {"a": {"name": "evoked", "file": tmp_path / "absent.npz"}, "b": {"name": "shards", "shards": tmp_path}}
    model = {"classifier": {"name": "linear_probe", "encoder": tmp_path / "encoder"}}
    config = ProbeConfig.model_validate({"output_dir": tmp_path / "out", "data": data, "models": {"probe": model}})
    plan: Plan = check(config)
    assert [p.split(":")[0] for p in plan.problems] == [
        f"data.a.file={tmp_path / 'absent.npz'}",
        f"data.b.shards={tmp_path}",
        "models.probe",
    ]
    assert not (tmp_path / "out").exists()


def test_the_auc_of_three_classes_is_refused(tmp_path, averages):
    config = configured(tmp_path, averages, metric="auc", differences={})
    with pytest.raises(UserError, match="the AUC needs two classes"):
        score(config, config.models["ridge"], load(config.data["before"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"models": {"m": {"classifier": {"name": "lda"}, "data": ["nowhere"]}}, "differences": {}},
            "no data is called nowhere",
        ),
        ({"differences": {"gain": {"a": ["network", "before"], "b": ["ridge", "before"]}}}, "is not scored"),
        (
            {
                "models": {"m": {"classifier": {"name": "aligned", "shards": {"01": "s"}, "runs": {"01": "r"}}}},
                "differences": {},
                "metric": "auc",
            },
            "models.m.data: name the one data set",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, averages, changes, words):
    with pytest.raises(ValueError, match=words):
        configured(tmp_path, averages, **changes)


@pytest.mark.parametrize("positive", ["a", "b"])
def test_the_positive_class_is_the_one_that_scores_higher(tmp_path, averages, positive):
    config = configured(tmp_path, averages, metric="auc", positive=positive, differences={})
    with np.load(averages) as file:
        arrays = dict(file)
    arrays["evoked_uV"], arrays["categories"] = arrays["evoked_uV"][:2], arrays["categories"][:2]
    np.savez(averages, **arrays)
    ridge = config.models["ridge"].model_copy(update={"permuted_fits": 0})
    found = by_group(config, score(config, ridge, load(config.data["response"]))[0])
    assert np.mean([group.value("auc") for group in found.values()]) > 0.9
    assert found["subject-00"].labels.tolist() == [int(label == positive) for label in "ab"]


@pytest.mark.realdata
@pytest.mark.slow
def test_ridge_reads_the_category_of_left_out_people_at_0_77(real_data):
    """0.771 ± 0.040 is known of these averages, with a penalty chosen inside the training subjects."""
    folder = real_data("things-eeg1-evoked")
    (file,) = folder.glob("*.npz")
    overrides = ["models={ridge: {classifier: {name: ridge}, permuted_fits: 0}}", "output_dir=x", "metric=accuracy"]
    config = load_config(ProbeConfig, [], [*overrides, f"data.raw={{name: evoked, file: {file}}}"])
    found = by_group(config, score(config, config.models["ridge"], load(config.data["raw"]))[0])
    assert np.mean([group.value("accuracy") for group in found.values()]) == pytest.approx(0.771, abs=0.02)
