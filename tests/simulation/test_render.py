import numpy as np
import pytest
import torch

from ttd.simulation.render import EYE, LOOKS, labels, project, rays, render
from ttd.simulation.scenes import KINDS, Scene, Solid, draw_scene, signed_distance


def one(kind="sphere", x=0.0, z=0.0, colour="red", radius=0.48) -> Scene:
    return Scene((Solid(kind, colour, "large", radius, 0.3, x, z),), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_ray_that_meets_a_solid_ends_on_its_surface(kind):
    scene = one(kind)
    out = render([scene])
    d = rays(128).view(128, 128, 3)[::2, ::2].numpy()
    hit = out.mask[0] == 0
    points = np.array(EYE) + out.depth[0][hit][:, None] * d[hit]
    assert hit.sum() > 100
    assert np.abs(signed_distance(scene, points)).max() < 5e-3


def test_the_projection_of_a_centre_lies_in_the_middle_of_its_mask():
    scene = one(x=0.45)
    mask = render([scene]).mask[0] == 0
    ys, xs = np.nonzero(mask)
    s = scene.solids[0]
    u, v = project(torch.tensor([s.x, s.y, s.z])).tolist()
    assert (xs.mean() + 0.5) / 32 - 1 == pytest.approx(u, abs=0.04)
    assert (ys.mean() + 0.5) / 32 - 1 == pytest.approx(v, abs=0.04)


def test_left_is_left_and_nearer_is_lower():
    left, right = (np.nonzero(render([one(x=x)]).mask[0] == 0)[1].mean() for x in (-0.45, 0.45))
    far, near = (np.nonzero(render([one(z=z)]).mask[0] == 0)[0].mean() for z in (-0.3, 0.3))
    assert left < 32 < right
    assert far < near


def test_a_picture_does_not_depend_on_the_pictures_rendered_with_it():
    scenes = [draw_scene(i) for i in range(5)]
    together = render(scenes).image
    assert all((together[i] == render([scenes[i]]).image[0]).all() for i in range(5))


def test_the_two_looks_show_the_same_solids_on_another_table():
    scenes = [draw_scene(i) for i in range(4)]
    a, b = (render(scenes, look) for look in LOOKS)
    assert (a.mask == b.mask).all()
    table = a.mask == -1
    assert np.abs(a.image[table].astype(int) - b.image[table]).mean() > 20


def test_labels_are_those_of_the_solid_with_more_visible_pixels():
    scene = Scene(
        (Solid("box", "red", "large", 0.45, 0, -0.45, 0.2), Solid("torus", "blue", "small", 0.3, 0, 0.45, -0.2)), 0
    )
    assert labels(scene, render([scene]).mask[0]) == {"kind": "box", "colour": "red", "size": "large", "place": "left"}


def test_an_unknown_look_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown look 'noir'; known: base, study"):
        render([draw_scene(0)], look="noir")
