"""Meshes of a page: few faces, the same shape, a file that viewers read."""

import json
import struct

import numpy as np
import pytest
import trimesh

from ttd.geometry.meshes import from_glb, vertex_colours
from ttd.pages.page_mesh import simplified, to_page_glb


def sphere(subdivisions: int = 5) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions)
    colours = np.where(mesh.vertices[:, 2:] > 0, [[255, 0, 0]], [[0, 0, 255]]).astype(np.uint8)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)


def test_a_sphere_keeps_its_area_volume_and_colours_in_a_tenth_of_its_faces():
    mesh = sphere()
    small = simplified(mesh)
    assert len(mesh.faces) == 20_480
    assert 1_000 < len(small.faces) <= 2_000
    assert small.area == pytest.approx(4 * np.pi, rel=0.01)
    assert small.volume == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert np.abs(np.linalg.norm(small.vertices, axis=1) - 1).max() < 0.01
    assert (small.vertex_normals * small.vertices).sum(1).min() > 0.99, "normals point outward"
    top = small.vertices[:, 2] > 0.1
    assert (vertex_colours(small)[top] == [255, 0, 0]).all()


def test_a_box_keeps_its_corners():
    box = trimesh.creation.box((1, 2, 3))
    for _ in range(5):
        box = box.subdivide()
    small = simplified(box)
    assert len(small.faces) <= 2_000 < len(box.faces)
    assert np.abs(small.bounds - box.bounds).max() < 1e-6
    assert small.volume == pytest.approx(6, rel=0.005)


def test_a_small_mesh_stays_as_it_is():
    mesh = sphere(2)
    assert simplified(mesh) is mesh


def test_the_file_holds_the_mesh_within_a_step_of_its_grid():
    mesh = sphere(3)
    data = to_page_glb(mesh)
    again = from_glb(data)
    assert again.faces.shape == mesh.faces.shape
    assert np.abs(again.vertices - mesh.vertices).max() <= 2 / 65535
    assert len(data) < 18 * len(mesh.vertices) + 6 * len(mesh.faces) + 2_000
    assert struct.unpack("<4sII", data[:12]) == (b"glTF", 2, len(data))
    content = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    assert content["extensionsRequired"] == ["KHR_mesh_quantization"], "nothing that needs a decoder"


def test_a_mesh_with_too_many_vertices_or_none_is_refused():
    with pytest.raises(ValueError, match="1 to 65,535 vertices, got 163842"):
        to_page_glb(trimesh.creation.icosphere(7))
    with pytest.raises(ValueError, match="got 0"):
        to_page_glb(trimesh.Trimesh())
