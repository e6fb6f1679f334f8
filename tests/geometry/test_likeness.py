from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from ttd.geometry import likeness as likeness_module
from ttd.geometry.camera import DEFAULT_CAMERA
from ttd.geometry.lift_job import ScoringConfig, summary_rows, summary_table
from ttd.geometry.likeness import Beside, Likeness
from ttd.geometry.views import view

CLIP = str(Path(__file__).parents[2] / "weights" / "tiny" / "clip")


def painted(mesh: trimesh.Trimesh, colour: tuple[int, int, int]) -> trimesh.Trimesh:
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.tile([*colour, 255], (len(mesh.vertices), 1)))
    return mesh


@pytest.fixture(scope="module")
def solids() -> list[trimesh.Trimesh]:
    """Three that look the same from all six sides of a turntable, and nothing like each other."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    tower = trimesh.creation.cylinder(0.2, 1.4, transform=trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    plate = trimesh.creation.cylinder(0.8, 0.2, transform=trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    return [painted(ball, (220, 30, 30)), painted(tower, (30, 60, 220)), painted(plate, (240, 220, 30))]


@pytest.fixture(scope="module")
def gallery(solids) -> list[np.ndarray]:
    return [view(solid, DEFAULT_CAMERA, 128) for solid in solids]


def likeness(gallery: list[np.ndarray], ways: int, clip: str | None = CLIP) -> Likeness:
    return Likeness(clip, device=torch.device("cpu"), camera=DEFAULT_CAMERA, gallery=gallery, ways=ways)


def test_a_solid_is_named_among_the_pictures_of_the_run_and_never_under_anothers_name(solids, gallery):
    scorer = likeness(gallery, 3)
    for i, solid in enumerate(solids):
        others = [Beside(gallery[j], place=j) for j in range(3) if j != i]
        scores, wrong = scorer.scores(solid, None, Beside(gallery[i], place=i), others, seed=0)
        assert scores["n_way_views_top1"] == 1
        assert [w["n_way_views_top1"] for w in wrong] == [0, 0]
        again, _ = scorer.scores(solid, None, Beside(gallery[i], place=i), [], seed=0)
        assert again == scores


def test_an_empty_surface_is_never_named_and_without_clip_or_gallery_there_is_no_such_score(solids, gallery):
    own = Beside(gallery[0], place=0)
    assert likeness(gallery, 3).scores(None, None, own, [], seed=0)[0]["n_way_views_top1"] == 0
    for scorer in (likeness(gallery, 3, clip=None), likeness(gallery[:1], 3)):
        assert "n_way_views_top1" not in scorer.scores(solids[0], None, own, [], seed=0)[0]


def test_pictures_alike_to_clip_are_named_at_chance(solids, gallery, monkeypatch):
    """All pictures of the gallery are one picture with a little noise: nothing tells the own one from the others."""
    monkeypatch.setattr(likeness_module, "VIEW_SIZE", 32)
    rng = np.random.default_rng(0)
    noisy = [np.clip(gallery[1] + rng.normal(0, 2, gallery[1].shape), 0, 255).astype(np.uint8) for _ in range(24)]
    scorer = likeness(noisy, 4)
    scores = [
        scorer.scores(solids[1], None, Beside(noisy[i], place=i), [], seed=i)[0]["n_way_views_top1"] for i in range(24)
    ]
    assert np.mean(scores) == pytest.approx(0.25, abs=0.12)


def test_the_row_says_how_many_ways_there_were_and_what_chance_is():
    contents = [{"metrics": {"n_way_views_top1": v}, "control": {}, "ways": 8} for v in (0.5, 1.0)]
    (row,) = summary_rows({("oracle", "plain"): contents}, ScoringConfig(), seed=0, labels={"subjects": ["01"]})
    assert (row["value"], row["chance"], row["labels"]["ways"]) == (0.75, 0.125, 8)
    assert "8-way top-1 over views (chance 0.12)" in summary_table([row])
