import math

import numpy as np
import pytest
import trimesh

from ttd.metrics.volume import field_occupancy, grid, iou, mesh_iou, mesh_occupancy, pieces, surface_facts, welded

LOW, HIGH = np.full(3, -1.0), np.full(3, 1.0)


def ball(x: float = 0.0, radius: float = 0.5) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(5, radius).apply_translation([x, 0, 0])


def lens(distance: float, radius: float) -> float:
    """Volume that two spheres of one radius share (two caps)."""
    return math.pi / 12 * (4 * radius + distance) * (2 * radius - distance) ** 2


@pytest.mark.parametrize("distance", [0.1, 0.4, 0.8])
def test_overlapping_spheres_have_the_iou_of_the_closed_form(distance):
    shared = lens(distance, 0.5)
    true = shared / (2 * 4 / 3 * math.pi * 0.5**3 - shared)
    assert mesh_iou(ball(), ball(distance)) == pytest.approx(true, abs=0.002)
    cells = [
        field_occupancy(lambda p, x=x: np.linalg.norm(p - [x, 0, 0], axis=1) - 0.5, LOW, HIGH + 1)
        for x in (0, distance)
    ]
    assert iou(*cells) == pytest.approx(true, abs=0.005)


def test_a_sphere_fills_its_volume_and_a_box_exactly_its_cells():
    solid = mesh_occupancy(ball(), LOW, HIGH)
    assert solid.mean() * 8 == pytest.approx(4 / 3 * math.pi * 0.125, rel=0.01)
    np.testing.assert_array_equal(solid, field_occupancy(lambda p: np.linalg.norm(p, axis=1) - 0.5, LOW, HIGH))
    box = trimesh.creation.box((1.0, 0.5, 0.25))
    inside = mesh_occupancy(box, LOW, HIGH, cells=16)
    assert inside.sum() == 8 * 4 * 2
    assert inside[4:12, 6:10, 7:9].all()


def test_rays_of_trimesh_say_the_same_of_an_asymmetric_solid():
    body = trimesh.creation.torus(0.5, 0.2).apply_transform(trimesh.transformations.euler_matrix(0.3, 0.5, 0.7))
    body = trimesh.util.concatenate([body, ball(0.85, 0.1)])
    points = grid(LOW, HIGH, 40)
    theirs = body.contains(points.reshape(-1, 3)).reshape(40, 40, 40)
    assert (mesh_occupancy(body, LOW, HIGH, 40) != theirs).mean() < 2e-4


def test_overlapping_parts_are_one_solid_and_a_cavity_is_outside():
    both = trimesh.util.concatenate([ball(-0.2), ball(0.2)])
    expected = mesh_occupancy(ball(-0.2), LOW, HIGH) | mesh_occupancy(ball(0.2), LOW, HIGH)
    np.testing.assert_array_equal(mesh_occupancy(both, LOW, HIGH), expected)
    hollow = ball(0, 0.3)
    hollow.invert()
    shell = trimesh.util.concatenate([ball(), hollow])
    expected = mesh_occupancy(ball(), LOW, HIGH) & ~mesh_occupancy(ball(0, 0.3), LOW, HIGH)
    np.testing.assert_array_equal(mesh_occupancy(shell, LOW, HIGH), expected)


def test_a_small_hole_does_no_harm_a_bowl_holds_its_hollow_and_a_sheet_nothing():
    pierced = ball()
    pierced.update_faces(np.arange(len(pierced.faces)) != 7)
    assert surface_facts(pierced)["watertight"] == 0
    assert mesh_iou(pierced, ball()) == pytest.approx(1, abs=1e-3)
    bowl = ball()
    bowl.update_faces(bowl.triangles_center[:, 2] < 0)
    assert mesh_iou(bowl, ball()) == pytest.approx(0.5, abs=0.01)
    sheet = trimesh.Trimesh(
        [[-0.9, -0.9, 0], [0.9, -0.9, 0.3], [0.9, 0.9, 0.5], [-0.9, 0.9, 0.2]], [[0, 1, 2], [0, 2, 3]]
    )
    assert mesh_iou(sheet, ball()) == 0
    assert mesh_iou(trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]), ball()) == 0


def test_nothing_overlaps_with_nothing():
    assert mesh_iou(None, ball()) == 0
    assert mesh_iou(ball(), ball(1.5)) == 0
    assert iou(np.zeros((4, 4), bool), np.zeros((4, 4), bool)) == 0
    with pytest.raises(ValueError, match=r"shapes differ: \(2,\) and \(3,\)"):
        iou(np.ones(2, bool), np.ones(3, bool))
    with pytest.raises(ValueError, match="has no volume"):
        mesh_occupancy(ball(), LOW, np.array([1, -1, 1]))


def test_a_seam_of_the_texture_is_no_hole_and_parts_are_counted_by_their_surface():
    unwelded = ball(0.0, 0.5)
    unwelded = trimesh.Trimesh(
        unwelded.triangles.reshape(-1, 3), np.arange(3 * len(unwelded.faces)).reshape(-1, 3), process=False
    )
    assert not unwelded.is_watertight
    assert surface_facts(unwelded) == {"empty": 0.0, "watertight": 1.0, "components": 1.0}
    assert len(welded(unwelded).vertices) == len(ball().vertices)
    crumb = ball(0.9, 0.02)
    assert surface_facts(trimesh.util.concatenate([unwelded, crumb]))["components"] == 2
    parts = pieces(trimesh.util.concatenate([crumb, unwelded]), least_share=0.02)
    assert [part.area for part in parts] == [pytest.approx(ball().area)]
    assert surface_facts(None) == {"empty": 1.0, "watertight": None, "components": None}
