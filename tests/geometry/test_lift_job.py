import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ttd.config import UserError
from ttd.engine.items import ItemsConfig
from ttd.experiments.lift import LiftConfig
from ttd.geometry.camera import Camera
from ttd.geometry.lift_job import Scored, ScoringConfig, summary_rows, summary_table
from ttd.geometry.meshes import from_glb
from ttd.geometry.sdf_lifter import SDFLifterConfig
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig, save_network
from ttd.lift import check, main
from ttd.metrics.geometry import score_surfaces
from ttd.simulation import render
from ttd.simulation.scenes import draw_scene

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


def digests(folder) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "status.json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_each_item_is_whole_says_where_it_comes_from_and_a_second_run_does_only_what_is_missing(config):
    assert check(config).problems == []
    main(config)
    items = config.output_dir / "items"
    assert sorted(p.name for p in items.iterdir()) == ["01-0_decoded", "01-0_oracle", "01-1_decoded", "01-1_oracle"]
    for folder in items.iterdir():
        assert {p.name for p in folder.iterdir()} == {
            "mesh.glb", "poster.png", "turntable.gif", "metrics.json", "status.json"
        }  # fmt: skip
        from_glb((folder / "mesh.glb").read_bytes())
        record = json.loads((folder / "status.json").read_text())["record"]
        assert record["status"] == "ok"
        assert record["provenance"]["domain"] == "procedural-primitives"
    summary = json.loads((config.output_dir / "lift.json").read_text())
    assert summary["provenance"]["domain"] == "procedural-primitives"
    assert {row["input"] for row in summary["rows"]} == {"oracle", "decoded"}
    assert {row["n"] for row in summary["rows"]} == {2}

    before = digests(config.output_dir / "items")
    kept = (items / "01-0_oracle" / "mesh.glb").stat().st_mtime_ns
    for name in ("mesh.glb", "poster.png", "turntable.gif", "metrics.json", "status.json"):
        (items / "01-1_decoded" / name).unlink()
    (items / "01-1_decoded").rmdir()
    main(config)
    assert digests(items) == before  # made again, byte for byte
    assert (items / "01-0_oracle" / "mesh.glb").stat().st_mtime_ns == kept  # not made again
    assert json.loads((config.output_dir / "lift.json").read_text()) == summary


def test_what_is_missing_is_said_before_the_work_starts(config, tmp_path):
    wrong = config.model_copy(
        update={"generate": tmp_path, "study": tmp_path, "lifter": SDFLifterConfig(weights=tmp_path / "none")}
    )
    problems = "\n".join(check(wrong).problems)
    assert "run ttd/generate.py first" in problems
    assert "no stimuli/scenes.json" in problems
    assert "train it with ttd/train_lift.py" in problems
    with pytest.raises(UserError, match=r"subject: '07' has 0 pictures.*known there: 01"):
        main(config.model_copy(update={"subject": "07"}))


def scored(offsets: list[float], shift: float | None) -> list[Scored]:
    """Clouds far apart from each other; each lifted one is its own truth moved by ``shift``, or empty."""
    cloud = np.random.default_rng(0).uniform(-0.1, 0.1, (200, 3))
    out = []
    for i, x in enumerate(offsets):
        true = cloud + np.array([x, 0, 0])
        points = None if shift is None else true + np.array([0, shift, 0])
        out.append(Scored(str(i), points, true, score_surfaces(points, true)))
    return out


def test_the_control_pairs_each_surface_with_the_truth_of_another_item():
    rows = summary_rows({"oracle": scored([0, 5, 10, 15], 0.001)}, SCORING, seed=0, labels={"subjects": ["01"]})
    named = {row["metric"]: row for row in rows}
    assert named["fscore@0.05"]["value"] == 1
    assert named["fscore@0.05"]["control"] == 0
    assert named["cd_l1_mean"]["value"] < 0.0011
    assert named["cd_l1_mean"]["control_low"] > 4
    assert "0.001" in summary_table(rows)


def test_empty_surfaces_count_as_nothing_found_and_have_no_distance():
    items = {"decoded": scored([0, 5], 0.001) + scored([10, 15], None)}
    rows = {row["metric"]: row for row in summary_rows(items, SCORING, seed=0, labels={})}
    assert rows["fscore@0.1"]["value"] == 0.5
    assert rows["fscore@0.1"]["labels"]["n_empty"] == 2
    assert rows["cd_l1_mean"]["value"] < 0.0011  # over the two that exist
    none = summary_rows({"decoded": scored([0, 5], None)}, SCORING, seed=0, labels={})
    assert {row["metric"] for row in none} == {"fscore@0.02", "fscore@0.05", "fscore@0.1"}
