import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from test_describer import build_qwen3_vl

from ttd import lift
from ttd.config import FailedItemsError
from ttd.diffusion.base import BaseConfig
from ttd.engine.items import ItemsConfig
from ttd.experiments.lift import LiftConfig
from ttd.geometry.camera import Camera
from ttd.geometry.describer import DescriberConfig
from ttd.geometry.external_lifter import ExternalConfig
from ttd.geometry.lift_job import ScoringConfig, summary_rows, summary_table
from ttd.geometry.lifters import prepare_lifter
from ttd.geometry.meshes import from_glb
from ttd.geometry.oracle_lifter import OracleConfig
from ttd.geometry.refine import RefineConfig
from ttd.geometry.sdf_lifter import SDFLifterConfig
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig, save_network
from ttd.lift import check, main
from ttd.simulation import render
from ttd.simulation.lift_truth import Picture
from ttd.simulation.scenes import draw_scene, mesh

ROOT = Path(__file__).parents[2]
SCORING = ScoringConfig(n_points=200, n_controls=1, n_frames=2, view_size=32)


@pytest.fixture
def config(tmp_path) -> LiftConfig:
    """Two decoded pictures of one subject (and one of a control), a study that knows them, an untrained lifter."""
    camera = Camera(eye=render.EYE, target=render.TARGET, half_fov=render.HALF_FOV)
    small = SDFNetworkConfig(camera=camera, channels=(8, 8, 8, 8), feature_dim=8, code_dim=8, hidden_dim=16, n_blocks=1)
    torch.manual_seed(0)
    save_network(tmp_path / "weights", SDFNetwork(small), {})

    scenes = [draw_scene(seed, 1) for seed in (11, 12)]
    pictures = render.render(scenes, "study").image
    truth, lines = {}, []
    (tmp_path / "generate").mkdir()
    for i, image in enumerate(pictures):
        truth[f"test-{i}"] = {"seed": scenes[i].seed, "n_solids": 1}
        for name, content in (("shown", image), ("made", 255 - image)):
            Image.fromarray(content).save(tmp_path / "generate" / f"{name}-{i}.png")
        line = {"subject": "01", "image_id": f"test-{i}", "image_sha256": "", "path": f"made-{i}.png", "seed": 0}
        line |= {
            "key": f"01-{i}",
            "n_repetitions": 20,
            "candidates": 1,
            "control": None,
            "shown_path": f"shown-{i}.png",
        }
        lines += [line, {**line, "key": f"01-{i}-shuffled", "control": "shuffled"}]
    (tmp_path / "generate" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "study" / "stimuli").mkdir(parents=True)
    (tmp_path / "study" / "stimuli" / "scenes.json").write_text(json.dumps({"scenes": truth}))
    return LiftConfig(
        output_dir=tmp_path / "lift",
        generate=tmp_path / "generate",
        study=tmp_path / "study",
        lifter=SDFLifterConfig(weights=tmp_path / "weights", cells=16),
        scoring=SCORING,
        items=ItemsConfig(batch_size=1),
    )


@pytest.fixture
def describer_folder(tmp_path) -> Path:
    return build_qwen3_vl(tmp_path / "describer")


