"""Meshes small enough for a page: clustered vertices, sixteen-bit positions, one GLB without extras.

Vertices of one cell of a grid become one vertex, which stands where the planes of its faces meet best: Rossignac & Borrel
(1993, "Multi-resolution 3D approximations") with the quadrics of Lindstrom (2000, "Out-of-core simplification of large
polygonal models"). For looking, not for measuring: figures are computed on the full mesh.

Letters: V vertices, F faces, K cells that hold vertices.
"""

from __future__ import annotations

import json
import struct

import numpy as np
import trimesh

from ttd.geometry.meshes import vertex_colours

MAX_FACES = 2_000
"""Of a page's mesh; at 260 pixels its edges are shorter than 10 pixels. A hundred of them take 4 MB as base64."""

RIGID = 1e-2
"""Directions in which a cell's planes say less than this share of the strongest leave the vertex at the mean."""

ROUGHNESS = 0.75  # matt, as in the turntable pictures


def simplified(mesh: trimesh.Trimesh, max_faces: int = MAX_FACES) -> trimesh.Trimesh:
    """A mesh of at most ``max_faces`` faces: the finest of a sequence of grids that reaches it; small ones stay."""
    if len(mesh.faces) <= max_faces:
        return mesh
    n_cells = np.sqrt(max_faces / 2)  # along the longest side; a cube has most faces: 12 n²
    while True:
        smaller = clustered(mesh, mesh.extents.max() / n_cells)
        if len(smaller.faces) <= max_faces:
            return smaller
        n_cells *= 0.93  # 14 % fewer faces


def clustered(mesh: trimesh.Trimesh, side: float) -> trimesh.Trimesh:
    """Vertices [V, 3] merged by the cells of a cubic grid; colours and normals are the cells' means."""
    places = np.asarray(mesh.vertices)
    cells = np.floor((places - mesh.bounds[0]) / side).astype(np.int64)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    cell = cell.ravel()
    n = int(cell.max()) + 1
    count = np.bincount(cell, minlength=n)[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(cell, column, minlength=n) for column in values.T], axis=1) / count

    centre = mean(places)  # [K, 3]
    faces = np.asarray(mesh.faces)
    normals, corner = np.asarray(mesh.face_normals) * np.asarray(mesh.area_faces)[:, None], cell[faces]
    quadric, offset = np.zeros((n, 3, 3)), np.zeros((n, 3))
    for k in range(3):  # each corner sees the plane of its face, as seen from the centre of its cell
        height = (normals * (places[faces[:, 0]] - centre[corner[:, k]])).sum(1)
        np.add.at(quadric, corner[:, k], normals[:, :, None] * normals[:, None, :])
        np.add.at(offset, corner[:, k], normals * height[:, None])
    move = np.einsum("kij,kj->ki", np.linalg.pinv(quadric, rcond=RIGID, hermitian=True), offset)
    move *= np.minimum(1, side / np.maximum(np.linalg.norm(move, axis=1), 1e-12))[:, None]  # stays near its cell
    kept = (corner[:, 0] != corner[:, 1]) & (corner[:, 1] != corner[:, 2]) & (corner[:, 2] != corner[:, 0])
    _, once = np.unique(np.sort(corner[kept], axis=1), axis=0, return_index=True)
    out = trimesh.Trimesh(
        centre + move, corner[kept][np.sort(once)], process=False,
        vertex_normals=trimesh.util.unitize(mean(np.asarray(mesh.vertex_normals))),
        vertex_colors=mean(vertex_colours(mesh).astype(float)).round().astype(np.uint8),
    )  # fmt: skip
    out.remove_unreferenced_vertices()
    return out


def to_page_glb(mesh: trimesh.Trimesh) -> bytes:
    """A GLB with quantized positions and normals (KHR_mesh_quantization, which viewers read without a decoder).

    Colours are written in linear light, as glTF wants them.

    Raises:
        ValueError: more than 65,535 vertices, or none.
    """
    n = len(mesh.vertices)
    if not 0 < n < 2**16:
        raise ValueError(f"a page mesh has 1 to 65,535 vertices, got {n}; simplify it first")
    low, step = mesh.bounds[0], max(float(mesh.extents.max()), 1e-9) / 65535
    positions = np.zeros((n, 4), np.uint16)  # a vertex begins at a multiple of four bytes
    positions[:, :3] = ((mesh.vertices - low) / step).round()
    normals = np.zeros((n, 4), np.int8)
    normals[:, :3] = (np.asarray(mesh.vertex_normals) * 127).round()
    colours = np.full((n, 4), 255, np.uint8)
    srgb = vertex_colours(mesh) / 255
    colours[:, :3] = (np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) * 255).round()
    faces = np.asarray(mesh.faces, np.uint16).ravel()
    parts = [positions.tobytes(), normals.tobytes(), colours.tobytes(), faces.tobytes()]
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    corners = positions[:, :3]
    views = [
        {"buffer": 0, "byteOffset": start, "byteLength": len(part)} | ({"byteStride": stride} if stride else {})
        for start, part, stride in zip(starts, parts, (8, 4, 4, 0), strict=False)
    ]
    content = {
        "asset": {"version": "2.0", "generator": "ttd"},
        "extensionsUsed": ["KHR_mesh_quantization"],
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": low.tolist(), "scale": [step] * 3}],
        "meshes": [{"primitives": [
            {"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3, "material": 0},
        ]}],
        "materials": [{
            "doubleSided": True, "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": ROUGHNESS},
        }],
        "accessors": [
            {"bufferView": 0, "componentType": 5123, "count": n, "type": "VEC3",
             "min": corners.min(0).tolist(), "max": corners.max(0).tolist()},
            {"bufferView": 1, "componentType": 5120, "normalized": True, "count": n, "type": "VEC3"},
            {"bufferView": 2, "componentType": 5121, "normalized": True, "count": n, "type": "VEC4"},
            {"bufferView": 3, "componentType": 5123, "count": len(faces), "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": starts[-1]}],
    }  # fmt: skip
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts) + b"\0" * (-starts[-1] % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(body))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