def digests(folder) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("status.json", "outcome.json"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows_of(config: LiftConfig) -> list[dict]:
    return json.loads((config.output_dir / "lift.json").read_text())["rows"]


def counted(config: LiftConfig) -> int:
    return sum(json.loads((config.output_dir / "lift.json").read_text())["counts"].values())


def test_each_item_is_whole_says_where_it_comes_from_and_a_second_run_does_only_what_is_missing(config):
    assert check(config).problems == []
    main(config)
    lifted, scored = config.output_dir / "lift", config.output_dir / "score"
    names = [f"01-{i}_{source}_plain" for i in range(2) for source in ("decoded", "oracle")]
    assert sorted(p.name for p in lifted.iterdir()) == sorted(p.name for p in scored.iterdir()) == names
    for folder in lifted.iterdir():
        assert {p.name for p in folder.iterdir()} == {
            "mesh.glb", "mesh.ply", "poster.png", "turntable.gif", "status.json"
        }  # fmt: skip
        from_glb((folder / "mesh.glb").read_bytes())
        record = json.loads((folder / "status.json").read_text())["record"]
        assert (record["status"], record["route"]) == ("ok", "plain")
        assert record["provenance"]["lifter"]["domain"] == "procedural-primitives"
    summary = json.loads((config.output_dir / "lift.json").read_text())
    assert {row["input"] for row in summary["rows"]} == {"oracle", "decoded", "mean shape"}
    assert {row["n"] for row in summary["rows"]} == {2}
    assert {"raw_fscore@0.05", "raw_iou", "aligned_cd_l1_mean", "mind3d_emd_l2_mean", "silhouette_iou"} <= {
        row["metric"] for row in summary["rows"]
    }

    before, kept = digests(config.output_dir), (lifted / names[0] / "mesh.glb").stat().st_mtime_ns
    shutil.rmtree(lifted / names[3])
    shutil.rmtree(scored / names[2])
    main(config)
    assert digests(config.output_dir) == before  # made again, byte for byte
    assert (lifted / names[0] / "mesh.glb").stat().st_mtime_ns == kept  # not made again


def test_the_oracle_is_the_upper_bound_and_the_controls_are_not(config, tmp_path):
    bound = config.model_copy(update={"lifter": OracleConfig(), "output_dir": tmp_path / "bound"})
    main(bound)
    rows = {(row["metric"], row["input"]): row for row in rows_of(bound)}
    for source in ("oracle", "decoded"):
        assert rows["raw_iou", source]["value"] == pytest.approx(1, abs=0.02)
        assert rows["raw_iou", source]["control"] < 0.5
    assert rows["raw_iou", "mean shape"]["value"] < 0.7


def test_each_route_is_a_row_of_its_own_and_the_description_does_something(config, tmp_path, describer_folder):
    more = {
        "output_dir": tmp_path / "routes", "describe": DescriberConfig(model=str(describer_folder)),
        "refine": RefineConfig(base=BaseConfig(path=str(ROOT / "weights/tiny")), steps=2), 
        "routes": ("plain", "refined", "composed"), "lifter": OracleConfig(),
    }  # fmt: skip
    whole = LiftConfig(**{**{name: getattr(config, name) for name in LiftConfig.model_fields}, **more})
    main(whole)
    described = list((whole.output_dir / "describe").glob("*/description.json"))
    assert len(described) == 4
    for path in described:
        content = json.loads(path.read_text())
        assert content["provenance"]["engine"].startswith("llguidance")
        picture = whole.output_dir / "refine" / path.parent.name / "picture.png"
        assert picture.is_file() == (content["description"] is not None)
    assert {row["route"] for row in rows_of(whole) if row["input"] == "decoded"} <= {"plain", "refined", "composed"}
    before = counted(whole)
    next((whole.output_dir / "refine").glob("*/picture.png")).unlink()  # as if drawing it again had failed
    main(whole)
    assert counted(whole) == before - 1, "the others are lifted and scored"
    assert {row["metric"] for row in rows_of(whole)} >= {"objects_found", "description_valid", "description_count"}


def test_pictures_of_ones_own_need_no_generation_and_have_no_truth(config, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, path in enumerate(sorted((tmp_path / "generate").glob("shown-*.png"))):
        shutil.copy(path, folder / f"photo-{i}.png")
    own = LiftConfig(
        output_dir=tmp_path / "own", pictures=folder, lifter=config.lifter, scoring=SCORING, items=config.items
    )
    assert check(own).problems == []
    main(own)
    assert sorted(p.name for p in (own.output_dir / "lift").iterdir()) == ["photo-0_plain", "photo-1_plain"]
    assert {row["metric"] for row in rows_of(own)} == {"empty", "watertight", "components"}
    (folder / "photo-0.jpg").write_bytes(b"")
    assert "several files called photo-0" in "".join(check(own).problems)


def test_without_a_known_truth_a_decoded_solid_is_held_against_that_of_the_picture_shown(config, tmp_path):
    shutil.copy(tmp_path / "generate" / "shown-0.png", tmp_path / "generate" / "made-0.png")
    shutil.copy(tmp_path / "generate" / "shown-1.png", tmp_path / "generate" / "made-1.png")
    scoring = SCORING.model_copy(update={"clip": str(ROOT / "weights/tiny/clip")})
    update = {"study": None, "scoring": scoring, "output_dir": tmp_path / "blind"}
    main(config.model_copy(update=update))
    rows = {(row["metric"], row["input"]): row for row in rows_of(config.model_copy(update=update))}
    assert rows["consistency_fscore@0.1", "decoded"]["value"] == pytest.approx(1, abs=0.1), "the same picture"
    assert ("consistency_fscore@0.1", "oracle") not in rows
    for source in ("oracle", "decoded"):
        views = rows["clip_views_mean", source]
        assert -1 <= views["value"] <= rows["clip_views_best", source]["value"] <= 1
        assert "control" in views
        named = rows["n_way_views_top1", source]
        assert named["chance"] == 0.5, "two pictures were shown"
        assert named["control"] == pytest.approx(1 - named["value"]), "the views are named as the one or as the other"
    assert not any(metric.startswith("raw_") for metric, _ in rows)
    missing = scoring.model_copy(update={"clip": str(tmp_path / "none")})
    (problem,) = check(config.model_copy(update={"scoring": missing})).problems
    assert problem.startswith("scoring.clip:")


def test_pictures_that_the_lifter_does_not_know_are_refused_and_it_is_said(config, tmp_path, capsys):
    folder = tmp_path / "noise"
    folder.mkdir()
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"noise-{i}.png")
    shipped = SDFLifterConfig(weights=ROOT / "weights/tiny/lifter")
    main(LiftConfig(output_dir=tmp_path / "out", pictures=folder, lifter=shipped, scoring=SCORING))
    assert "2 of 2 refused; first noise-0_plain:" in capsys.readouterr().out
    assert not list((tmp_path / "out" / "lift").glob("*/mesh.glb"))


def test_an_item_that_fails_says_why_and_the_rest_is_whole(config, tmp_path):
    broken = tmp_path / "generate" / "made-0.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(FailedItemsError, match=r"1 items failed[\s\S]*made-0.png: cannot be read"):
        main(config)
    assert len(list((config.output_dir / "score").glob("*/metrics.json"))) == 3
    assert json.loads((config.output_dir / "lift.json").read_text())["failed"].keys() == {"lift/01-0_decoded_plain"}


def test_the_gallery_has_each_picture_that_was_shown_once_and_none_that_cannot_be_read(tmp_path):
    pictures = []
    for i, content in enumerate((0, 1, 0, None)):
        path = tmp_path / f"{i}.png"
        if content is None:
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(np.full((4, 4, 3), content, np.uint8)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        pictures += [Picture(f"{i}_{kind}", str(i), path, digest, {"input": kind}) for kind in ("oracle", "decoded")]
    gallery, places = lift.gallery_of(pictures)
    assert [path.name for path in gallery.values()] == ["0.png", "1.png"]
    assert places == {"0": 0, "1": 1, "2": 0}


def test_a_worker_ends_with_the_job_also_where_an_item_of_it_failed(config, tmp_path, monkeypatch):
    mesh(draw_scene(11, 1)).export(tmp_path / "solid.glb")
    stub = [sys.executable, str(Path(__file__).with_name("stub_worker.py")), "--glb", str(tmp_path / "solid.glb")]
    external = config.model_copy(update={"lifter": ExternalConfig(command=[*stub, "--wants", "picture"])})
    (tmp_path / "generate" / "made-0.png").write_bytes(b"no picture")
    started = []
    monkeypatch.setattr(lift, "prepare_lifter", lambda *given: started.append(prepare_lifter(*given)) or started[0])
    with pytest.raises(FailedItemsError, match="1 items failed"):
        main(external)
    assert not started[0].worker.running


def test_what_is_missing_is_said_before_the_work_starts(config, tmp_path):
    wrong = config.model_copy(
        update={"generate": tmp_path, "study": tmp_path, "lifter": SDFLifterConfig(weights=tmp_path / "none")}
    )
    problems = "\n".join(check(wrong).problems)
    assert "run ttd/generate.py first" in problems
    assert "no stimuli/scenes.json" in problems
    assert "train it with ttd/train_lift.py" in problems
    (problem,) = check(config.model_copy(update={"subject": "07"})).problems
    assert "subject: '07' has 0 pictures" in problem
    assert "known there: 01" in problem


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"generate": None}, "one of the two"),
        ({"routes": ("refined",)}, "refined needs describe and refine"),
        ({"routes": ("composed",)}, "composed needs describe"),
    ],
)
def test_what_does_not_belong_together_is_refused(config, given, says):
    with pytest.raises(ValidationError, match=says):
        LiftConfig(**{**{name: getattr(config, name) for name in LiftConfig.model_fields}, **given})


def content(value: float | None, control: float) -> dict:
    return {"metrics": {"raw_cd_l1_mean": value, "empty": float(value is None)}, "control": {"raw_cd_l1_mean": control}}


def test_rows_are_means_over_items_with_a_surface_and_say_how_many_have_none():
    groups = {("oracle", "plain"): [content(0.1, 0.5), content(0.3, 0.7), content(None, 0.6)]}
    rows = {row["metric"]: row for row in summary_rows(groups, SCORING, seed=0, labels={"subjects": ["01"]})}
    row = rows["raw_cd_l1_mean"]
    assert row["value"] == pytest.approx(0.2)
    assert row["control"] == pytest.approx(0.6)
    assert row["low"] <= 0.2 <= row["high"]
    assert (row["n"], row["labels"]["n_empty"]) == (3, 1)
    assert "oracle" in summary_table(list(rows.values()))
